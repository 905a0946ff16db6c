"""The README's commands, as they stand there, against a running stack."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from liveshelf.local.parts import role_environment
from liveshelf.settings import Settings
from tests.e2e.conftest import Stack

REPOSITORY = Path(__file__).parents[2]
BLOCKS = re.findall(r"<!-- tested -->\n```(\w+)\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S)
SAID = {
    "curl -s http://127.0.0.1:18080/v1/events": '"accepted":1',
    "grpcurl": '"request_id"',
    "from liveshelf.client import Client": "0 ",
    ".venv/bin/liveshelf recommend": "view_item",
    "curl -s http://127.0.0.1:18092/v1/recommend": '"request_id"',
}
"""What a block prints, by how it begins."""


def for_stack(text: str, settings: Settings) -> str:
    """The same text with the stack's ports and this environment's command in place of the defaults."""
    defaults = Settings()
    for name in Settings.__struct_fields__:
        if name.endswith("_port"):
            text = text.replace(f":{getattr(defaults, name)}", f":{getattr(settings, name)}")
    return text.replace(".venv/bin/liveshelf", f"{sys.executable} -m liveshelf.cli.main")


def test_there_are_commands_to_test() -> None:
    assert [language for language, _ in BLOCKS] == ["sh", "sh", "python", "sh", "sh"]


@pytest.mark.parametrize(("language", "text"), BLOCKS, ids=[text.split()[0] for _, text in BLOCKS])
def test_the_command_works(stack: Stack, language: str, text: str, tmp_path: Path) -> None:
    if text.startswith("grpcurl") and not shutil.which("grpcurl"):
        pytest.skip("grpcurl is not installed; tests/integration/test_scoring.py asks by reflection as it does")
    interpreter = {"sh": ["sh", "-ec"], "python": [sys.executable, "-c"]}[language]
    environment = role_environment(stack.settings, os.environ)
    if "features" in text:
        stack.until(
            lambda: stack.liveshelf("features", "show", "1234.5678").returncode == 0, "the README's event is in the features"
        )
    done = subprocess.run(
        [*interpreter, for_stack(text, stack.settings)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (expected,) = (said for begins, said in SAID.items() if text.startswith(begins))
    assert expected in done.stdout
