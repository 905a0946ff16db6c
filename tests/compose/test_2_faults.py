"""Each service of the loop killed, paused and cut off in turn, under traffic: the loop recovers, and nothing accepted is lost."""

import json
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple

from features.events import Event
from features.feature_set import declared_set
from liveshelf.client import Client
from liveshelf.errors import LiveshelfError
from streams.records import decode
from streams.topics import CLICKSTREAM
from tests.chaos.rows import undisturbed
from tests.compose.stack import LOOP, Compose
from tests.compose.traffic import Traffic
from tests.conftest import read_all

HOLD_S = 4.0
"""How long a service stays paused or cut off: longer than every timeout of a request, shorter than Kafka's session of 10 s and a quarter more."""
RECOVERY_S_MAX = 90.0


class Fault(NamedTuple):
    name: str
    requests: int
    failed: int
    degraded: int
    accepted: list[str]
    sent_again: int
    recovered_s: float
    reasons: list[str]


def test_every_fault_is_survived(compose: Compose) -> None:
    """One table, and at its end the log: each accepted event once in the features, none missing, every row what the log says."""
    faults = []
    for service in LOOP:
        for kind in ("kill", "pause", "disconnect"):
            faults.append(_broken(compose, service, kind))
    compose.until(lambda: not compose.unhealthy(), "every role is ready")
    log = read_all(compose.settings, CLICKSTREAM)
    logged = {decode(Event, value).event_id for _, _, _, value in log}
    doubled = set(undisturbed(log, declared_set(compose.settings)).doubled)
    print(
        f"\n{'fault':<24}{'requests':>9}{'failed':>8}{'degraded':>9}{'events':>8}{'re-sent':>8}{'lost':>6}{'doubled':>8}{'recovered s':>12}"
    )
    for fault in faults:
        lost = [e for e in fault.accepted if e not in logged]
        twice = [e for e in fault.accepted if e in doubled]
        print(
            f"{fault.name:<24}{fault.requests:>9}{fault.failed:>8}{fault.degraded:>9}{len(fault.accepted):>8}{fault.sent_again:>8}"
            f"{len(lost):>6}{len(twice):>8}{fault.recovered_s:>12.1f}"
        )
    verified = compose.liveshelf("agents", "features", "verify")
    print(json.dumps({name: verified[name] for name in ("rows", "different", "events", "behind")}))
    for fault in faults:
        assert not [e for e in fault.accepted if e not in logged], fault.name
        assert not [e for e in fault.accepted if e in doubled], fault.name
        assert not fault.failed or fault.name.endswith(" scoring"), (fault.name, fault.reasons[:3])
    assert verified["different"] == 0, verified["differences"][:3]


def _broken(compose: Compose, service: str, kind: str) -> Fault:
    undo: dict[str, Callable[[str], None]] = {"pause": compose.unpause, "disconnect": compose.connect}
    with Traffic(compose.settings) as traffic:
        compose.until(lambda: traffic.accepted and traffic.shelves > 1, "shoppers are about")
        getattr(compose, kind)(service)
        if kind in undo:
            time.sleep(HOLD_S)
            undo[kind](service)
        began = time.monotonic()
        compose.until(lambda: _goes_round(compose), f"the loop goes on after {kind} {service}", RECOVERY_S_MAX)
        recovered_s = time.monotonic() - began
    print(f"  {kind} {service}: {recovered_s:.1f} s", flush=True)
    return Fault(
        f"{kind} {service}",
        traffic.shelves,
        len(traffic.failed),
        traffic.degraded,
        traffic.accepted,
        traffic.refused,
        recovered_s,
        traffic.failed,
    )


def _goes_round(compose: Compose) -> bool:
    """Every role is ready, and a new shopper's event is in a shelf that the model made."""
    if compose.unhealthy():
        return False
    client_id = f"after-{uuid.uuid4().hex}"
    if compose.post({"client_id": client_id, "name": "view_item", "items": [{"item_id": "sku-00001"}]}).status_code != 202:
        return False
    deadline = time.monotonic() + 5
    with Client(compose.settings.scoring_address, deadline_ms=2_000) as client:
        while time.monotonic() < deadline:
            try:
                shelf = client.recommend(client_id=client_id)
                if shelf.features_offset >= 0 and not shelf.degraded:
                    return True
            except LiveshelfError:
                pass
            time.sleep(0.1)
    return False
