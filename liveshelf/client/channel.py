"""The client's channel: what is sent again by itself, how it reconnects, TLS, and the token."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from liveshelf.errors import SettingsError

# SimilarItems is not logged, so sending it again is free. Recommend and Rank each log an impression as they answer, and a caller
# cannot tell an answer lost on the way from one never made: a retry could log a shelf that nobody saw, which would teach the model
# that its items were shown and ignored. They get gRPC's transparent retry only, which repeats what never reached a server.
# RecordEvents may be sent again because its events carry ids, which `liveshelf.client.requests.prepare_events` gives those without.
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [
                    {"service": "liveshelf.v1.RecommendationService", "method": method}
                    for method in ("SimilarItems", "BatchSimilarItems")
                ],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.01s",  # three attempts fit well inside the 200 ms deadline
                    "maxBackoff": "0.05s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            },
            {
                "name": [{"service": "liveshelf.v1.EventService"}],
                "retryPolicy": {
                    "maxAttempts": 5,  # gRPC's own maximum; a server that says when to come again is obeyed
                    "initialBackoff": "0.2s",
                    "maxBackoff": "3s",  # all together about as long as a broker or a scorer takes to restart
                    "backoffMultiplier": 3,
                    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
                },
            },
        ],
        # When most calls fail, retries stop: a scorer that struggles is not helped by three times the calls.
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
)
OPTIONS = (
    ("grpc.service_config", _SERVICE_CONFIG),
    # gRPC's defaults back off from 1 s to 2 minutes, and every call in between fails at once: after a restart of the scorer a shop
    # would go on without shelves long after it is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A scorer whose machine vanished is noticed after 25 s and not when TCP gives up (15 minutes). The server allows a ping every 10 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", 16 * 2**20),  # what the server sends at most: a batch of 10,000 ranked items
)


@dataclass(frozen=True)
class Tls:
    """PEM files. `ca`: whom to trust, empty for the system's authorities; `cert` and `key`: who we are, where the scorer asks for it."""

    ca: str = ""
    cert: str = ""
    key: str = ""

    @classmethod
    def of_settings(cls, settings: Any, ca: str, cert: str, key: str) -> "Tls | None":
        """What the settings of these names say; None, no TLS, where none is set.

        Raises:
            SettingsError: half a set, which would go without TLS, or without our certificate, and say nothing of it.
        """
        values = [getattr(settings, name) for name in (ca, cert, key)]
        if bool(values[1]) != bool(values[2]):
            raise SettingsError(f"set both {cert} and {key}, or neither: one alone shows nobody who we are")
        if values[1] and not values[0]:
            raise SettingsError(f"{cert} is set but {ca} is not: without TLS nobody sees our certificate. Name whom to trust.")
        return cls(*values) if values[0] else None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises SettingsError: a file cannot be read."""
        return grpc.ssl_channel_credentials(self._read(self.ca), self._read(self.key), self._read(self.cert))

    def _read(self, path: str) -> bytes | None:
        try:
            return Path(path).expanduser().read_bytes() if path else None
        except OSError as error:
            raise SettingsError(f"TLS file {path}: {error}. Name a readable PEM file.") from error
