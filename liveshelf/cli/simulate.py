"""`liveshelf simulate`: simulated shoppers visit the running shop, over the same HTTP and gRPC that real ones would use."""

import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from liveshelf.errors import ConflictError, SettingsError
from liveshelf.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

    from liveshelf.simulator.shop import Shop
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
    drift: Annotated[float, typer.Option(min=0, help="How many times as fast tastes turn as they mostly do; 0: never.")] = 1.0,
    log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the days of --history to a file, one event a line in JSON; send nothing."),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Tell what recommendations are worth to these shoppers; needs no running shop.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="With --evaluate: shops, from --seed on.")] = 5,
    days: Annotated[float, typer.Option(min=0.1, help="With --evaluate: how long is measured.")] = 7.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Let simulated shoppers visit the shop.

    They have hidden tastes; they view, click what they are shown, fill carts and buy. Some members come anonymously and sign in on the
    way; on some browsers someone else goes on when they have signed out. Shelves are read from the scoring service and every
    step is reported to the collector, so the loop is closed: better shelves get more clicks. The same --seed, --shoppers and --items
    give the same shop; seed it once with --history.

    --evaluate plays in this process, on the classes that serve and train, without Kafka: clicks and revenue a shelf of ours, of ours
    without learning, and of popularity, without drift and with --drift, each from the same history and warm-up, with 95% intervals.
    """
    from liveshelf.cli.recommend import connect
    from liveshelf.simulator.browsers import SIGN_IN_SHARE
    from liveshelf.simulator.feed import Feed
    from liveshelf.simulator.shop import Shop
    from liveshelf.simulator.traffic import Tally, live, seed_history

    settings: Settings = ctx.obj
    if history < 0:
        raise SettingsError(f"--history {history}: days of history cannot be negative")
    first = settings.seed if seed is None else seed
    if evaluate:
        _evaluate(settings, range(first, first + seeds), drift, shoppers, items, days, as_json)
        return
    if settings.event_age_max_h and history * 24 > settings.event_age_max_h:
        raise SettingsError(
            f"--history {history:g}: the collector refuses events older than its setting event_age_max_h, {settings.event_age_max_h} h. "
            "Ask for fewer days, or set LIVESHELF_EVENT_AGE_MAX_H here and for the collector (0: no limit)."
        )
    shop = Shop(first, items, shoppers, drift)
    if log is not None:
        _write(shop, history, log)
        return
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


def _write(shop: "Shop", days: float, path: Path) -> None:
    """The shop's history as JSON lines, always of the same days: one seed gives one file."""
    import msgspec

    from liveshelf.simulator.history import START_MS, history, shifted

    if not days:
        raise SettingsError("--log: say how much to write, with --history DAYS")
    events = shifted(history(shop, days), START_MS)
    try:
        with path.open("xb") as file:
            file.writelines(msgspec.json.encode(event) + b"\n" for event in events)
    except FileExistsError:
        raise ConflictError(f"{path} exists already; name another file, or remove it") from None
    except OSError as error:
        raise ConflictError(f"{path} cannot be written: {error}") from None
    typer.echo(f"Wrote {len(events):,} events to {path}.", err=True)


def _evaluate(settings: Settings, seeds: range, drift: float, shoppers: int, items: int, days: float, as_json: bool) -> None:
    import logging

    import msgspec
    import structlog

    from features.feature_set import declared_set
    from liveshelf.cli.console import progress_bar, table_console
    from liveshelf.simulator.closed_loop import Plan
    from liveshelf.simulator.worth import visits_of, worth

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING)
    )  # each step is a new version, and told
    features = declared_set(settings)
    plan = Plan(seeds[0], drift, shoppers, items, days=days)
    with progress_bar("visits", quiet=as_json) as (advance, total):
        total(visits_of(plan, seeds, settings, features))
        result = worth(plan, seeds, settings, features, advance)
    if as_json:
        typer.echo(msgspec.json.encode(result))
        return
    for world in result["worlds"]:
        table_console().print(_worth_table(world))


def _worth_table(world: dict[str, Any]) -> "Table":
    from rich.table import Table

    drift = f"tastes turn {world['drift']:g} times as fast as mostly" if world["drift"] else "tastes stay"
    columns = ("shelves", "CTR", "revenue a shelf", "ours, times its CTR", "ours, times its revenue")
    table = Table("", *columns, title=drift, title_justify="left", box=None)
    for name, figures in world["recommenders"].items():
        over = world["ours_over"].get(name)
        table.add_row(
            name.replace("_", " "),
            f"{figures['shelves']:,}",
            "{:.2%} [{:.2%}, {:.2%}]".format(*figures["click_rate"]),
            "{:.2f} [{:.2f}, {:.2f}]".format(*figures["revenue"]),
            *("{:.2f} [{:.2f}, {:.2f}]".format(*over[measure]) if over else "" for measure in ("click_rate", "revenue")),
        )
    return table


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
