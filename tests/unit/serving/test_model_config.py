"""The model config: the shipped file, the default, and what is refused."""

from pathlib import Path

import pytest

from liveshelf.errors import SettingsError
from liveshelf.settings import Settings
from serving.model_server.config import default_config, read_config

SHIPPED = Path(__file__).parents[3] / "deploy/tensorflow-serving/models.config"


def test_shipped_file_serves_what_the_default_serves(tmp_path: Path) -> None:
    (shipped,) = read_config(SHIPPED)
    (default,) = default_config(Settings(data_dir=str(tmp_path)))
    assert (shipped.name, shipped.latest, shipped.all, shipped.specific) == (
        default.name,
        default.latest,
        default.all,
        default.specific,
    )
    assert (shipped.name, shipped.latest, str(shipped.base_path)) == ("shelf", 2, "/models/shelf")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model_config_list { config { name: 'a' base_path: '/a' } }", "neither ModelServerConfig::model_type"),
        (
            "model_config_list { config { name: 'a' base_path: '/a' model_platform: 'onnx' } }",
            "Model a requests unsupported platform onnx",
        ),
        ("model_config_list { config { name: 'a' model_platform: 'tensorflow' } }", "a model needs a name and a base_path"),
        (
            "model_config_list {" + 2 * "config { name: 'a' base_path: '/a' model_platform: 'tensorflow' }" + "}",
            "Illegal to list model a multiple",
        ),
        ("custom_model_config { }", "Only ModelConfigList is currently supported"),
        ("models: 3", 'no field named "models"'),
    ],
)
def test_bad_file_is_refused_with_its_name(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "models.config"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_config(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_config(tmp_path / "absent")
