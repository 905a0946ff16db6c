"""Feast's Redis online store with writes that are fenced by the log's offsets, many rows a command, and batch reads of raw values.

Keys and hashes are laid out as Feast's own Redis store lays them out, so that store reads what is written here. Beside Feast's fields a
view's hash holds one more, its fence: `partition:offset` of the log up to which the row was folded. A script compares it with the new row's
in the same step as the write, so a worker that lost its partition cannot overwrite its successor's rows.

Limits: a server (Valkey 8 or newer, Redis 6 or newer) on its own or behind Sentinel, no cluster, where a script may only touch the keys of
one slot. Offsets up to 2**53: numbers are doubles in a script.
"""

import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

from feast import FeatureService, FeatureView, RepoConfig, utils
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig, RedisType
from feast.infra.registry.base_registry import BaseRegistry
from feast.online_response import OnlineResponse
from redis.exceptions import (
    BusyLoadingError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from features.responses import Request
from features.values import View, hash_field, hmget, timestamp, ts_field
from liveshelf.errors import ConflictError, CorruptError, LiveshelfError, SettingsError, UnavailableError

UNFENCED = -1
"""As a row's offset: written whatever is stored, and the stored fence stays."""
WRITE_ROWS = 128
"""Rows a script call: a call blocks every other client for its 1 to 2 ms, and its fixed cost (40 µs) is spread over this many."""
READ_ROWS = 256
"""Rows asked for ahead of the answers read: bounds what the server buffers for a reader."""
WRITES_AHEAD = 16
READS_AHEAD = 1
"""Batches sent before the first one's answers are read, so that client and server work at the same time."""

_WRONG_TYPE = "WRONGTYPE"
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

# HSET before HDEL: a script is stopped for lack of memory only until its first write, and HDEL, which frees memory, would count as one.
_WRITE = b"""
local width = tonumber(ARGV[1])
local fence, ts, rows = ARGV[2], ARGV[3], ARGV[4 + width]
local head = '<dd' .. string.rep('I', width + 2)
local written, stale, same, wrong, moved = 0, 0, 0, {}, {}
local match, format, sub, call = string.match, string.format, string.sub, redis.call
local set, gone = {}, {}
local at, i = 1, 0
while at <= #rows do
  i = i + 1
  local row = {struct.unpack(head, rows, at)}
  local partition, offset, data = row[1], row[2], row[width + 5]
  local key = sub(rows, data, data + row[3] - 1)
  data = data + row[3]
  local stored = redis.pcall('HGET', key, fence)
  local fresh = true
  if type(stored) == 'table' then
    fresh = false
    if not string.find(stored.err, 'WRONGTYPE', 1, true) then return stored end
    wrong[#wrong + 1] = i
  elseif stored and offset >= 0 then
    local p, o = match(stored, '^(%d+):(%d+)$')
    if tonumber(p) ~= partition then
      fresh = false
      moved[#moved + 1] = i
    elseif tonumber(o) >= offset then
      fresh = false
      if tonumber(o) > offset then stale = stale + 1 else same = same + 1 end
    end
  end
  if fresh then
    local n, g = 2, 0
    set[1], set[2] = ts, sub(rows, data, data + row[4] - 1)
    local from = data + row[4]
    if offset >= 0 then
      n, set[3], set[4] = 4, fence, format('%d:%d', partition, offset)
    end
    for j = 1, width do
      local size = row[j + 4]
      if size == 0 then
        g = g + 1
        gone[g] = ARGV[j + 3]
      else
        n = n + 2
        set[n - 1], set[n] = ARGV[j + 3], sub(rows, from, from + size - 1)
        from = from + size
      end
    end
    call('HSET', key, unpack(set, 1, n))
    if g > 0 then call('HDEL', key, unpack(gone, 1, g)) end
    written = written + 1
  end
  for j = 4, width + 4 do data = data + row[j] end
  at = data
end
return {written, stale, same, wrong, moved}
"""

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
    values: Sequence[bytes]
    """As `values.encode_values` makes them."""


class Written(NamedTuple):
    """How many rows were written, and how many were not."""

    written: int
    stale: int
    """The stored row is further: another worker owns the partition now, or the row stood twice in one write."""
    same: int
    """The stored row is as far: this write is a repetition of one that came through."""


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
        width = len(view.fields)
        head = struct.Struct(f"<dd{width + 2}I")  # partition, offset, and the lengths of key, timestamp and values, which follow
        shared = (b"EVAL", _WRITE, b"0", b"%d" % width, fence_field(view.name), ts_field(view.name), *view.hash_fields)
        rows = iter(rows)
        keys: list[list[bytes]] = []

        def packed(key: bytes, partition: int, offset: int, time_ms: int, values: Sequence[bytes]) -> bytes:
            data = (key, timestamp(time_ms), *values)
            return head.pack(partition, offset, *map(len, data)) + b"".join(data)

        def batches() -> Iterator[tuple[bytes, int]]:
            while chunk := [(key + project, *rest) for key, *rest in islice(rows, WRITE_ROWS)]:
                keys.append([row[0] for row in chunk])
                yield _command(*shared, b"".join([packed(*row) for row in chunk])), 1

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
        return Written(*(sum(reply[i] for reply in replies) for i in range(3)))

    def read_rows(self, config: RepoConfig, view: View, keys: Sequence[bytes]) -> list[list[bytes | None] | None]:
        """For each entity key its values in the order of `view.fields`, serialized (see `values.decode_values`); None for no row."""
        project = config.project.encode()
        answers = self._read_hashes(config, [(key + project, view.hmget) for key in keys])
        return [None if values[0] is None else values[1:] for values in answers]

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
                suffix = config.project.encode()
                rows = self._read_hashes(config, [(key + suffix, request.view.hmget) for key in keys])
                return OnlineResponse(request.answer(entity_rows, rows), feature_types=request.feature_types)
        return super().get_online_features(
            config, features, entity_rows, registry, project, full_feature_names, include_feature_view_version_metadata
        )

    def delete_table(self, config: RepoConfig, table: FeatureView) -> None:
        """Feast's, and the fences: a view made anew under an old name would find its rows refused."""
        client = self._get_client(config.online_store)
        keys = client.scan_iter(b"*" + config.project.encode(), count=1000)
        while some := list(islice(keys, 1000)):
            with client.pipeline(transaction=False) as pipe:
                for key in some:
                    pipe.hdel(key, fence_field(table.name))
                pipe.execute(raise_on_error=False)  # a key of another type is not ours
        super().delete_table(config, table)

    def _read_hash_fields(self, config: RepoConfig, commands: list[tuple[bytes, list[str | bytes]]]) -> list[list[Any]]:
        packed: dict[int, tuple[bytes, bytes]] = {}  # the field names of a view are one object for all of its keys
        for _, names in commands:
            if id(names) not in packed:
                packed[id(names)] = hmget([name.encode() if isinstance(name, str) else name for name in names])
        return self._read_hashes(config, [(key, packed[id(names)]) for key, names in commands])

    def _read_hashes(self, config: RepoConfig, wanted: Sequence[tuple[bytes, tuple[bytes, bytes]]]) -> list[list[bytes | None]]:
        """One answer for each (key, packed command of `hmget`)."""
        if not wanted:
            return []

        def batches() -> Iterator[tuple[bytes, int]]:
            for start in range(0, len(wanted), READ_ROWS):
                parts = []
                for key, (head, tail) in wanted[start : start + READ_ROWS]:
                    parts.append(b"%b%d\r\n%b%b" % (head, len(key), key, tail))
                yield b"".join(parts), len(parts)

        with self._answering(config):
            answers = self._exchange(config, batches(), READS_AHEAD)
            refusals = [
                (key, answer) for (key, _), answer in zip(wanted, answers, strict=True) if isinstance(answer, ResponseError)
            ]
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


def fence_field(view: str) -> bytes:
    """Name of the fence of `view` within a row's hash; no field of a view may be called `_fence`."""
    return hash_field(view, "_fence")


def _folded_key(config: RepoConfig, version: str) -> bytes:
    return f"{config.project}:folded:{version}".encode()


def _address(config: RepoConfig) -> str:
    return ",".join(part for part in config.online_store.connection_string.split(",") if "=" not in part)


def _command(*words: bytes) -> bytes:
    """A command as the server reads it."""
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])
