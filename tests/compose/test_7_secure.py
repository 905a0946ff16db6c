"""deploy/secure: the same stack shut inside as well. Every role can do its work, and is refused all that is not its work."""

import asyncio
import json
import re
import ssl
import subprocess
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.retry import Retry

from liveshelf.client import Client, Tls
from liveshelf.errors import LiveshelfError
from liveshelf.settings import Settings
from serving.model_client import ModelClient, ModelUnavailableError
from streams.topics import (
    CATALOG,
    CLICKSTREAM,
    CLICKSTREAM_REJECTED,
    IMPRESSIONS,
    ITEM_UPDATES,
    MODEL_RELEASES,
    TRAINING_EXAMPLES,
    topics,
)
from tests.compose.stack import LOOP, ROOT, Compose

# Said here once more, and not taken from streams/access.py: what each role is for, as ARCHITECTURE.md draws it.
READS = {
    "collector": set(),
    "agents": {CLICKSTREAM, CATALOG},
    "joiner": {CLICKSTREAM, IMPRESSIONS, TRAINING_EXAMPLES},
    "scoring": {CATALOG, ITEM_UPDATES, CLICKSTREAM},
    "trainer": {TRAINING_EXAMPLES, CLICKSTREAM, CATALOG, MODEL_RELEASES},
}
WRITES = {
    "collector": {CLICKSTREAM, CLICKSTREAM_REJECTED, CATALOG},
    "agents": {CLICKSTREAM, CLICKSTREAM_REJECTED, ITEM_UPDATES},
    "joiner": {TRAINING_EXAMPLES},
    "scoring": {CLICKSTREAM, CLICKSTREAM_REJECTED, IMPRESSIONS},
    "trainer": {MODEL_RELEASES},
}
GROUPS = {
    "agents": "liveshelf-features",
    "joiner": "liveshelf-joiner",
    "scoring": "liveshelf-scorer",
    "trainer": "liveshelf-trainer",
    "collector": "liveshelf-features",  # it has none: another's
}
NAMES = [topic.name for topic in topics(Settings())]
TIMEOUT_S = 10.0


