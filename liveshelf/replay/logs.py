"""Click logs in the formats of public data sets, as one list of events in time order.

    yoochoose   tab-separated with a header: SessionId, ItemId, Time (seconds since 1970, fractions allowed), as session-rec writes it
    otto        one session a line in JSON: {"session": …, "events": [{"aid": …, "ts": ms, "type": clicks|carts|orders}]}

A log is sorted in a temporary SQLite database, which spills to disk: logs of hundreds of millions of events need no more memory
than small ones.
"""

import hashlib
import lzma
import sqlite3
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple, NoReturn

import msgspec

from liveshelf.errors import InvalidEventError

LINE_BYTES_MAX = 16 * 1024 * 1024  # the longest session of OTTO is 30 kB; a file without line ends must not fill the memory
MALFORMED_KEPT_MAX = 20  # line numbers that are remembered; all are counted
TIME_MS_MAX = 2**53
INSERT_ROWS = 50_000
DIGEST_CHARS = 12  # of the file's digest in an event id: tells apart the few logs that meet in one shop
YOOCHOOSE_COLUMNS = ("SessionId", "ItemId", "Time")
OTTO_NAMES = {"clicks": "view_item", "carts": "add_to_cart", "orders": "purchase"}


class LogEvent(NamedTuple):
    """One event as the log has it. `line` and `part` (place within the line) tell it from all others of its file."""

    time_ms: int
    file: int
    line: int
    part: int
    session: str
    item: str
    name: str


class Malformed(NamedTuple):
    """A line that could not be read."""

    file: str
    line: int
    problem: str


class WrongFormatError(Exception):
    """The file is not in this format, as its line `line` shows."""

    def __init__(self, line: int, text: bytes, expected: str) -> None:
        self.line, self.text, self.expected = line, text, expected
        super().__init__(line)


Reader = Callable[[IO[bytes], int], Iterator[LogEvent | tuple[int, str]]]
"""File, its number → its events, and (line, problem) for each malformed line. Raises WrongFormatError."""


def read_yoochoose(file: IO[bytes], number: int) -> Iterator[LogEvent | tuple[int, str]]:
    header = file.readline(LINE_BYTES_MAX)
    names = header.decode(errors="replace").strip().split("\t")
    if not set(YOOCHOOSE_COLUMNS) <= set(names):
        raise WrongFormatError(1, header, "a header with the tab-separated columns SessionId, ItemId and Time")
    session_at, item_at, time_at = (names.index(name) for name in YOOCHOOSE_COLUMNS)
    for line, text in _lines(file, 2):
        try:
            cells = text.decode().rstrip("\r\n").split("\t")
            session, item, time_ms = cells[session_at], cells[item_at], round(float(cells[time_at]) * 1000)
            if not (session and item and 0 <= time_ms <= TIME_MS_MAX):
                raise ValueError("an empty cell, or a time out of range")
        except (ValueError, IndexError, OverflowError) as error:  # ValueError includes UnicodeDecodeError
            yield line, f"expected {len(names)} tab-separated cells with a time in seconds: {error}"
            continue
        yield LogEvent(time_ms, number, line, 0, session, item, "view_item")


class _OttoEvent(msgspec.Struct):
    aid: int
    ts: int
    type: Literal["clicks", "carts", "orders"]


class _OttoSession(msgspec.Struct):
    session: int
    events: list[_OttoEvent]


def read_otto(file: IO[bytes], number: int) -> Iterator[LogEvent | tuple[int, str]]:
    decode = msgspec.json.Decoder(_OttoSession).decode
    for line, text in _lines(file, 1):
        try:
            session = decode(text)
            if not all(0 <= event.ts <= TIME_MS_MAX for event in session.events):
                raise ValueError("a time out of range")
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            if line == 1:
                expected = 'one session a line, {"session": …, "events": [{"aid": …, "ts": …, "type": "clicks|carts|orders"}]}'
                raise WrongFormatError(1, text, expected) from None
            yield line, str(error)
            continue
        for part, event in enumerate(session.events):
            yield LogEvent(event.ts, number, line, part, str(session.session), str(event.aid), OTTO_NAMES[event.type])


READERS: dict[str, Reader] = {"yoochoose": read_yoochoose, "otto": read_otto}


def _files(directory: Path) -> list[Path]:
    return sorted(part for part in directory.iterdir() if part.is_file())


