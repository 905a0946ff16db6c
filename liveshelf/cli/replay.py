"""`liveshelf replay`: send a recorded click log through the collector."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from liveshelf.errors import SettingsError
from liveshelf.settings import Settings

if TYPE_CHECKING:  # httpx and rich are imported when a log is replayed, not when help is asked for
    from liveshelf.replay.logs import ClickLog
    from liveshelf.replay.state import ReplayState

INTERRUPTED = 130  # what a shell reports for Ctrl-C
REFUSED = 2  # as InvalidEventError: there was input, and none of it was accepted


def command(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The log: a plain file, or a tar archive as it came.")],
    format_: Annotated[Literal["yoochoose", "otto"], typer.Option("--format", help="What the log is written in.")],
    speed: Annotated[str, typer.Option(help="1x is as it happened, 100x a hundred times as fast, max as fast as it goes.")] = "max",
    member: Annotated[str, typer.Option(help="One file of the archive (default: all, merged by time).")] = "",
    keep_times: Annotated[
        bool,
        typer.Option(
            "--keep-times",
            help="Do not shift the log's times so that its last event is now. For archives, the collector then needs event_age_max_h 0.",
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after the log's first N events.")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew instead of where the last replay of this log stopped.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and no progress bar.")] = False,
) -> None:
    """Send a recorded click log through the collector, in time order.

    yoochoose: tab-separated SessionId, ItemId, Time. otto: one session a line in JSON. Each event carries its session of the log, so
    `liveshelf recommend --session 11` answers for session 11. Interrupted, or cut off, it goes on where it stopped when it is run again;
    events that were sent twice count once.

    The collector refuses events older than its setting event_age_max_h (90 days). For logs that keep their times, or reach further back,
    start it with LIVESHELF_EVENT_AGE_MAX_H=0.
    """
    import liveshelf.replay.sender  # noqa: F401  (half a second of imports that is no part of the figures below)
    from liveshelf.replay.logs import ClickLog
    from liveshelf.replay.state import ReplayState, load_state, save_state, state_path

    settings: Settings = ctx.obj
    times = _times(speed)
    began = time.monotonic()
    log = ClickLog(path, format_, member)
    kept_at = state_path(settings, log.digest, format_, member, keep_times)
    state = None if restart else load_state(kept_at)
    if state is None:
        shift_ms = 0 if keep_times else time.time_ns() // 1_000_000 - log.last_ms
        state = ReplayState(path=str(path), format=format_, shift_ms=shift_ms)
        save_state(kept_at, state)
    read_s, began, start = time.monotonic() - began, time.monotonic(), state.position
    before = (state.accepted, dict(state.rejected))
    stop = log.count if limit is None else min(limit, log.count)
    interrupted = False
    with _bar(start, stop, quiet=as_json) as advance:

        def keep() -> None:
            save_state(kept_at, state)
            advance(state.position)

        try:
            _send(log, state, stop, times, settings, keep)
        except KeyboardInterrupt:
            interrupted = True
    seconds = time.monotonic() - began
    result = _result(log, state, start, before, seconds, read_s)
    _show(result, as_json)
    log.close()
    if interrupted:
        typer.echo(f"Stopped after {state.position} of {stop} events. Run the same command again to go on from there.", err=True)
        raise typer.Exit(INTERRUPTED)
    if start == stop:
        typer.echo(f"Nothing left to send: {start} events of this log were sent before. --restart sends them again.", err=True)
    elif not result["accepted"]:
        raise typer.Exit(REFUSED)


def _times(speed: str) -> float:
    """How many times as fast as it happened; 0 for "max"."""
    if speed == "max":
        return 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)x", speed)
    if match is None or not float(match[1]):
        raise SettingsError(f"--speed {speed}: expected max, or a factor such as 1x, 100x or 0.5x")
    return float(match[1])


def _send(
    log: "ClickLog", state: "ReplayState", stop: int, times: float, settings: Settings, on_window: Callable[[], None]
) -> None:
    import asyncio

    from liveshelf.replay.sender import Pace, Sender, replay

    async def run() -> None:
        async with Sender(settings) as sender:
            await replay(log, state, stop, Pace(times), sender, on_window)

    asyncio.run(run())


def _result(
    log: "ClickLog", state: "ReplayState", start: int, before: tuple[int, dict[str, int]], seconds: float, read_s: float
) -> dict[str, Any]:
    """Figures of this run; `position` counts earlier runs too. Lines that are no events are refused here, and never sent."""
    sent = state.position - start
    rejected = {reason: count - before[1].get(reason, 0) for reason, count in state.rejected.items()}
    rejected["malformed_line"] = log.malformed_count
    return {
        "sent": sent,
        "accepted": state.accepted - before[0],
        "rejected": {reason: count for reason, count in sorted(rejected.items()) if count},
        "malformed_lines": [f"{bad.file}:{bad.line}: {bad.problem}" for bad in log.malformed],
        "seconds": round(seconds, 3),
        "events_per_s": round(sent / seconds) if sent else 0,
        "read_seconds": round(read_s, 3),
        "position": state.position,
        "events": log.count,
        "shift_ms": state.shift_ms,
    }


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(result))
        return
    typer.echo(f"sent      {result['sent']:>10,}")
    typer.echo(f"accepted  {result['accepted']:>10,}")
    typer.echo(f"rejected  {sum(result['rejected'].values()):>10,}")
    for reason, count in result["rejected"].items():
        typer.echo(f"  {reason:<20} {count:,}")
    for line in result["malformed_lines"]:
        typer.echo(f"    {line}")
    typer.echo(f"seconds   {result['seconds']:>10,.1f}")
    typer.echo(f"events/s  {result['events_per_s']:>10,}")


@contextmanager
def _bar(start: int, stop: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, so that stdout holds the result alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as shown:
        task = shown.add_task("replay", total=stop, completed=start)
        yield lambda position: shown.update(task, completed=position)
