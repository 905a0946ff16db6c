"""Where tables go."""

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
