"""The `liveshelf` command: one verb a file, imported only when it is the one asked for.

Exit codes: 0 done, 1 a defect of ours, 2 wrong usage, setting or input, 3 a part does not answer, 4 not found, 5 conflict with something
that runs already, 6 a file that cannot be read, 130 interrupted (see `liveshelf.errors`).
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from liveshelf.errors import LiveshelfError

# Verb → one line of help. The listing is made from these alone, so that `liveshelf --help` imports no verb (0.3 s at most).
VERBS = {
    "up": "Start every part on this machine and keep it running.",
    "down": "Stop what `up` started in this data directory.",
    "status": "Show each part: address, version, health, restarts.",
    "logs": "Show the log of one part.",
    "doctor": "Check this machine and say what to do about what is wrong.",
    "catalog": "Load the shop's items.",
    "replay": "Send a real click log through the collector.",
    "recommend": "Ask for a shelf.",
    "features": "Declare, check, show, rebuild and verify features.",
    "train": "Take a training step now.",
    "models": "List model versions; promote one, to some shoppers or all; roll back.",
    "evaluate": "Tell the next clicks of a recorded log, beside simpler recommenders.",
    "sync-table": "Tell how much it is worth on a log that weights follow events soon.",
    "model-server": "Serve any SavedModel over TensorFlow Serving's API.",
    "simulate": "Let simulated shoppers visit the shop.",
    "demo": "Run the whole loop once, from an empty shop to a model that has learned.",
    "version": "Show our version and that of every part.",
}

HELP = """Liveshelf rearranges a shop's shelf while the shopper is still looking at it.

Begin with `liveshelf up`, or see it all at once with `liveshelf demo`. Each setting is an environment variable,
LIVESHELF_ and its name in capitals (LIVESHELF_DATA_DIR, LIVESHELF_KAFKA, …), or a key in the TOML file named by LIVESHELF_SETTINGS."""


class VerbGroup(TyperGroup):
    """A group whose commands are names and help lines until one of them is run: `verbs`, each a module of `package`."""

    package = "liveshelf.cli"
    verbs = VERBS
    default = ""
    """The verb of a line that names none."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        present = {verb: text for verb, text in self.verbs.items() if find_spec(self._module(verb))}
        self.commands = {verb: TyperCommand(verb, help=text) for verb, text in present.items()}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = next((argument for argument in args if not argument.startswith("-")), "")
        if self.default and not named and not {"-h", "--help"} & set(args):
            args = [self.default, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        verb, command, rest = super().resolve_command(ctx, args)
        return verb, load_command(self._module(verb)) if verb else command, rest

    def _module(self, verb: str) -> str:
        return f"{self.package}.{verb.replace('-', '_')}"


def load_command(name: str) -> Any:
    """The command in module `name`: made from its function `command`, or a group of its VERBS under its HELP."""
    module, verb = import_module(name), name.rpartition(".")[2].replace("_", "-")
    settings = {"help_option_names": ["-h", "--help"]}
    if hasattr(module, "VERBS"):
        group = type("Group", (VerbGroup,), {"package": name, "verbs": module.VERBS, "default": getattr(module, "DEFAULT", "")})
        app = typer.Typer(cls=group, name=verb, add_completion=False, rich_markup_mode=None, no_args_is_help=True)
        app.callback(help=module.HELP, context_settings=settings)(lambda: None)
    else:
        app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=settings)
        app.command(verb)(module.command)
    return typer.main.get_command(app)


def _load_settings(ctx: typer.Context) -> None:
    """Runs before every verb, but not for `liveshelf --help`, which must work whatever the settings are."""
    from liveshelf.settings import load_settings

    ctx.obj = load_settings()


def run(arguments: list[str] | None = None) -> None:
    """Entry point. The settings are read once; commands find them as `ctx.obj`."""
    # No rich markup in help: importing rich's Markdown alone costs 0.2 s.
    app = typer.Typer(cls=VerbGroup, add_completion=False, rich_markup_mode=None, no_args_is_help=True)
    app.callback(help=HELP, context_settings={"help_option_names": ["-h", "--help"]})(_load_settings)
    try:
        typer.main.get_command(app)(args=arguments, prog_name="liveshelf")
    except LiveshelfError as error:
        from rich.console import Console

        # soft_wrap: a script that reads the message gets it on one line.
        Console(stderr=True).print(f"liveshelf: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    run()
