"""How a part's process is started, so that it dies with its parent and hears no Ctrl-C meant for it."""

import os
import sys
from pathlib import Path
from typing import Any

from liveshelf.local import die_with_parent


def dying_with_parent(command: list[str]) -> list[str]:
    """`command`, wrapped so that the kernel kills it when this process dies. Start it from a thread that lives as long as the
    process does: to the kernel, "parent" is the thread."""
    return [sys.executable, "-SE", str(Path(die_with_parent.__file__)), str(os.getpid()), *command]


# A session of its own: the terminal's Ctrl-C reaches the supervisor alone, which then stops the parts in order.
OWN_SESSION: dict[str, Any] = {"start_new_session": True}
