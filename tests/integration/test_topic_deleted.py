"""Somebody deletes the clickstream under a running agent, and makes it anew."""

from pathlib import Path

import msgspec
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from redis import Redis

from features.declarations import read_declarations
from features.events import Event, EventItem
from features.feature_set import FeatureSet
from features.rows import ShopperRow
from features.store import FeatureRows
from liveshelf.settings import Settings
from streams.records import encode
from streams.topics import CLICKSTREAM, PARTITIONER, kafka_config
from tests.conftest import broker
from tests.integration.test_agents import DEADLINE_S, ready, role, until

FEATURES = FeatureSet(read_declarations(None))
SHOPPERS = [f"s{n}" for n in range(8)]  # in every partition some


def view(settings: Settings, item: str) -> None:
    """Every shopper looks at `item`."""
    producer = Producer(kafka_config(settings) | {"partitioner": PARTITIONER, "enable.idempotence": True})
    for n, shopper in enumerate(SHOPPERS):
        event = Event(
            event_id=f"{item}{n}",
            event_name="view_item",
            shopper=shopper,
            time_ms=1_700_000_000_000 + n,
            items=(EventItem(item_id=item),),
        )
        producer.produce(CLICKSTREAM, encode(event), shopper.encode())
    assert producer.flush(30) == 0


def test_a_deleted_clickstream_harms_no_row_and_a_new_one_is_not_mistaken_for_it(store: str, tmp_path: Path) -> None:
    """Agent and joiner end and say why. The agent, started again, makes the topic, whose offsets begin at 0, where the store takes them for folded: it
    refuses, until it is given a store that belongs to this log."""
    log = tmp_path / "agents.log"
    with broker(tmp_path) as broken:
        settings = msgspec.structs.replace(broken, store=store)
        rows = FeatureRows(settings, 5.0)
        admin = AdminClient(kafka_config(settings))

        def stored() -> dict[str, ShopperRow]:
            return rows.read_shoppers(SHOPPERS, FEATURES)

        def looked_at(*items: str) -> bool:
            return [row.recent_items for row in stored().values()] == [list(items)] * len(SHOPPERS)

        joiner_log = tmp_path / "joiner.log"
        with role(settings, "streams.agents", log) as worker, role(settings, "streams.joiner", joiner_log) as joiner:
            until(lambda: ready(settings.agents_metrics_port), "the agent is ready", worker, log)
            until(lambda: ready(settings.joiner_metrics_port), "the joiner is ready", joiner, joiner_log)
            for item in ("a", "b", "c"):
                view(settings, item)
            until(lambda: looked_at("c", "b", "a"), "rows are stored", worker, log)
            before = stored()
            admin.delete_topics([CLICKSTREAM], operation_timeout=30)[CLICKSTREAM].result(30)
            for part, said in ((worker, log), (joiner, joiner_log)):
                assert part.wait(DEADLINE_S) != 0
                assert "the topic clickstream is gone: was it deleted?" in said.read_text()

        with role(settings, "streams.agents", log) as worker:
            until(lambda: CLICKSTREAM in admin.list_topics(timeout=10).topics, "the topic is made anew", worker, log)
            view(settings, "d")
            until(lambda: "was the topic made anew?" in log.read_text(), "the agent refuses the new topic", worker, log)
            assert stored() == before

            host, _, port = store.partition(":")
            Redis(host, int(port)).flushall()
            until(lambda: looked_at("d"), "the new topic is folded", worker, log)
            until(lambda: ready(settings.agents_metrics_port), "the agent is ready again", worker, log)
