"""`liveshelf simulate`: simulated shoppers visit the running shop, over the same HTTP and gRPC that real ones would use."""

import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from liveshelf.errors import SettingsError
from liveshelf.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from liveshelf.simulator.traffic import Progress, Tally

INTERRUPTED = 130  # what a shell reports for Ctrl-C


def command(
    ctx: typer.Context,
    history: Annotated[float, typer.Option(metavar="DAYS", help="First send the catalog and this many days of past events.")] = 0.0,
    sessions: Annotated[int, typer.Option(min=0, help="Visits to make now.")] = 100,
    shoppers: Annotated[int, typer.Option(min=1, help="How many people the shop knows.")] = 400,
    items: Annotated[int, typer.Option(min=12, help="How many items it sells.")] = 600,
    seed: Annotated[int | None, typer.Option(help="Another seed, another shop (default: the setting `seed`).")] = None,
    rate: Annotated[float, typer.Option(min=0, help="Visits begun per second; 0: as fast as they go.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Let simulated shoppers visit the shop.

    They have hidden tastes; they view, click what they are shown, fill carts and buy. Some members come anonymously and sign in on the
    way; on some browsers someone else goes on when they have signed out. Shelves are read from the scoring service and every
    step is reported to the collector, so the loop is closed: better shelves get more clicks. The same --seed, --shoppers and --items
    give the same shop; seed it once with --history.
    """
    from liveshelf.cli.recommend import connect
    from liveshelf.simulator.browsers import SIGN_IN_SHARE
    from liveshelf.simulator.feed import Feed
    from liveshelf.simulator.shop import Shop
    from liveshelf.simulator.traffic import Tally, live, seed_history

    settings: Settings = ctx.obj
    if history < 0:
        raise SettingsError(f"--history {history}: days of history cannot be negative")
    if settings.event_age_max_h and history * 24 > settings.event_age_max_h:
        raise SettingsError(
            f"--history {history:g}: the collector refuses events older than its setting event_age_max_h, {settings.event_age_max_h} h. "
            "Ask for fewer days, or set LIVESHELF_EVENT_AGE_MAX_H here and for the collector (0: no limit)."
        )
    shop = Shop(settings.seed if seed is None else seed, items, shoppers)
    past, now = Tally(), Tally()
    now_ms, started = time.time_ns() // 1_000_000, time.monotonic()
    interrupted = False
    with Feed(settings.collector_url) as feed, connect(settings, settings.recommend_deadline_ms) as client:
        try:
            if history:
                with bar("history", quiet=as_json) as progress:
                    past = seed_history(shop, feed, history, now_ms, progress, SIGN_IN_SHARE)
            if sessions:
                with bar("visits", quiet=as_json) as progress:
                    run = f"v{shop.seed}-{now_ms:x}"  # the time tells runs of one seed apart, so that no event id comes twice
                    live(
                        shop,
                        feed,
                        client,
                        visits=sessions,
                        rate_per_s=rate,
                        run=run,
                        sign_in_share=SIGN_IN_SHARE,
                        progress=progress,
                        tally=now,
                    )
        except KeyboardInterrupt:
            interrupted = True
    _show(past, now, time.monotonic() - started, as_json)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


@contextmanager
def bar(what: str, quiet: bool) -> "Iterator[Progress]":
    """A progress bar on stderr, so that stdout holds the result alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def _show(past: "Tally", now: "Tally", elapsed_s: float, as_json: bool) -> None:
    if as_json:
        import msgspec

        typer.echo(
            msgspec.json.encode({"history": past.as_dict(), "live": now.as_dict(), "elapsed_s": round(elapsed_s, 2)}).decode()
        )
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Simulated shop, {elapsed_s:.1f} s", title_justify="left")
    table.add_column()
    tallies = {name: tally for name, tally in (("history", past), ("now", now)) if tally.visits or tally.events}
    for name in tallies:
        table.add_column(name, justify="right")
    rows: dict[str, Callable[[Tally], object]] = {
        "catalog records": lambda t: t.catalog,
        "visits": lambda t: t.visits,
        "events": lambda t: t.events,
        "accepted": lambda t: t.accepted,
        "rejected": lambda t: t.rejected,
        "shelves read": lambda t: t.shelves,
        "  degraded": lambda t: t.shelves_degraded,
        "  not answered in time": lambda t: t.shelves_missed,
        "items shown": lambda t: t.shown,
        "clicks": lambda t: t.clicks,
        "CTR": lambda t: f"{t.click_rate:.2%}",
        "purchases": lambda t: t.purchases,
        "sign-ins": lambda t: t.logins,
    }
    for name, value in rows.items():
        table.add_row(name, *(str(value(tally)) for tally in tallies.values()))
    Console().print(table)
    for reason, count in (Counter(past.reasons) + Counter(now.reasons)).most_common(5):
        Console().print(f"rejected {count}×: {reason}", style="yellow", markup=False)