@pytest.fixture(scope="module")
def secure(compose: Compose, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """The open stack gives way to the secure one, which starts empty."""
    compose.down()
    keys = tmp_path_factory.mktemp("secure") / "keys"
    subprocess.run(["sh", str(ROOT / "deploy/secure/keys.sh"), str(keys)], check=True, timeout=60)
    stack = Compose(COMPOSE_FILE="docker-compose.yml:deploy/secure/compose.yml", LIVESHELF_SECRETS=str(keys))
    try:
        print(f"\nsecure: up and healthy after {stack.up():.1f} s")
        print("  " + stack.run("logs", "--no-log-prefix", "access").stdout.strip())
        stack.seed()
        yield stack
    finally:
        stack.keep_logs()
        stack.down()


def folder(stack: Compose, name: str) -> Path:
    return Path(stack.variables["LIVESHELF_SECRETS"]) / name


def said(stack: Compose, role: str) -> dict[str, Any]:
    """What the settings file of a role says, with paths as they are on this side."""
    text = (folder(stack, role) / "settings.toml").read_text().replace("/run/secrets", str(folder(stack, role)))
    return tomllib.loads(text)


def kafka(stack: Compose, role: str) -> dict[str, Any]:
    """librdkafka's properties of a role, from outside."""
    from streams.topics import kafka_config

    return kafka_config(Settings(kafka=stack.settings.kafka, **said(stack, role))) | {"log_level": 0}


def store(stack: Compose, role: str) -> "Redis[bytes]":
    options = dict(option.split("=", 1) for option in said(stack, role)["store"].split(",")[1:])
    user, password, ca = options["username"], options["password"], options["ssl_ca_certs"]
    return Redis(port=16379, username=user, password=password, ssl=True, ssl_ca_certs=ca, socket_timeout=TIMEOUT_S)


def scorer(tls: Tls | None) -> Client:
    return Client("localhost:18090", deadline_ms=3_000, tls=tls)


def shop(stack: Compose) -> Tls:
    return Tls(*(str(folder(stack, "shop") / name) for name in ("ca.pem", "cert.pem", "key.pem")))


def may_write(config: dict[str, Any], topic: str) -> bool:
    outcome: list[Any] = []
    producer = Producer(config | {"message.timeout.ms": 8_000})
    producer.produce(
        topic, b'{"written by": "test_7_secure"}', b"test_7_secure", on_delivery=lambda error, _: outcome.append(error)
    )
    producer.flush(TIMEOUT_S)
    assert outcome, f"{topic}: no answer"
    assert outcome[0] is None or outcome[0].name() == "TOPIC_AUTHORIZATION_FAILED", outcome
    return outcome[0] is None


def may_read(config: dict[str, Any], topic: str, group: str) -> bool:
    consumer = Consumer(config | {"group.id": group, "auto.offset.reset": "earliest", "enable.partition.eof": True})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        message = consumer.poll(TIMEOUT_S)
        assert message is not None, f"{topic}: no answer"
        error = message.error()
        if error is None or error.name() == "_PARTITION_EOF":
            return True
        assert error.name() in ("TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED"), error
        return False
    finally:
        consumer.close()


def test_the_loop_goes_round(secure: Compose) -> None:
    """Event → changed shelf → impression → click → example → a training step, with every role held to its rights."""
    client_id = f"secure-{uuid.uuid4().hex}"
    with scorer(shop(secure)) as client:
        before = client.recommend(client_id=client_id)
        assert not before.degraded, before.degraded_reason
        seen = [{"item_id": before.items[-1].item_id}]
        assert secure.post({"client_id": client_id, "name": "view_item", "items": seen}).status_code == 202
        after = secure.until(
            lambda: (s := client.recommend(client_id=client_id)).features_offset > before.features_offset and s,
            "the event is in the shelf",
        )
    assert secure.post({"client_id": client_id, "name": "no_such_event"}).status_code == 400
    clicked = [{"item_id": after.items[3].item_id}]
    assert (
        secure.post({"client_id": client_id, "name": "select_item", "request_id": after.request_id, "items": clicked}).status_code
        == 202
    )
    secure.until(lambda: secure.step()["consumed"], "examples reach the trainer")
    rejected = secure.get("18080/metrics").text
    assert "liveshelf_collector_rejects_unrecorded_total 0.0" in rejected


def test_each_role_may_read_and_write_its_topics_and_no_other(secure: Compose) -> None:
    """Asked of Kafka as the role, topic by topic; the table is printed. What is written is no record of ours, which no reader may mind."""
    print(f"\n{'':<12}" + "".join(f"{name:<22}" for name in NAMES))
    wrong = []
    for role in READS:
        config, cells = kafka(secure, role), []
        for name in NAMES:
            wrote = may_write(config, name)
            read = may_read(config, name, GROUPS[role])
            cells.append(" ".join(word for word, true in (("reads", read), ("writes", wrote)) if true) or "refused")
            if (read, wrote) != (name in READS[role], name in WRITES[role]):
                wrong.append((role, name, cells[-1]))
        print(f"{role:<12}" + "".join(f"{cell:<22}" for cell in cells))
    assert not wrong


def test_no_role_may_administer(secure: Compose) -> None:
    """Topics are neither made nor deleted, no right and no password is given."""
    right = AclBinding(
        ResourceType.TOPIC,
        IMPRESSIONS,
        ResourcePatternType.LITERAL,
        "User:collector",
        "*",
        AclOperation.ALL,
        AclPermissionType.ALLOW,
    )
    password = UserScramCredentialUpsertion(
        "theirs", ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096), b"of their own choice"
    )
    for role in READS:
        admin = AdminClient(kafka(secure, role))
        asked = (
            admin.create_topics([NewTopic("theirs", 1, 1)])["theirs"],
            admin.delete_topics([CLICKSTREAM])[CLICKSTREAM],
            admin.create_acls([right])[right],
            admin.alter_user_scram_credentials([password])["theirs"],
        )
        for future in asked:
            with pytest.raises(KafkaException, match="AUTHORIZATION_FAILED"):
                future.result(timeout=TIMEOUT_S)


@pytest.mark.parametrize("changes", [{"sasl.password": "guessed"}, {"sasl.username": "nobody"}, {"security.protocol": "PLAINTEXT"}])
def test_kafka_lets_nobody_else_in(secure: Compose, changes: dict[str, str]) -> None:
    with pytest.raises(KafkaException):
        AdminClient(kafka(secure, "agents") | changes).list_topics(timeout=3)


