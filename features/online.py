"""Feast's Redis online store with rows packed into one value (see `features.packed`), writes that are fenced by the log's offsets, many rows
a command, and batch reads.

Keys are Feast's own; the row of each view of an entity is one field of the key's hash. A row's header holds the clickstream partition and
offset up to which it was folded. A script compares them with the new row's in the same step as the write, so a worker that lost its
partition cannot overwrite its successor's rows.

Limits: a server (Valkey 8 or newer, Redis 6 or newer) on its own or behind Sentinel, no cluster, where a script may only touch the keys of
one slot. Offsets below 2**53: numbers are doubles in a script.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

from feast import FeatureService, FeatureView, RepoConfig, utils
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _redis_key_prefix
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig, RedisType
from feast.infra.registry.base_registry import BaseRegistry
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.online_response import OnlineResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from redis.exceptions import (
    BusyLoadingError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from features.packed import HEADER, UNFENCED, Packed, pack, unpack
from features.responses import Request, view_of
from features.values import View, python_values
from liveshelf.errors import ConflictError, CorruptError, LiveshelfError, SettingsError, UnavailableError

WRITE_ROWS = 128
"""Rows a script call: a call blocks every other client for its 1 to 2 ms, and its fixed cost (40 µs) is spread over this many."""
READ_ROWS = 256
"""Rows asked for ahead of the answers read: bounds what the server buffers for a reader."""
WRITES_AHEAD = 16
READS_AHEAD = 1
"""Batches sent before the first one's answers are read, so that client and server work at the same time."""

_WRONG_TYPE = "WRONGTYPE"
_KEY_VERSION = 3  # of Feast's serialization of entity keys, as `values.entity_key` makes them
_ADVICE: tuple[tuple[type[Exception] | None, str, str], ...] = (  # by redis-py's type, or by the code within what a script says
    (
        OutOfMemoryError,
        "OOM ",
        "is full (maxmemory reached): give it more memory, or let fewer shoppers live in it. Events wait in the log meanwhile",
    ),
    (
        ReadOnlyError,
        "READONLY",
        "is read-only, a replica: set LIVESHELF_STORE to the primary, or wait for the failover to end",
    ),
    (BusyLoadingError, "LOADING", "is still loading its data after a start: wait"),
    (MasterDownError, "MASTERDOWN", "is a replica that lost its primary: wait for the failover to end"),
    (None, "MISCONF", "cannot save to its disk and refuses writes: is the disk full? Its log says more"),
    (None, "NOREPLICAS", "has fewer replicas than min-replicas-to-write asks for: bring them back"),
)

_LENGTHS = struct.Struct("<II")  # of key and row, which follow
# ARGV: the hash field, then rows. A packed row begins with '<BI4I8': format, partition and offset + 1, which is 0 for an unfenced row.
_WRITE = (
    b"""
local field, rows, head = ARGV[1], ARGV[2], %d
local written, stale, same, wrong, moved = 0, 0, 0, {}, {}
local sub, fence = string.sub, struct.unpack
local at, i = 1, 0
while at <= #rows do
  i = i + 1
  local width, size = fence('<I4I4', rows, at)
  local key, row = sub(rows, at + 8, at + 7 + width), sub(rows, at + 8 + width, at + 7 + width + size)
  at = at + 8 + width + size
  local _, partition, offset = fence('<BI4I8', row)
  local stored = redis.pcall('HGET', key, field)
  local fresh = true
  if type(stored) == 'table' then
    fresh = false
    if not string.find(stored.err, 'WRONGTYPE', 1, true) then return stored end
    wrong[#wrong + 1] = i
  elseif stored and #stored < head then
    fresh = false
    wrong[#wrong + 1] = i
  elseif stored then
    local _, p, o = fence('<BI4I8', stored)
    if offset == 0 then
      row = sub(row, 1, 1) .. sub(stored, 2, 13) .. sub(row, 14)
    elseif o > 0 and p ~= partition then
      fresh = false
      moved[#moved + 1] = i
    elseif o >= offset then
      fresh = false
      if o > offset then stale = stale + 1 else same = same + 1 end
    end
  end
  if fresh then
    redis.call('HSET', key, field, row)
    written = written + 1
  end
end
return {written, stale, same, wrong, moved}
"""
    % HEADER.size
)

_ADVANCE = """
local behind = {}
for i = 1, #ARGV, 3 do
  local stored = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '-1')
  if stored < tonumber(ARGV[i + 1]) then behind[#behind + 1] = ARGV[i]; behind[#behind + 1] = string.format('%d', stored) end
end
if #behind > 0 then return behind end
for i = 1, #ARGV, 3 do
  local stored = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '-1')
  if stored < tonumber(ARGV[i + 2]) then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2]) end
end
return behind
"""