def _digest(path: Path) -> str:
    """Of a file, or of a directory's files in their order."""
    if path.is_dir():
        return hashlib.sha256("".join(_digest(part) for part in _files(path)).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(file: IO[bytes], first: int) -> Iterator[tuple[int, bytes]]:
    """Line numbers and lines, empty ones left out."""
    for number, text in enumerate(iter(lambda: file.readline(LINE_BYTES_MAX), b""), first):
        if text.strip():
            yield number, text


class ClickLog:
    """A log, read and sorted by time. Close it to free its temporary file."""

    def __init__(self, path: Path, format_: str, member: str = "") -> None:
        """Read a plain file, the files of a directory, or those files of a tar archive (`.tar`, `.tar.gz`, `.tar.xz`) whose name is or ends
        with `member`.

        Raises:
            InvalidEventError: the file cannot be read, or is not in this format; names the first offending line.
        """
        self.path, self.format = path, format_
        self.malformed: list[Malformed] = []
        """The first MALFORMED_KEPT_MAX of them."""
        self.malformed_count = 0
        self._database = sqlite3.connect("")
        self._database.execute(
            "CREATE TABLE event (time_ms INTEGER, file INTEGER, line INTEGER, part INTEGER, session TEXT, item TEXT, name TEXT)"
        )
        try:
            self.digest = _digest(path)
            self._read_files(path, member)
        except (OSError, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
            raise InvalidEventError(
                str(path), str(error) or type(error).__name__, "a click log, plain or in a tar archive"
            ) from error
        self.count, self.first_ms, self.last_ms = self._database.execute(
            "SELECT count(*), coalesce(min(time_ms), 0), coalesce(max(time_ms), 0) FROM event"
        ).fetchone()
        if not self.count:
            first = self.malformed[0] if self.malformed else Malformed(path.name, 1, "there is none")
            raise InvalidEventError(f"{first.file}, line {first.line}", first.problem, f"an event in {format_} format")

    def events(self, start: int, stop: int) -> Iterator[LogEvent]:
        """Events number `start` to `stop` (exclusive) in time order; those of one time in the order of the file."""
        order = "SELECT * FROM event ORDER BY time_ms, file, line, part LIMIT ? OFFSET ?"
        yield from map(LogEvent._make, self._database.execute(order, (stop - start, start)))

    def event_id(self, event: LogEvent) -> str:
        """The same for the same event of the same file, always: sent twice, it folds once."""
        return f"{self.digest[:DIGEST_CHARS]}-{event.file}-{event.line}-{event.part}"

    def close(self) -> None:
        self._database.close()

    def _read_files(self, path: Path, member: str) -> None:
        if path.is_dir():
            for number, part in enumerate(_files(path)):
                with part.open("rb") as file:
                    self._read(file, part.name, number)
            return
        if not tarfile.is_tarfile(path):
            if member:
                raise InvalidEventError("--member", member, f"no member: {path.name} is not a tar archive")
            with path.open("rb") as file:
                self._read(file, path.name, 0)
            return
        names = []
        with tarfile.open(path, "r|*") as archive:  # a stream: an .xz archive cannot be sought
            for number, entry in enumerate(archive):
                if not entry.isfile():
                    continue
                names.append(entry.name)
                content = archive.extractfile(entry)
                if content is not None and (not member or entry.name == member or entry.name.endswith("/" + member)):
                    self._read(content, entry.name, number)
        if not self.count_so_far() and not self.malformed_count:
            raise InvalidEventError("--member", member, f"one of {', '.join(names) or 'none: the archive holds no file'}")

    def count_so_far(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM event").fetchone()[0])

    def _read(self, file: IO[bytes], name: str, number: int) -> None:
        rows: list[LogEvent] = []
        try:
            for found in READERS[self.format](file, number):
                if isinstance(found, LogEvent):
                    rows.append(found)
                    if len(rows) == INSERT_ROWS:
                        self._insert(rows)
                else:
                    self.malformed_count += 1
                    if len(self.malformed) < MALFORMED_KEPT_MAX:
                        self.malformed.append(Malformed(name, *found))
        except WrongFormatError as error:
            self._refuse(name, error)
        self._insert(rows)

    def _insert(self, rows: list[LogEvent]) -> None:
        self._database.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        rows.clear()

    def _refuse(self, name: str, error: WrongFormatError) -> NoReturn:
        start = error.text[:80].decode(errors="replace").rstrip()
        others = ", ".join(sorted(READERS.keys() - {self.format}))
        raise InvalidEventError(
            f"{name}, line {error.line}",
            start,
            f"{self.format} format: {error.expected}. Try --format {others}, or --member for one file",
        ) from None
