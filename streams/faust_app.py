"""How our Faust workers are set up, and how they are run."""

import asyncio
import gc
import ssl
import sys
from collections.abc import Callable

import aiokafka
import faust
from faust.auth import SASLCredentials, SSLCredentials
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP

from liveshelf.errors import ConflictError
from liveshelf.settings import Settings
from streams.topics import missing_topics

SWITCH_S = 0.0005
FETCH_WAIT_MS = 50
FETCH_BYTES_MAX = 32_768  # of a partition: what was fetched is worked through before newer records of other topics are seen
TOPICS_S = 5.0  # how often a worker that was given no partition of a topic looks whether there is one


class _Thread(AIOKafkaConsumerThread):
    """Fetches that wait FETCH_WAIT_MS for records, and not Faust's fixed 1.5 s.

    aiokafka has one fetch under way to a broker, and leaves out of it the partitions whose records are not all handed on yet. When all of
    `clickstream` were left out, its next records came after the wait for a quiet topic: every 1.5 s, at 1,000 events/s.
    """

    def _create_worker_consumer(self, transport: Transport) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        assert consumer._fetch_max_wait_ms, "aiokafka's setting of that name"
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer


class _Consumer(Consumer):
    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)


def create_app(name: str, settings: Settings, *topics: str) -> faust.App:
    """A Faust app without web server, tables or leader; consumer group `name`. It ends when one of the `topics` that it reads is gone."""
    # Faust's default of 60 s leaves a dead worker's partitions unread for a minute; with 10 s another takes over in 11.4 s (measured).
    session_s = 10
    datadir = settings.data_path / "faust" / name
    datadir.mkdir(parents=True, exist_ok=True)
    app = faust.App(
        name,
        broker=[f"kafka://{address}" for address in settings.kafka_address.split(",")],
        broker_credentials=_credentials(settings),
        broker_session_timeout=session_s,
        broker_heartbeat_interval=session_s / 3,
        broker_commit_interval=1.0,  # redelivery after a crash is a no-op by offset: a second of it costs little
        consumer_max_fetch_size=FETCH_BYTES_MAX,
        consumer_auto_offset_reset="earliest",
        value_serializer="raw",
        key_serializer="raw",
        store="memory://",
        topic_allow_declare=False,  # `streams.topics` makes them, with explicit partitions
        topic_disable_leader=True,
        web_enabled=False,  # it would bind every interface
        stream_wait_empty=False,
        datadir=datadir,
        autodiscover=False,
    )

    app.transport.Consumer = _Consumer

    # Faust goes on without a topic that was deleted, and does not see it when it is made anew.
    @app.timer(interval=TOPICS_S)
    async def look_for_topics() -> None:
        without = set(topics) - {tp.topic for tp in app.consumer.assignment()}  # or there are more workers than partitions
        if without and (gone := without & await asyncio.to_thread(missing_topics, settings)):
            raise ConflictError(
                f"the topic {' and '.join(sorted(gone))} is gone: was it deleted? Start this part again when there is one: the agents make "
                "topics anew, and fold them into an empty store"
            )

    return app


def end_of(app: faust.App, tp: TP) -> int | None:
    """The next offset to be written in `tp`; None while it is not known, or not this worker's."""
    try:
        end: int | None = app.consumer.highwater(tp)
    except AssertionError:  # aiokafka's, for a partition that its thread has just lost in a rebalance
        return None
    return end


def run_worker(create: Callable[[], faust.App]) -> None:
    """Run one app on uvloop until SIGTERM or SIGINT."""
    import uvloop

    uvloop.install()  # a worker on asyncio's own loop is 30 % slower
    app = create()
    # Rows in memory are many and hold no cycles: to look through them all for some took 8 of 66 µs an event.
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)
    # The thread that folds and stores waits for the interpreter after every answer of the store: with Python's own 5 ms an event's row took
    # 60 ms at the median, with this 33 (1,000 events/s, busy).
    sys.setswitchinterval(SWITCH_S)
    worker = faust.Worker(app, loglevel="warning", redirect_stdouts=False, quiet=True)
    worker.spinner = None  # its cursor codes do not belong into a log file
    worker.execute_from_commandline()


def _credentials(settings: Settings) -> SASLCredentials | SSLCredentials | None:
    context = None
    if "SSL" in settings.kafka_security_protocol:
        context = ssl.create_default_context(cafile=settings.kafka_ssl_ca or None)
        if settings.kafka_ssl_cert:
            context.load_cert_chain(settings.kafka_ssl_cert, settings.kafka_ssl_key)
    if settings.kafka_sasl_mechanism:
        return SASLCredentials(
            mechanism=settings.kafka_sasl_mechanism,
            username=settings.kafka_sasl_username,
            password=settings.kafka_sasl_password,
            ssl_context=context,
        )
    return SSLCredentials(context) if context else None