class Row(NamedTuple):
    """One row to write: of `key` (see `values.entity_key`), folded from `partition` up to `offset` inclusive, or `UNFENCED`."""

    key: bytes
    partition: int
    offset: int
    time_ms: int
    """Event time, milliseconds since 1970."""
    values: Sequence[Any]
    """In the order of the view's fields."""


class Written(NamedTuple):
    """How many rows were written, and how many were not."""

    written: int
    stale: int
    """The stored row is further: another worker owns the partition now, or the row stood twice in one write."""
    same: int
    """The stored row is as far: this write is a repetition of one that came through."""
    size: int
    """Bytes of all rows, written or not, without their keys."""


class StoreBehindError(UnavailableError):
    """The store forgot what it had acknowledged: fold again from `stored`, its folded-up-to offset by partition (-1: none)."""

    def __init__(self, stored: dict[int, int], expected: dict[int, int]) -> None:
        self.stored = stored
        listed = ", ".join(f"partition {p}: up to {o}, expected {expected[p]}" for p, o in sorted(stored.items()))
        super().__init__(f"the online store lost its latest writes (a restart or failover?): {listed}. Fold again from there")


class WrongTypeError(CorruptError):
    """Keys of the store that hold something other than a feature row. Trying again does not help: someone has to look."""

    def __init__(self, keys: Sequence[bytes], address: str) -> None:
        self.keys = list(keys)
        listed = ", ".join(repr(key)[2:-1] for key in self.keys[:3]) + (", ..." if len(self.keys) > 3 else "")
        super().__init__(
            f"{len(self.keys)} key(s) of the online store at {address} hold no feature row but another type: {listed}. "
            f"Does another program write there? Delete such a key (redis-cli DEL), and the log gives its row again"
        )


class MovedError(ConflictError):
    """Rows folded from one partition came from another: the topic's partition count changed, and their keys moved."""


class FencedOnlineStoreConfig(RedisOnlineStoreConfig):
    """Feast's own Redis options; no cluster."""

    type: str = "features.online.FencedOnlineStore"  # type: ignore[assignment]  # Feast declares the literal of its own class


