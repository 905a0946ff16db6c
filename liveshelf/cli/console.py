"""Where tables and progress bars go."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPED_COLUMNS = 160  # a log or a pipe has no width; rich would assume 80 and cut cells


def table_console() -> "Console":
    """Stdout as wide as the terminal, or wide enough for every table when there is none."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = PIPED_COLUMNS
    return console


@contextmanager
def progress_bar(label: str, quiet: bool = False) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """(advance by so much, add so much to what there is to do), shown on stderr, so that stdout holds the result alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as shown:
        task, total = shown.add_task(label, total=None), 0

        def begin(more: int) -> None:
            nonlocal total
            total += more
            shown.update(task, total=total)

        yield (lambda more: shown.advance(task, more)), begin
