"""`liveshelf recommend`: ask the scoring service for a shelf and show it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from liveshelf.errors import SettingsError
from liveshelf.settings import Settings

if TYPE_CHECKING:  # rich and grpc are imported when a shelf is asked for, not when help is
    from rich.console import RenderableType

    from liveshelf.client import Client

DEADLINE_MS = 2_000  # a person waits longer than a page; the scorer still keeps its own deadline


def command(
    ctx: typer.Context,
    user: Annotated[str, typer.Option(help="The shop's id of a signed-in shopper.")] = "",
    client: Annotated[str, typer.Option(help="The browser's or device's id (GA4 client_id).")] = "",
    session: Annotated[str, typer.Option(help="The visit's id (GA4 ga_session_id).")] = "",
    count: Annotated[int, typer.Option("-n", "--count", help="How many items, 1 to 100.")] = 10,
    placement: Annotated[str, typer.Option(help="Where the shelf stands: home, cart, …")] = "command-line",
    context: Annotated[list[str] | None, typer.Option(help="An item on the page; may be given several times.")] = None,
    category: Annotated[
        list[str] | None, typer.Option(help="Show items of this category only; may be given several times.")
    ] = None,
    brand: Annotated[list[str] | None, typer.Option(help="Show items of this brand only; may be given several times.")] = None,
    timings: Annotated[bool, typer.Option(help="Show how long each stage took.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as one JSON object.")] = False,
) -> None:
    """Ask for a shelf, for a user, a client or a session.

    The answer is logged as an impression like any other. A shelf is always answered: when a part is down it comes from a simpler source,
    and is marked as degraded with the reason.
    """
    from liveshelf.client import Filters

    settings: Settings = ctx.obj
    if not (user or client or session):
        raise SettingsError("nobody to recommend to: give --user, --client or --session")
    with connect(settings, DEADLINE_MS) as scorer:
        answer = scorer.recommend(
            user_id=user,
            client_id=client,
            session_id=session,
            count=count,
            placement=placement,
            context_item_ids=context or (),
            filters=Filters(categories=category, brands=brand),
            with_timings=timings,
        )
    if as_json:
        from google.protobuf.json_format import MessageToJson

        typer.echo(MessageToJson(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=None))
        return
    from rich.console import Console

    Console().print(shelf_table(answer, title=f"Shelf for {user or client or session}"))


def connect(settings: Settings, deadline_ms: int) -> "Client":
    """A client of the settings' scorer, with its token, and over TLS where the settings say whom to trust.

    Raises:
        SettingsError: half a set of TLS settings.
    """
    from liveshelf.client import Client, Tls

    tls = Tls.of_settings(settings, "scoring_tls_ca", "scoring_tls_client_cert", "scoring_tls_client_key")
    return Client(settings.scoring_address, deadline_ms, token=settings.scoring_token, tls=tls)


def shelf_table(answer: Any, title: str, moves: dict[str, str] | None = None) -> "RenderableType":
    """An answer to Recommend as a table; `moves` adds a column by item id."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    if moves is not None:
        table.add_column("moved", no_wrap=True)
    table.add_column("title")  # the one that gives way on a narrow terminal
    for name in ("category", "brand", "price", "score", "source"):
        table.add_column(name, justify="right" if name in ("price", "score") else "left", no_wrap=True)
    for item in answer.items:
        moved = [] if moves is None else [moves.get(item.item_id, "")]
        price = f"{item.price:.2f}" if item.price else ""
        row = [item.title or item.item_id, item.category, item.brand, price, f"{item.score:.3f}", item.candidate_source]
        # Text, not str: a title in brackets is no markup.
        table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in [str(item.position + 1), *moved, *row]))
    if answer.degraded:
        state = Text(f"DEGRADED: {answer.degraded_reason}. A fallback shelf; see `liveshelf status`.", style="bold yellow")
    else:
        state = Text(f"model {answer.model_version}, features {answer.feature_version}", style="dim")
    foot = [Text(f"request {answer.request_id}, features folded up to offset {answer.features_offset}", style="dim")]
    if answer.timings:
        foot.append(Text(", ".join(f"{timing.stage} {timing.ms:.1f} ms" for timing in answer.timings), style="dim"))
    return Group(table, state, *foot)
