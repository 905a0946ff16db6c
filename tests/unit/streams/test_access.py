"""Who may do what in Kafka: the table that `python -m streams.access` grants. (That Kafka keeps to it is shown by tests/compose.)"""

import re
from pathlib import Path

import pytest
from confluent_kafka.admin import AclOperation, AclPermissionType, ResourcePatternType, ResourceType

from liveshelf.errors import SettingsError
from liveshelf.settings import Settings
from streams.access import ACCESS, bindings, grant
from streams.topics import CLICKSTREAM, topics

ROOT = Path(__file__).parents[3]


def test_nobody_may_more_than_describe_read_and_write_what_is_named() -> None:
    """No wildcard, no prefix, no cluster right: a role cannot make, delete or reconfigure a topic, nor see who else may what."""
    for binding in bindings(Settings()):
        assert binding.permission_type is AclPermissionType.ALLOW
        assert binding.resource_pattern_type is ResourcePatternType.LITERAL
        assert binding.name != "*"
        assert (binding.restype, binding.operation) in {
            (ResourceType.TOPIC, AclOperation.DESCRIBE),
            (ResourceType.TOPIC, AclOperation.READ),
            (ResourceType.TOPIC, AclOperation.WRITE),
            (ResourceType.GROUP, AclOperation.READ),
        }


def test_every_role_sees_every_topic_and_each_topic_has_a_writer() -> None:
    """Roles look for missing topics by listing them all: one that they may not see would look missing."""
    names = {topic.name for topic in topics(Settings())}
    for role in ACCESS:
        seen = {b.name for b in bindings(Settings()) if b.principal == f"User:{role}" and b.operation is AclOperation.DESCRIBE}
        assert seen == names
    assert {name for access in ACCESS.values() for name in access.writes} == names
    assert {name for access in ACCESS.values() for name in access.reads} == names - {"clickstream-rejected"}


def test_groups_are_those_of_the_code() -> None:
    """Every consumer group that a role's code names is granted, and no other."""
    named = set()
    for file in (file for folder in ("streams", "serving", "trainer") for file in (ROOT / folder).rglob("*.py")):
        if file.name != "access.py":
            named |= set(re.findall(r'"(liveshelf-[a-z-]*[a-z])"', file.read_text()))
    services = {"liveshelf-collector", "liveshelf-agents", "liveshelf-scoring"}  # of traces
    others = {*services, "liveshelf-freshness-probe"}  # a synthetic shopper
    assert named - others == {name for access in ACCESS.values() for name in access.groups}


def test_a_short_password_is_refused_before_kafka_is_asked() -> None:
    good = "x" * 16
    with pytest.raises(SettingsError, match=r"16 characters or more for joiner, trainer: deploy/secure/keys.sh"):
        grant(Settings(kafka="127.0.0.1:1"), dict.fromkeys(ACCESS, good) | {"joiner": "short", "trainer": ""})


def test_handovers_are_why_agents_write_events() -> None:
    assert CLICKSTREAM in ACCESS["agents"].writes