def test_the_store_lets_the_agents_write_and_scoring_read(secure: Compose) -> None:
    agents, scoring = store(secure, "agents"), store(secure, "scoring")
    assert agents.hset("test_7_secure", "a", "b") == 1
    assert scoring.hget("test_7_secure", "a") == b"b"
    for refused in (
        lambda: scoring.hset("test_7_secure", "a", "c"),
        lambda: scoring.eval("return 1", 0),
        lambda: scoring.flushall(),
        lambda: agents.flushall(),
        lambda: agents.config_get("*"),
        lambda: agents.execute_command("ACL", "LIST"),
        lambda: agents.keys("*"),
    ):
        with pytest.raises(NoPermissionError):
            refused()
    agents.delete("test_7_secure")
    once = Retry(NoBackoff(), 0)
    for client in (Redis(port=16379, retry=once), Redis(port=16379, retry=once, ssl=True, ssl_cert_reqs="none")):
        with pytest.raises((AuthenticationError, RedisError)):
            client.ping()


def test_scoring_asks_its_callers_for_a_certificate(secure: Compose) -> None:
    """Over gRPC and HTTP: served with the shop's certificate, refused without one and without TLS."""
    tls = shop(secure)
    for unknown in (None, Tls(tls.ca)):
        with scorer(unknown) as client, pytest.raises(LiveshelfError):
            client.recommend(client_id="somebody")
    body = {"shopper": {"client_id": "somebody"}, "count": 3}
    url = "https://localhost:18092/v1/recommend"
    stranger, known = ssl.create_default_context(cafile=tls.ca), ssl.create_default_context(cafile=tls.ca)
    known.load_cert_chain(tls.cert, tls.key)
    answer = httpx.post(url, json=body, verify=known, timeout=10, trust_env=False)
    assert len(answer.json()["items"]) == 3
    with pytest.raises(httpx.HTTPError):
        httpx.post(url, json=body, verify=stranger, timeout=10, trust_env=False)


def test_the_model_server_asks_its_callers_for_a_certificate(secure: Compose) -> None:
    """Scoring and trainer have one; a plain caller, and one who only knows the authority, get no answer."""

    async def versions(**tls: str) -> list[int]:
        async with ModelClient(Settings(model_server="localhost:18500", **tls)) as client:
            return await client.versions()

    for role in ("scoring", "trainer"):
        identity = {name: value for name, value in said(secure, role).items() if name.startswith("model_server_tls_")}
        assert secure.model() in asyncio.run(versions(**identity)), role
    for stranger in ({}, {"model_server_tls_ca": identity["model_server_tls_ca"]}):
        with pytest.raises(ModelUnavailableError):
            asyncio.run(versions(**stranger))


def test_our_own_callers_show_the_shops_certificate(secure: Compose) -> None:
    """`liveshelf recommend` in the container of the simulated shoppers, which reads the shop's folder."""
    words = ("run", "--rm", "--no-deps", "-T", "load", "liveshelf", "recommend", "--client", "somebody", "-n", "3", "--json")
    answer = secure.run("--profile", "load", *words)
    assert len(json.loads(answer.stdout.splitlines()[-1])["items"]) == 3


def test_store_and_model_server_answer_only_those_who_need_them(secure: Compose) -> None:
    """From inside the containers: who can look the name up and connect."""
    ask = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"
    reached = {
        (role, host)
        for role in ("collector", "agents", "joiner", "scoring", "trainer")
        for host, port in (("store", "6379"), ("model-server", "8500"))
        if secure.run("exec", "-T", role, "python", "-c", ask, host, port, check=False).returncode == 0
    }
    assert reached == {("agents", "store"), ("scoring", "store"), ("scoring", "model-server"), ("trainer", "model-server")}


def test_no_secret_is_in_an_environment_an_image_or_a_log(secure: Compose) -> None:
    """None of the passwords, and no private key."""
    files = [file for file in folder(secure, ".").rglob("*") if file.is_file()]
    secrets = {word for file in files for word in re.findall(r"\b[0-9a-f]{48}\b", file.read_text())}
    assert len(secrets) == 8  # five users of Kafka, three of the store
    described = {service: secure.docker("inspect", secure.container(service)).stdout for service in (*LOOP, "access")}
    logs = secure.run("logs").stdout
    for where, text in described.items() | {("the logs", logs)}:
        assert not [one for one in secrets if one in text], where
        assert "PRIVATE KEY" not in text, where
    assert folder(secure, ".").stat().st_mode & 0o077 == 0