class FencedOnlineStore(RedisOnlineStore):
    """Methods that are not Feast's take Feast's `config` first, as Feast's do, and raise:

    Raises:
        UnavailableError: no answer, no memory left, read-only, still loading: worth trying again.
        WrongTypeError: a key holds something other than a row.
    """

    def __init__(self) -> None:
        self._requests: dict[Any, Request] = {}

    def write_rows(self, config: RepoConfig, view: View, rows: Iterable[Row]) -> Written:
        """Write each row whose offset is above the stored one. On an error part of the rows may be written: writing again is safe.

        Raises:
            WrongTypeError, MovedError: some keys were refused, every other row is written.
        """
        project = config.project.encode()
        shared = (b"EVAL", _WRITE, b"0", view.field)
        rows = iter(rows)
        keys: list[list[bytes]] = []
        size = 0

        def batches() -> Iterator[tuple[bytes, int]]:
            nonlocal size
            while chunk := [(row.key + project, pack(view, *row[1:])) for row in islice(rows, WRITE_ROWS)]:
                keys.append([key for key, _ in chunk])
                size += sum([len(row) for _, row in chunk])
                yield _command(*shared, b"".join([_LENGTHS.pack(len(key), len(row)) + key + row for key, row in chunk])), 1

        with self._answering(config):
            replies = self._exchange(config, batches(), WRITES_AHEAD)
            for reply in replies:
                if isinstance(reply, ResponseError):
                    raise reply
        wrong = [chunk[i - 1] for chunk, reply in zip(keys, replies, strict=True) for i in reply[3]]
        moved = [chunk[i - 1] for chunk, reply in zip(keys, replies, strict=True) for i in reply[4]]
        if wrong:
            raise WrongTypeError(wrong, _address(config))
        if moved:
            raise MovedError(
                f"{len(moved)} row(s) of {view.name} were folded from another partition before, the first is {moved[0]!r}: "
                "did the topic's partition count change? Keep the count, or rebuild the features from the log"
            )
        written, stale, same = (sum(reply[i] for reply in replies) for i in range(3))
        return Written(written, stale, same, size)

    def read_rows(self, config: RepoConfig, view: View, keys: Sequence[bytes]) -> list[Packed | None]:
        """The row of each entity key; None where there is none.

        Raises:
            CorruptError: a stored row cannot be read.
        """
        project = config.project.encode()
        answers = self._read(config, view.field, [key + project for key in keys])
        return [None if packed is None else unpack(view, packed) for packed in answers]

    async def read_row(self, config: RepoConfig, view: View, key: bytes) -> Packed | None:
        """One row, asked from an event loop, always the same one.

        Raises:
            CorruptError: the stored row cannot be read.
        """
        key += config.project.encode()
        with self._answering(config, key):
            client = await self._get_client_async(config.online_store)
            packed = await client.hget(key, view.field)
        return None if packed is None else unpack(view, packed)

    async def close(self) -> None:
        """End what `read_row` holds, in its event loop."""
        if self._client_async is not None:
            await self._client_async.aclose()

    def folded(self, config: RepoConfig, partitions: Sequence[int], version: str) -> dict[int, int]:
        """By partition, the offset up to which, inclusive, its events are folded into rows of `version`; -1 where nothing is."""
        if not partitions:
            return {}
        with self._answering(config, _folded_key(config, version)):
            stored = self._get_client(config.online_store).hmget(_folded_key(config, version), [str(p) for p in partitions])
        return {p: -1 if offset is None else int(offset) for p, offset in zip(partitions, stored, strict=True)}

    def advance(self, config: RepoConfig, version: str, offsets: Mapping[int, tuple[int, int]]) -> None:
        """Note that the rows are folded further: `offsets` holds (what the store held before, what it holds from now) by partition.

        Call it after the rows that it covers are written. A stored offset above the new one stays: another worker is ahead.

        Raises:
            StoreBehindError: for some partition the store holds less than before; nothing is noted for any.
        """
        if not offsets:
            return
        args = [str(n) for partition, (before, now) in offsets.items() for n in (partition, before, now)]
        with self._answering(config, _folded_key(config, version)):
            behind = self._get_client(config.online_store).eval(_ADVANCE, 1, _folded_key(config, version), *args)
        if behind:
            stored = {int(p): int(o) for p, o in zip(behind[::2], behind[1::2], strict=True)}
            raise StoreBehindError(stored, {p: offsets[p][0] for p in stored})

    def get_online_features(
        self,
        config: RepoConfig,
        features: list[str] | FeatureService,
        entity_rows: Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> OnlineResponse:
        """Feast's; a request for one view by its join keys, columnar, is answered several times as fast and to the same effect."""
        from feast import metrics  # as Feast does: its import has side effects, for which `features` makes ready

        plain = (
            isinstance(entity_rows, Mapping) and not include_feature_view_version_metadata and not metrics._config.online_features
        )
        if plain and not getattr(features, "precompute_online", False):
            context = utils._get_cached_request_context(registry, project, features, full_feature_names)
            name = features.name if isinstance(features, FeatureService) else tuple(features)
            request = self._requests.get((name, full_feature_names))
            if request is None or request.context is not context:  # the registry was refreshed
                request = self._requests[name, full_feature_names] = Request(context, full_feature_names)
            if request.plain and (keys := request.keys(entity_rows)) is not None:
                rows = self.read_rows(config, request.view, keys)
                return OnlineResponse(request.answer(entity_rows, rows), feature_types=request.feature_types)
        return super().get_online_features(
            config, features, entity_rows, registry, project, full_feature_names, include_feature_view_version_metadata
        )

    def online_read(
        self, config: RepoConfig, table: FeatureView, entity_keys: list[EntityKey], requested_features: list[str] | None = None
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Feast's: by entity key its event time and values; a row that is not there is null at the beginning of time."""
        view = view_of(table)
        names = requested_features or list(view.place)
        answers: list[tuple[datetime | None, dict[str, Value] | None]] = []
        for row in self.read_rows(config, view, [serialize_entity_key(key, _KEY_VERSION) for key in entity_keys]):
            if row is None:
                answers.append((datetime.fromtimestamp(0, UTC), {name: Value() for name in names}))
            else:
                encoded = {name: view.encoders[view.place[name]](row.values[view.place[name]]) for name in names}
                values = {name: Value.FromString(value) for name, value in encoded.items()}
                answers.append((datetime.fromtimestamp(row.time_ms / 1000, UTC), values))
        return answers

    # By `online_read`, where the Redis store's own would read its own layout.
    _read_features_per_fv = OnlineStore._read_features_per_fv
    _read_features_per_fv_async = OnlineStore._read_features_per_fv_async

    async def online_read_async(
        self, config: RepoConfig, table: FeatureView, entity_keys: list[EntityKey], requested_features: list[str] | None = None
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        return await asyncio.to_thread(self.online_read, config, table, entity_keys, requested_features)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Feast's (push, materialize): whole rows, unfenced. A feature that is not given is null."""
        view = view_of(table)
        rows = []
        for key, values, time, _ in data:
            whole = python_values(view, [values.get(name, Value()) for name in view.place])
            time_ms = int(utils.make_tzaware(time).timestamp() * 1000)
            if whole is not None:
                rows.append(Row(serialize_entity_key(key, _KEY_VERSION), 0, UNFENCED, time_ms, whole))
        self.write_rows(config, view, rows)
        if progress:
            progress(len(data))

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        return SupportedAsyncMethods(read=False, write=False)

    def delete_table(self, config: RepoConfig, table: FeatureView) -> None:
        """Delete the view's rows, fences included; a key that holds nothing else goes."""
        client = self._get_client(config.online_store)
        keys = client.scan_iter(_redis_key_prefix(table.join_keys) + b"*" + config.project.encode(), count=1000)
        while some := list(islice(keys, 1000)):
            with client.pipeline(transaction=False) as pipe:
                for key in some:
                    pipe.hdel(key, view_of(table).field)
                pipe.execute(raise_on_error=False)  # a key of another type is not ours

    def _read(self, config: RepoConfig, field: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        """What each key's hash holds in `field`; None for nothing."""
        if not keys:
            return []

        def batches() -> Iterator[tuple[bytes, int]]:
            for start in range(0, len(keys), READ_ROWS):
                some = keys[start : start + READ_ROWS]
                yield b"".join([_command(b"HGET", key, field) for key in some]), len(some)

        with self._answering(config):
            answers = self._exchange(config, batches(), READS_AHEAD)
            refusals = [(key, answer) for key, answer in zip(keys, answers, strict=True) if isinstance(answer, ResponseError)]
            if wrong := [key for key, refusal in refusals if _WRONG_TYPE in str(refusal)]:
                raise WrongTypeError(wrong, _address(config))
            if refusals:
                raise refusals[0][1]
        return answers

    def _exchange(self, config: RepoConfig, batches: Iterable[tuple[bytes, int]], ahead: int) -> list[Any]:
        """Send (packed commands, number of replies) while earlier ones are being answered, at most `ahead` batches before reading.

        Returns:
            every reply in order; a command that was refused is answered by its ResponseError.
        """
        if config.online_store.redis_type == RedisType.redis_cluster:
            raise SettingsError(
                "redis_type is redis_cluster: use one server or Sentinel, a script may not write keys of several slots"
            )
        pool = self._get_client(config.online_store).connection_pool
        connection = pool.get_connection()
        replies: list[Any] = []

        def receive(count: int) -> None:
            for _ in range(count):
                try:
                    replies.append(connection.read_response())
                except ResponseError as refusal:
                    replies.append(refusal)

        try:
            waiting: deque[int] = deque()
            for packed, count in batches:
                connection.send_packed_command([packed])
                waiting.append(count)
                if len(waiting) > ahead:
                    receive(waiting.popleft())
            for count in waiting:
                receive(count)
        except BaseException:
            connection.disconnect()  # answers may be on their way that nobody waits for
            raise
        finally:
            pool.release(connection)
        return replies

    @contextmanager
    def _answering(self, config: RepoConfig, key: bytes = b"") -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            raise store_error(error, _address(config), key) from error


def store_error(error: Exception, address: str, key: bytes = b"") -> LiveshelfError:
    """What the store's `error` means here, and what to do about it. `key` is the key that was touched, where there was one."""
    said = str(error)
    if _WRONG_TYPE in said:
        return WrongTypeError([key], address)
    for kind, sign, advice in _ADVICE:
        if sign in said or (kind is not None and isinstance(error, kind)):
            return UnavailableError(f"the online store at {address} {advice}")
    if isinstance(error, RedisTimeoutError):
        return UnavailableError(
            f"the online store at {address} does not answer in time: {said}. Is it overloaded, or the network slow?"
        )
    if isinstance(error, ResponseError):
        return UnavailableError(f"the online store at {address} refuses: {said}")
    return UnavailableError(
        f"the online store at {address} does not answer: {said}. Is it running, and LIVESHELF_STORE its address?"
    )


def _folded_key(config: RepoConfig, version: str) -> bytes:
    return f"{config.project}:folded:{version}".encode()


def _address(config: RepoConfig) -> str:
    return ",".join(part for part in config.online_store.connection_string.split(",") if "=" not in part)


def _command(*words: bytes) -> bytes:
    """A command as the server reads it."""
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])
