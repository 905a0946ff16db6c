"""Recent sessions, held in memory: the latest clicks of `clickstream`, read at start and followed. A session counts within a poll.

Unlike the item memory nothing waits for it: a scorer that has read no session yet has one candidate source less.
"""

import asyncio
import threading
from typing import Any, Self

import msgspec
import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition
from prometheus_client import Gauge

from features.catalog import Catalog
from features.events import Event
from features.live_sessions import LiveSessions
from liveshelf.settings import Settings
from serving.feed import FOLLOWING, Feed
from streams.records import decode
from streams.topics import CLICKSTREAM, kafka_config

log = structlog.get_logger()

POLL_S = 0.1
BATCH_MAX = 200
RETRY_S = 1.0
RECORDS_A_SESSION = 8  # read at start for each session that is held; most are shorter

SESSIONS = Gauge("liveshelf_scoring_sessions", "Sessions held in memory, for the candidate source `neighbours`")


class SessionMemory:
    """Keeps `sessions` fresh. The thread waits for Kafka and decodes; sessions are only touched on the event loop."""

    def __init__(self, settings: Settings, catalog: Catalog, loaded: asyncio.Event) -> None:
        """`loaded`: set once the catalog holds its items; clicks on others are passed over."""
        self.sessions = LiveSessions(catalog, settings.scoring_sessions_max)
        self._settings, self._loaded = settings, loaded
        self._feed = Feed(self.sessions.see)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="session-memory", daemon=True)
        SESSIONS.set_function(lambda: len(self.sessions))

    async def __aenter__(self) -> Self:
        self._starting = asyncio.create_task(self._start())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._starting.cancel()
        self._stop.set()
        self._feed.stop()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)

    async def _start(self) -> None:
        await self._loaded.wait()
        self._thread.start()

    def _follow(self) -> None:
        consumer = Consumer(kafka_config(self._settings) | FOLLOWING | {"auto.offset.reset": "earliest", "fetch.wait.max.ms": 100})
        try:
            while not self._stop.is_set() and not self._assigned(consumer):
                self._stop.wait(RETRY_S)
            while not self._stop.is_set():
                messages = [m for m in consumer.consume(BATCH_MAX, POLL_S) if not m.error()]
                if events := [event for m in messages if (event := _decoded(m)) is not None]:
                    self._feed.hand_over(events)
        finally:
            consumer.close()

    def _assigned(self, consumer: Consumer) -> bool:
        """Whether every partition could be assigned, from where as many records are left as fill the memory."""
        try:
            topic = consumer.list_topics(timeout=RETRY_S).topics.get(CLICKSTREAM)
            if topic is None or not topic.partitions:
                return False
            each = RECORDS_A_SESSION * self._settings.scoring_sessions_max // len(topic.partitions)
            starts = []
            for partition in topic.partitions:
                low, high = consumer.get_watermark_offsets(TopicPartition(CLICKSTREAM, partition), timeout=RETRY_S, cached=False)
                starts.append(TopicPartition(CLICKSTREAM, partition, max(low, high - each)))
            consumer.assign(starts)
        except KafkaException as error:
            log.warning("session memory waits for Kafka", error=str(error))
            return False
        return True


def _decoded(message: Any) -> Event | None:
    try:
        return decode(Event, message.value() or b"")
    except msgspec.DecodeError:  # the agents tell of it, and set it aside
        return None
