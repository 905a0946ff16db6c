"""The model servers that the contract suite runs against. (TensorFlow is imported by the first test that needs it.)"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.contract.tfserving import Model, Server


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A directory with the SavedModel of a version; each is made once."""
    made: dict[int, Path] = {}

    def export(version: int) -> Path:
        from tests.contract.tfserving import export_tiny

        if version not in made:
            made[version] = tmp_path_factory.mktemp("exported") / str(version)
            export_tiny(version, made[version])
        return made[version]

    return export


@pytest.fixture(scope="session")
def our_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Server]":
    """Our server as a process of its own, started on the shipped model config with its path moved, and with no model there yet."""
    from tests.contract.tfserving import ROOT, our_process

    data = tmp_path_factory.mktemp("data")
    config = data / "models.config"
    shipped = (ROOT / "deploy/tensorflow-serving/models.config").read_text()
    config.write_text(shipped.replace('"/models/', f'"{data}/'))
    with our_process(data, f"--model_config_file={config}") as server:
        server.entries["shelf"] = {"model_version_policy": {"latest": {"num_versions": 2}}}
        yield server


@pytest.fixture(scope="session", params=["ours", "external"])
def any_server(request: pytest.FixtureRequest) -> "Server":
    from tests.contract.tfserving import Server

    if request.param == "ours":
        return request.getfixturevalue("our_server")  # type: ignore[no-any-return]
    address = os.environ.get("LIVESHELF_TFS_ADDRESS")
    if not address:
        pytest.skip("LIVESHELF_TFS_ADDRESS names no other server")
    shared = os.environ.get("LIVESHELF_TFS_MODELS")
    return Server(address, Path(shared) if shared else None)


@pytest.fixture
def model(any_server: "Server", request: pytest.FixtureRequest, exported: Callable[[int], Path]) -> "Model":
    """A model named after the test, not served yet."""
    from tests.contract.tfserving import Model

    if any_server.models is None:
        pytest.skip("LIVESHELF_TFS_MODELS names no directory that this test shares with the other server")
    name = "".join(c if c.isalnum() else "_" for c in request.node.name)
    return Model(any_server, name, exported)
