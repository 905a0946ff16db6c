"""What `pip install liveshelf` gives: the client and the command, and none of the heavy libraries."""

import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

CHECK = """
import importlib.util, sys
from liveshelf.client import AsyncClient, Client
import liveshelf.cli.main, features, streams, serving, trainer
from liveshelf.v1 import recommendation_pb2
assert importlib.util.find_spec("features.rows")
heavy = [m for m in ("tensorflow", "feast", "faust", "keras", "pandas", "confluent_kafka") if importlib.util.find_spec(m)]
assert not heavy, heavy
assert "site-packages" in liveshelf.cli.main.__file__
"""


def test_the_wheel_alone_imports_the_client_without_tensorflow_feast_or_faust(tmp_path: Path) -> None:
    """Built from a copy of the source, installed with its base dependencies into a clean environment, imported from an empty directory."""

    def run(*command: str, cwd: Path) -> str:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    source = tmp_path / "source"  # a build leaves its files where it runs
    shutil.copytree(
        REPOSITORY, source, ignore=shutil.ignore_patterns(".git", ".venv", ".liveshelf", "build", "*.egg-info", "tests")
    )
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), ".", cwd=source)
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "venv", "clean", cwd=tmp_path)
    python = str(tmp_path / "clean" / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel), cwd=tmp_path)
    run(python, "-c", CHECK, cwd=tmp_path)
    assert "recommend" in run(str(tmp_path / "clean" / "bin" / "liveshelf"), "--help", cwd=tmp_path)
