"""Kafka's jars: only bytes with the locked hash get onto the class path, and a cache that has them all needs no network."""

import functools
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveshelf.errors import CorruptError, UnavailableError
from liveshelf.local import kafka
from liveshelf.settings import Settings
from tests.conftest import local_settings

NOBODY = "http://127.0.0.1:9"

POM = """<project><modelVersion>4.0.0</modelVersion>
<groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>{dependencies}</project>"""
DEPENDENCY = """<dependencies><dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>
</dependency></dependencies>"""


@pytest.fixture
def forged_repository(tmp_path: Path) -> Iterator[str]:
    """A Maven repository whose Kafka depends on log4j-core alone, and whose jars are not what they are called."""
    root = tmp_path / "repository"

    def publish(group: str, artifact: str, version: str, dependencies: str = "") -> None:
        folder = root / group.replace(".", "/") / artifact / version
        folder.mkdir(parents=True)
        pom = POM.format(group=group, artifact=artifact, version=version, dependencies=dependencies)
        (folder / f"{artifact}-{version}.pom").write_text(pom)
        (folder / f"{artifact}-{version}.jar").write_text("forged")

    log4j = {"group": "org.apache.logging.log4j", "version": "2.25.4"}
    publish("org.apache.kafka", "kafka_2.13", kafka.KAFKA_VERSION, DEPENDENCY.format(artifact="log4j-core", **log4j))
    publish(artifact="log4j-core", **log4j)
    publish(artifact="log4j-slf4j-impl", **log4j)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_jar_with_another_hash_is_refused(tmp_path: Path, forged_repository: str) -> None:
    settings = Settings(cache_dir=str(tmp_path / "cache"), maven_repository=forged_repository)
    with pytest.raises(CorruptError, match=r"jar kafka_2.13-.*\.jar has sha256 .* refused"):
        kafka.resolve_jars(settings)
    assert not list(kafka.jars_dir(settings).iterdir())
    assert [path.name for path in settings.cache_path.iterdir()] == [kafka.jars_dir(settings).name], "the download is cleaned up"


def test_no_jars_and_no_network_says_what_to_do(tmp_path: Path) -> None:
    settings = Settings(cache_dir=str(tmp_path), maven_repository=NOBODY)
    with pytest.raises(UnavailableError, match=r"LIVESHELF_MAVEN_REPOSITORY.*LIVESHELF_KAFKA"):
        kafka.resolve_jars(settings)


def test_a_full_cache_needs_no_network_until_a_jar_changes(tmp_path: Path) -> None:
    """Links to the real jars, with a repository that nobody serves: resolved. One byte more in one of them: not used."""
    real = local_settings(tmp_path)
    settings = Settings(cache_dir=str(tmp_path / "cache"), maven_repository=NOBODY)
    folder = kafka.jars_dir(settings)
    folder.mkdir(parents=True)
    for jar in kafka.resolve_jars(real):
        (folder / jar.name).symlink_to(jar)
    resolved = kafka.resolve_jars(settings)
    assert [jar.name for jar in resolved] == list(kafka.locked_jars())

    victim = next(jar for jar in resolved if jar.name.startswith("re2j"))
    original = victim.resolve()
    victim.unlink()
    shutil.copy(original, victim)
    with victim.open("ab") as file:
        file.write(b"\0")
    assert kafka.unverified_jars(settings) == [victim.name]
    with pytest.raises(UnavailableError):
        kafka.resolve_jars(settings)


def test_the_lock_file_names_files_and_hashes_only() -> None:
    """46 jars, one of them the binding that makes Kafka's logging quiet; and no addresses."""
    locked = kafka.locked_jars()
    assert f"kafka_2.13-{kafka.KAFKA_VERSION}.jar" in locked
    assert any(name.startswith("log4j-slf4j-impl-") for name in locked)
    assert all(len(digest) == 64 and name.endswith(".jar") and "/" not in name for name, digest in locked.items())


def test_a_log_without_its_cluster_id_is_not_formatted_anew(tmp_path: Path) -> None:
    settings = local_settings(tmp_path)
    log = tmp_path / "kafka" / "log"
    log.mkdir(parents=True)
    (log / "meta.properties").write_text("cluster.id=someone-elses\n")
    with pytest.raises(CorruptError, match=r"cluster\.id is gone"):
        kafka.kafka_command(settings)


def test_a_damaged_cluster_id_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kafka").mkdir()
    (tmp_path / "kafka" / "cluster.id").write_text("no such id\n")
    with pytest.raises(CorruptError, match="'no such id'"):
        kafka.kafka_command(local_settings(tmp_path))


def test_no_cluster_id_looks_like_an_option() -> None:
    """One in 64 random ids would start with a hyphen, and Kafka's formatter refuse it (seen)."""
    ids = {kafka.new_cluster_id() for _ in range(2000)}
    assert len(ids) == 2000
    assert all(re.fullmatch(r"\w[\w-]{21}", cluster_id) for cluster_id in ids)
