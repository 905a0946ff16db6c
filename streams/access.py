"""Who may do what in Kafka: one user a role of ours, with the least that it needs. `python -m streams.access FILE` makes it so.

For a Kafka with SCRAM-SHA-512 and an authorizer that refuses what nothing allows (`allow.everyone.if.no.acl.found` unset). The settings'
own identity must be a super user there. FILE is TOML, role → password. Topics that are missing are made too: no role may.
"""

import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from liveshelf.errors import LiveshelfError, SettingsError, UnavailableError
from liveshelf.settings import Settings, load_settings
from streams.topics import (
    CATALOG,
    CLICKSTREAM,
    CLICKSTREAM_REJECTED,
    IMPRESSIONS,
    ITEM_UPDATES,
    MODEL_RELEASES,
    TRAINING_EXAMPLES,
    ensure_topics,
    kafka_config,
    topics,
)

TIMEOUT_S = 30.0
ITERATIONS = 4096  # of SCRAM, Kafka's own default; the passwords are random, not guessed
PASSWORD_CHARACTERS_MIN = 16


class Access(NamedTuple):
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    groups: tuple[str, ...]
    """Consumer groups; librdkafka asks for the group's coordinator even where none is joined."""


ACCESS = {
    "collector": Access((), (CLICKSTREAM, CLICKSTREAM_REJECTED, CATALOG), ()),
    "agents": Access(
        (CLICKSTREAM, CATALOG),
        (ITEM_UPDATES, CLICKSTREAM_REJECTED, CLICKSTREAM),  # clickstream: what passes from a browser to the person who signed in
        ("liveshelf-features", "liveshelf-partition-log"),
    ),
    "joiner": Access(
        (CLICKSTREAM, IMPRESSIONS, TRAINING_EXAMPLES), (TRAINING_EXAMPLES,), ("liveshelf-joiner", "liveshelf-partition-log")
    ),
    "scoring": Access(
        (CATALOG, ITEM_UPDATES, CLICKSTREAM), (IMPRESSIONS, CLICKSTREAM, CLICKSTREAM_REJECTED), ("liveshelf-scorer",)
    ),
    "trainer": Access((TRAINING_EXAMPLES, CLICKSTREAM, CATALOG, MODEL_RELEASES), (MODEL_RELEASES,), ("liveshelf-trainer",)),
}
"""By role, which is the name of its user."""


def bindings(settings: Settings) -> list[AclBinding]:
    """All that is allowed. Every role may see that each topic is there, and how many partitions it has."""
    found = []
    for role, access in ACCESS.items():
        wanted = [(ResourceType.TOPIC, topic.name, AclOperation.DESCRIBE) for topic in topics(settings)]
        wanted += [(ResourceType.TOPIC, name, AclOperation.READ) for name in access.reads]
        wanted += [(ResourceType.TOPIC, name, AclOperation.WRITE) for name in access.writes]
        wanted += [(ResourceType.GROUP, name, AclOperation.READ) for name in access.groups]
        for kind, name, operation in wanted:
            found.append(
                AclBinding(kind, name, ResourcePatternType.LITERAL, f"User:{role}", "*", operation, AclPermissionType.ALLOW)
            )
    return found


def grant(settings: Settings, passwords: dict[str, str]) -> None:
    """Set each role's password, make the missing topics, and leave our users exactly the rights of `bindings`.

    Raises:
        SettingsError: a role has no password, or a short one.
        UnavailableError: Kafka does not answer, or refuses: are we a super user there?
        ConflictError: a topic exists with another partition count.
    """
    if lacking := [role for role in ACCESS if len(passwords.get(role, "")) < PASSWORD_CHARACTERS_MIN]:
        raise SettingsError(
            f"no password of {PASSWORD_CHARACTERS_MIN} characters or more for {', '.join(lacking)}: deploy/secure/keys.sh makes them"
        )
    ensure_topics(settings, TIMEOUT_S)
    admin = AdminClient(kafka_config(settings) | {"log_level": 2})
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, ITERATIONS)
    _settled(
        admin.alter_user_scram_credentials([UserScramCredentialUpsertion(r, info, passwords[r].encode()) for r in ACCESS]), settings
    )
    wanted = bindings(settings)
    ours = [
        AclBindingFilter(
            ResourceType.ANY, None, ResourcePatternType.ANY, f"User:{role}", None, AclOperation.ANY, AclPermissionType.ANY
        )
        for role in ACCESS
    ]
    held = [binding for one in ours for binding in _settled({"acls": admin.describe_acls(one)}, settings)[0]]
    stale = [
        AclBindingFilter(b.restype, b.name, b.resource_pattern_type, b.principal, b.host, b.operation, b.permission_type)
        for b in held
        if b not in wanted
    ]
    if stale:
        _settled(admin.delete_acls(stale), settings)
    if missing := [b for b in wanted if b not in held]:
        _settled(admin.create_acls(missing), settings)


def _settled(futures: dict[Any, Any], settings: Settings) -> list[Any]:
    try:
        return [future.result(timeout=TIMEOUT_S) for future in futures.values()]
    except (KafkaException, TimeoutError) as error:
        raise UnavailableError(
            f"Kafka at {settings.kafka_address} did not take users and rights: {error}. Does it hold our identity for a super user?"
        ) from error


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python -m streams.access FILE, a TOML file of role = password", file=sys.stderr)  # noqa: T201
        return 2
    try:
        grant(load_settings(), tomllib.loads(Path(sys.argv[1]).read_text()))
    except (OSError, tomllib.TOMLDecodeError, LiveshelfError) as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(f"{len(ACCESS)} users with {len(bindings(load_settings()))} rights")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
