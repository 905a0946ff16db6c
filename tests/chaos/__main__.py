"""`python -m tests.chaos --kills 200 --seed 1`: exit 0 when nothing was lost, doubled or different, 1 when something was, 3 when a part
did not come back in time."""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.chaos.loop import NotRecoveredError
from tests.chaos.run import Report, run
from tests.chaos.schedule import MIX

BREAKS = ("no_offset_check", "commit_early")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description="kill -9 against a seeded stream, then compare every row"
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument(
        "--lost-writes", action="store_true", help="half of the store's kills also lose the end of its append-only file"
    )
    parser.add_argument("--break", dest="break_mode", choices=BREAKS, default="", help="run agents that are broken on purpose")
    parser.add_argument("--json", action="store_true", help="only the last line")
    options = parser.parse_args()
    console = Console(stderr=True, quiet=options.json)
    console.print(
        f"{options.events:,} events, {options.kills} kills: " + ", ".join(f"{part} {share:.0%}" for part, share in MIX.items())
    )
    try:
        with tempfile.TemporaryDirectory(prefix="liveshelf-chaos-") as home:
            report = asyncio.run(_run(Path(home), options, console))
    except (NotRecoveredError, TimeoutError) as error:
        print(f"the run did not finish: {error or 'it took far too long'}", file=sys.stderr)
        return 3
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("stopped", file=sys.stderr)
        return 130
    _show(report, console)
    print(msgspec.json.encode(report).decode())
    return 0 if report.clean else 1


async def _run(home: Path, options: argparse.Namespace, console: Console) -> Report:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    columns = (TextColumn("{task.description:10}"), BarColumn(), TextColumn("{task.fields[kills]} kills"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("starting", total=options.events, kills=0)

        def on_progress(answered: int, kills: int, stage: str) -> None:
            progress.update(bar, completed=answered, kills=kills, description=stage or "sending")

        return await run(
            home,
            options.seed,
            options.kills,
            options.events,
            lost_writes=options.lost_writes,
            break_mode=options.break_mode,
            on_progress=on_progress,
        )


def _show(report: Report, console: Console) -> None:
    for line in report.differences:
        console.print(f"[red]✗[/red] {line}", highlight=False)
    console.print(
        f"load average {os.getloadavg()[0]:.1f}; {report.accepted:,} accepted, {sum(report.rejected.values()):,} rejected"
    )
    colour = "green" if report.clean else "red"
    console.print(
        f"[{colour}]lost {report.lost}, doubled {report.doubled}, different {report.different} of {report.rows:,} rows[/{colour}]"
    )


if __name__ == "__main__":
    sys.exit(main())
