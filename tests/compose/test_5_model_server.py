"""The image tensorflow/serving as this stack configures it, held to the contract of TensorFlow Serving's API."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from serving import tfserving_pb2 as pb
from tests.compose.stack import Compose, pytest_of

PORT = 28500
COPY = """
import pathlib, shutil
models = pathlib.Path("/data/models/shelf")
shutil.copytree(models / "{stable}", models / ".copy")
(models / ".copy").rename(models / "{canary}")
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that the container sees under the same path, and may read as a user of its own (pytest's own ones are closed)."""
    path = Path(tempfile.mkdtemp(prefix="liveshelf-models-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_the_contract_holds_at_the_containers_address(compose: Compose, shared: Path) -> None:
    """tests/contract against a container of its own: the suite replaces the list of models, and the stack's server has a shelf to serve."""
    image = compose.inspect("model-server")["Config"]["Image"]
    (shared / "models.config").write_text("model_config_list {}\n")
    flags = ("--model_config_file=/models.config", "--file_system_poll_wait_seconds=1")
    guards = ("--read-only", "--tmpfs=/tmp", "--user=10001:10001", "--cap-drop=ALL", "--init", f"--publish=127.0.0.1:{PORT}:8500")
    mounts = (f"--volume={shared}:{shared}:ro", f"--volume={shared}/models.config:/models.config:ro")
    container = compose.docker("run", "--detach", *guards, *mounts, image, *flags).stdout.strip()
    try:
        address = {"LIVESHELF_TFS_ADDRESS": f"127.0.0.1:{PORT}", "LIVESHELF_TFS_MODELS": str(shared)}
        kind = "our own model server stands in for" if "liveshelf" in compose.docker("history", image).stdout else "the stock"
        print(f"\n{kind} {image}:" + pytest_of("tests/contract", address, "-k", "external and model_server"))
    finally:
        compose.docker("rm", "--force", container)


def test_the_stacks_server_serves_two_versions_under_the_labels_that_a_release_moves(compose: Compose) -> None:
    """`liveshelf models promote` with a canary: both versions loaded and labelled over gRPC, and gone back from by rollback."""
    stable = compose.model()
    canary = stable + 1
    compose.run("exec", "-T", "trainer", "python", "-c", COPY.format(stable=stable, canary=canary))
    compose.until(lambda: compose.model() == canary, "a new version takes over by itself")
    compose.liveshelf("scoring", "models", "promote", str(stable))
    compose.liveshelf("scoring", "models", "promote", str(canary), "--canary", "0.5")
    labels = compose.until(lambda: _labels(compose, stable, canary), "both versions answer under their labels")
    print(f"\nlabels: {labels}")
    compose.liveshelf("scoring", "models", "rollback")
    compose.until(lambda: compose.model() == stable, "the stable version answers alone")
    compose.liveshelf("scoring", "models", "pin", "--off")


def _labels(compose: Compose, stable: int, canary: int) -> dict[str, int] | None:
    with grpc.insecure_channel(compose.settings.model_server) as channel:
        ask = channel.unary_unary(
            "/tensorflow.serving.PredictionService/GetModelMetadata",
            request_serializer=pb.GetModelMetadataRequest.SerializeToString,
            response_deserializer=pb.GetModelMetadataResponse.FromString,
        )
        found = {}
        for label in ("stable", "canary"):
            spec = pb.ModelSpec(name="shelf", version_label=label)
            try:
                answer = ask(pb.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"]), timeout=5)
            except grpc.RpcError:
                return None
            found[label] = answer.model_spec.version.value
    return found if found == {"stable": stable, "canary": canary} else None
