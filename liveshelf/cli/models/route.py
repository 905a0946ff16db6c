"""What the verbs that change routes share: do it, and say what is in force now."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from liveshelf.settings import Settings
    from serving.promotion import Promotion
    from streams.route import Route


def put(settings: "Settings", change: "Callable[[Promotion], Awaitable[Route]]", as_json: bool) -> None:
    """Run `change` and print the route that it put in force."""
    from rich.console import Console

    from serving.model_client import ModelClient
    from serving.promotion import Promotion

    async def work() -> "tuple[Route, int]":
        async with ModelClient(settings) as client:
            promotion = Promotion(settings, client)
            route = await change(promotion)
            return route, await promotion.live()

    with Console(stderr=True).status("loading and switching"):
        route, live = asyncio.run(work())
    tell(route, live, as_json)


def tell(route: "Route", live: int, as_json: bool) -> None:
    if as_json:
        import msgspec

        answer: dict[str, Any] = {"live": live, "automatic": not route.stable, "canary": route.canary, "share": route.share}
        typer.echo(msgspec.json.encode(answer))
        return
    if not route.stable:
        typer.echo(f"Version {live} answers everybody; the next one that the trainer promotes takes over by itself.")
    elif route.canary:
        typer.echo(
            f"Version {route.canary} answers {100 * route.share:g}% of the shoppers, version {live} the others; newer ones wait."
        )
    else:
        typer.echo(f"Version {live} answers everybody; newer ones wait until `liveshelf models pin --off`.")
