"""The rules file: what is wrong is said with its line, and a wrong file changes nothing."""

import asyncio
import os
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from liveshelf.errors import SettingsError
from serving import rules as module
from serving.rules import RulesFollower, parse_rules

GOOD = "rules:\n  - {name: a, do: exclude, category: [x]}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "rules:\n  - name: a\n    do: promote\n    item: [x]\n",
            r"r.yml, line 3: Invalid enum value 'promote' \(at rules\[0\].do\)",
        ),
        ("rules:\n  - {name: a, do: boost, factor: 2}\n", "line 2: `a` says of no item"),
        ("rules:\n  - {name: a, do: pin, category: [x]}\n", "line 2: `a` pins, which needs `item`"),
        (GOOD + "  - {name: a, do: bury, brand: [b]}\n", "line 3: name `a` is taken by entry 1"),
        ("rules:\n  - name: a\n    do: boost\n    item: [x]\n    factor: 0.5\n", "line 5: `a` boosts by 0.5, expected at least 1"),
        ("rules:\n  - name: a\n    do: exclude\n    margin_below: 0.1\n", "line 2: `a` asks for a margin, but `margins` says none"),
        (
            "rules:\n  - {name: a, do: exclude, item: [x], until: 3}\n",
            "line 2: Entry contains unknown field `until`|line 2: .*unknown field `until`",
        ),
        ("rules: [", "line 1: not YAML"),
        ("margins: {brand: {x: 7}}\n", "line 1: Expected `float` <= 1"),
        ("rules:\n  - {name: a, do: exclude, item: [x], position: 1}\n", "only a pin has a position"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse_rules(text, "r.yml")


def test_an_empty_file_has_no_rules() -> None:
    assert len(parse_rules("", "r.yml")) == 0


def test_a_change_is_taken_and_a_wrong_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    path = tmp_path / "rules.yml"
    path.write_text(GOOD)
    follower = RulesFollower(str(path))
    follower.read()
    assert len(follower.rules) == 1

    def replace(text: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        os.replace(fresh, path)

    def refused() -> float:
        return REGISTRY.get_sample_value("liveshelf_scoring_rules_refused_total") or 0.0

    async def until(condition: object) -> None:
        for _ in range(500):
            if condition():  # type: ignore[operator]
                return
            await asyncio.sleep(0.01)
        pytest.fail("not in time")

    async def changes() -> None:
        following = asyncio.create_task(follower.follow())
        before = refused()
        replace(GOOD + "  - {name: b, do: bury, brand: [x]}\n")
        await until(lambda: len(follower.rules) == 2)
        replace("rules: nonsense")
        await until(lambda: refused() == before + 1)
        assert len(follower.rules) == 2
        path.unlink()
        await until(lambda: refused() == before + 2)
        await asyncio.sleep(0.1)  # looked at ten times more, said once
        assert refused() == before + 2
        replace(GOOD)
        await until(lambda: len(follower.rules) == 1)
        following.cancel()

    asyncio.run(changes())
