"""TLS of the model server, as TensorFlow Serving is told of it: its SSLConfig as text, with the PEM texts in it.

As tensorflow_serving/model_servers/server.cc, BuildServerCredentialsFromSSLConfigFile. `deploy/secure/keys.sh` writes such a file.
"""

from pathlib import Path

import grpc
from google.protobuf import text_format

from liveshelf.errors import SettingsError
from serving import tfserving_pb2 as pb


def read_ssl_config(file: Path) -> grpc.ServerCredentials:
    """Read `--ssl_config_file`. With `client_verify` a caller needs a certificate that `custom_ca` signed.

    Raises:
        SettingsError: unreadable, no SSLConfig, or without what a server must have. The message quotes nothing of the file, which holds a key.
    """
    try:
        config = text_format.Parse(file.read_text(), pb.SSLConfig())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--ssl_config_file={file}: {error}") from error
    except text_format.ParseError as error:
        where = f"line {error.GetLine()}: " if error.GetLine() else ""
        raise SettingsError(
            f"--ssl_config_file={file}: {where}this is not TensorFlow Serving's SSLConfig as text: server_key, server_cert, custom_ca, client_verify."
        ) from None
    wanted = ["server_key", "server_cert", *(["custom_ca"] if config.client_verify else [])]
    missing = [name for name in wanted if not getattr(config, name)]
    if missing:
        raise SettingsError(f"--ssl_config_file={file}: {' and '.join(missing)} is not there. It holds the text of a PEM file.")
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )
