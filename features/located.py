"""YAML settings files checked by msgspec types, with errors that name file, line, value and what was expected."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import yaml

from liveshelf.errors import SettingsError

Kind = TypeVar("Kind")

_PATH = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$(?P<path>.*)`)?$", re.DOTALL)


def parse_yaml(
    text: str, source: str, kind: type[Kind], explain: Callable[[str, str], str] = lambda what, path: what
) -> tuple[Kind, Any]:
    """(`text` as `kind`, its YAML node, for `line_of`). `explain` may reword what msgspec says is wrong at a path.

    Raises:
        SettingsError: not YAML, or not of that kind.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SettingsError(f"{source}, line {line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{source}: not YAML: {error}") from None
    try:
        return msgspec.convert(data, kind), node
    except msgspec.ValidationError as error:
        match = _PATH.match(str(error))
        assert match is not None
        path = match["path"] or ""
        where = f" (at {path.lstrip('.')})" if path else ""
        what = explain(match["what"].replace("Object", "entry"), path)
        raise SettingsError(f"{source}, line {line_of(node, path)}: {what}{where}") from None


def line_of(node: Any, path: str) -> int:
    """Line, from 1, of msgspec's path (`.features[3].half_life`), or of the nearest thing around it."""
    line = 1
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(node, yaml.SequenceNode) and step.isdigit() and int(step) < len(node.value):
            node = node.value[int(step)]
        elif isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == step]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
            continue
        else:
            break
        line = node.start_mark.line + 1
    return line
