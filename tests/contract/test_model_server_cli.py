"""`liveshelf model-server` serves any SavedModel, says what is wrong, and ends on Ctrl-C."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

pytest.importorskip("tensorflow")

from liveshelf.cli.main import load_command
from liveshelf.errors import LiveshelfError, NotFoundError, SettingsError
from liveshelf.local.process import OWN_SESSION, dying_with_parent
from liveshelf.settings import Settings
from serving.model_client import ModelClient, ModelUnavailableError
from serving.model_server.tls import read_ssl_config
from tests.conftest import free_port
from tests.contract.test_model_server_ours import get
from tests.contract.tfserving import ROOT, Code, Server, values, wait_until

LAUNCH = """
import sys
from liveshelf.cli.main import load_command
from liveshelf.settings import load_settings
load_command("liveshelf.cli.model_server")(args=sys.argv[1:], obj=load_settings())
"""


@pytest.fixture
def base_path(tmp_path: Path, exported: Callable[[int], Path]) -> Path:
    path = tmp_path / "half plus two"
    path.mkdir()
    (path / "4").symlink_to(exported(4))
    return path


@pytest.fixture
def started(base_path: Path) -> Iterator[Server]:
    port, metrics_port = free_port(), free_port()
    flags = ["--model-base-path", str(base_path), "--model-name", "any", "--port", str(port), "--metrics-port", str(metrics_port)]
    command = dying_with_parent([sys.executable, "-c", LAUNCH, *flags])
    environ = os.environ | {"PYTHONPATH": str(ROOT), "LIVESHELF_DATA_DIR": str(base_path.parent)}
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, **OWN_SESSION)
    server = Server(f"127.0.0.1:{port}", base_path.parent, metrics_port, process)
    try:
        grpc.channel_ready_future(server.channel).result(timeout=60)
        yield server
    finally:
        process.kill()
        process.wait()


def test_over_tls_it_answers_whom_the_authority_signed_and_nobody_else(base_path: Path, tmp_path: Path) -> None:
    """With the keys that deploy/secure/keys.sh makes, and the flags that TensorFlow Serving has."""
    keys = tmp_path / "keys"
    subprocess.run(["sh", str(ROOT / "deploy/secure/keys.sh"), str(keys)], check=True, timeout=60)
    config = tmp_path / "models.config"
    config.write_text(f'model_config_list {{ config {{ name: "any" base_path: "{base_path}" model_platform: "tensorflow" }} }}')
    port, metrics_port = free_port(), free_port()
    flags = [f"--model_config_file={config}", f"--ssl_config_file={keys / 'model-server' / 'ssl.config'}"]
    environ = os.environ | {
        "PYTHONPATH": str(ROOT),
        "LIVESHELF_DATA_DIR": str(tmp_path / "data"),
        "LIVESHELF_MODEL_SERVER_PORT": str(port),
        "LIVESHELF_MODEL_SERVER_METRICS_PORT": str(metrics_port),
    }
    command = dying_with_parent([sys.executable, "-m", "serving.model_server", *flags])
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, **OWN_SESSION)

    async def versions(identity: str, *names: str) -> list[int]:
        files = {f"model_server_tls_{name}": str(keys / identity / f"{name}.pem") for name in names}
        async with ModelClient(Settings(model_server=f"localhost:{port}", model_name="any", **files)) as client:
            return await client.versions()

    def known() -> list[int]:
        try:
            return asyncio.run(versions("scoring", "ca", "cert", "key"))
        except ModelUnavailableError:  # not up yet
            return []

    try:
        wait_until(lambda: known() == [4], "answered with a certificate")
        for names in ((), ("ca",)):
            with pytest.raises(ModelUnavailableError, match="does not answer"):
                asyncio.run(versions("scoring", *names))
    finally:
        process.kill()
        _, log = process.communicate()
    assert b"PRIVATE" not in log


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('server_key: "k"', "server_cert is not there"),
        ('server_key: "k"\nserver_cert: "c"\nclient_verify: true', "custom_ca is not there"),
        ('server_key: "geheim"\nserver_cer: "c"', "line 2: this is not TensorFlow Serving's SSLConfig"),
        (None, "No such file"),
    ],
)
def test_an_unusable_tls_file_is_named_and_its_key_is_not(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "ssl.config"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=said) as caught:
        read_ssl_config(file)
    assert str(file) in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_serves_any_saved_model_until_ctrl_c(started: Server) -> None:
    started.wait_available("any", {4})
    assert values(started.predict("any")) == {"id": [1, 0], "y": [24.0, 4.0]}
    assert '"state": "AVAILABLE"' in get(started, "/v1/models/any")
    process = started.process
    assert process is not None
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0, log
    assert b"Traceback" not in log
    assert b'"event": "stopped"' in log
    with pytest.raises(grpc.RpcError) as caught:
        started.predict("any")
    assert caught.value.code() is Code.UNAVAILABLE


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["--model-base-path", "{absent}"], NotFoundError, "is not a directory"),
        (["--model-base-path", "{model}"], SettingsError, "is a SavedModel itself. Name the directory above it"),
        (["--model-base-path", "{base}", "--model-config-file", "{absent}"], SettingsError, "one of them"),
        (["--model-config-file", "{absent}"], SettingsError, "No such file"),
        (["--model-base-path", "{base}", "--batching-parameters-file", "{absent}"], SettingsError, "No such file"),
    ],
)
def test_what_is_wrong_is_said(base_path: Path, arguments: list[str], error: type[LiveshelfError], says: str) -> None:
    where = {"absent": base_path / "absent", "model": base_path / "4", "base": base_path}
    filled = [argument.format(**where) for argument in arguments]
    with pytest.raises(error, match=says):
        load_command("liveshelf.cli.model_server").main(args=filled, obj=Settings(data_dir=str(base_path)), standalone_mode=False)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_command("liveshelf.cli.model_server").main(args=["--help"], standalone_mode=False) == 0
    shown = capsys.readouterr().out
    for word in (
        "--model-base-path",
        "--batching-parameters-file",
        "PATH/1/saved_model.pb",
        "Ctrl-C",
        "loopback",
        "saved_model_cli show",
    ):
        assert word in shown, word


def test_saved_model_cli_prints_the_signatures_that_are_served(base_path: Path, our_server: Server) -> None:
    """TensorFlow's own tool reads what we serve; and a model that `saved_model_cli` cannot read would be no SavedModel."""
    code = "import sys; from tensorflow.python.tools.saved_model_cli import main; sys.exit(main())"
    command = [
        sys.executable,
        "-c",
        code,
        "show",
        "--dir",
        str(base_path / "4"),
        "--tag_set",
        "serve",
        "--signature_def",
        "serving_default",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    for line in (
        "inputs['item'] tensor_info",
        "inputs['x'] tensor_info",
        "outputs['y'] tensor_info",
        "dtype: DT_STRING",
        "shape: (-1, 3)",
    ):
        assert line in shown
