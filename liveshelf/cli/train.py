"""`liveshelf train`: ask the running trainer for a step and show what came of it."""

import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from liveshelf.errors import ConflictError, CorruptError, LiveshelfError, NotFoundError, SettingsError, UnavailableError
from liveshelf.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

STEP_S_MAX = 1_800  # a bootstrap of a long log on a busy machine takes minutes
ERRORS: dict[str, type[LiveshelfError]] = {
    error.__name__: error for error in (ConflictError, CorruptError, LiveshelfError, NotFoundError, SettingsError, UnavailableError)
}
COLORS = {"promoted": "green", "refused": "yellow", "nothing_to_learn": "dim"}


def command(
    ctx: typer.Context,
    bootstrap: Annotated[
        bool, typer.Option("--bootstrap", help="Learn anew from the event log, instead of from new examples.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object.")] = False,
) -> None:
    """Take a training step now, and wait for it.

    The trainer learns from the examples that came since its last step; the first time, from the event log. The new model goes live only
    when it is no worse than the live one on examples that neither has seen.
    """
    from rich.console import Console

    body = msgspec.json.encode({"bootstrap": bootstrap})
    with Console(stderr=True).status("training"):
        result = ask(ctx.obj, "/v1/step", body)
    if as_json:
        typer.echo(msgspec.json.encode(result))
        return
    console = Console()
    console.print(
        f"{result['outcome']}: {result['reason']}", style=COLORS.get(result["outcome"], ""), markup=False, highlight=False
    )
    console.print(result_table(result))


def ask(settings: Settings, path: str, body: bytes | None = None) -> Any:
    """GET `path` of the trainer, or POST `body` to it; the decoded answer.

    Raises:
        UnavailableError: the trainer does not answer, or cannot reach Kafka.
        ConflictError: a step runs already.
        CorruptError: its checkpoints cannot be read.
        NotFoundError: it knows no such version.
    """
    request = urllib.request.Request(settings.trainer_url + path, data=body, headers={"Content-Type": "application/json"})  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a part on this machine is never behind a proxy
    try:
        with opener.open(request, timeout=STEP_S_MAX) as answer:
            return msgspec.json.decode(answer.read())
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        try:
            told = msgspec.json.decode(text, type=dict[str, str])
        except msgspec.DecodeError:
            told = {"error": text[:300]}
        kind = ERRORS.get(told.get("kind", ""), LiveshelfError)
        raise kind(f"the trainer at {settings.trainer_url} answered {error.code}: {told.get('error', text[:300])}") from error
    except (OSError, msgspec.DecodeError) as error:
        why = getattr(error, "reason", error)
        raise UnavailableError(
            f"the trainer at {settings.trainer_url} does not answer ({why}). Start it with `liveshelf up`, or look at `liveshelf logs trainer`."
        ) from error


def result_table(result: dict[str, Any]) -> "Table":
    """What a step did, a line each."""
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    read = "events" if result["kind"] == "bootstrap" else "examples"
    rows = {
        "version": f"{result['version']} (parent {result['parent']})"
        if result["outcome"] != "nothing_to_learn"
        else f"{result['version']}",
        f"{read} read": result["consumed"],
        "learnt from": result["trained"],
        "set aside": result["held_out"],
        "held back": result["held_back"],
        "already consumed": result["duplicates"],
        "unusable": result["unusable"],
        "seconds": f"{result['seconds']:.1f}",
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    for name, value in sorted(result["metrics"].items()):
        table.add_row(name, f"{value:.4g}", style="dim")
    for skipped in result["checkpoints_skipped"]:
        table.add_row("checkpoint skipped", skipped, style="yellow")
    return table
