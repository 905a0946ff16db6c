"""Public next-click data: sessions to learn from, and prefixes whose next click is to be told.

    with times      two tab-separated files with a header, SessionId, ItemId and Time (s); every prefix of every test session is a case
    without times   one session a line, items in time order, sessions too; and the cases, prefix TAB target

A data set is a tar archive or a directory with one file whose name has `train` in it and one that has `test`.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from liveshelf.errors import InvalidEventError

TAIL_S = 86_400.0  # the last day, where there are times: what the ranker learns from
TAIL_SHARE = 0.05  # else of the sessions


class Session(NamedTuple):
    items: list[str]
    times: list[float]
    """Seconds of each click; where the log has none, the session's place in it."""


class Case(NamedTuple):
    prefix: list[str]
    times: list[float]
    target: str


class Visits(NamedTuple):
    train: list[Session]
    """By the time of their last click."""
    test: list[Case]
    timed: bool

    def split(self) -> tuple[list[Session], list[Session]]:
        """(all but the tail, the tail) of the training sessions."""
        if self.timed:
            until = self.train[-1].times[-1] - TAIL_S
            cut = sum(session.times[-1] < until for session in self.train)
        else:
            cut = 0
        if cut == 0:  # a log of less than a day
            cut = max(int(len(self.train) * (1 - TAIL_SHARE)), 1)
        return self.train[:cut], self.train[cut:]


def cases_of(sessions: list[Session]) -> list[Case]:
    """Every prefix of every session, and what followed."""
    return [Case(s.items[:k], s.times[:k], s.items[k]) for s in sessions for k in range(1, len(s.items))]


def read(path: Path) -> Visits:
    """
    Raises:
        InvalidEventError: no two such files are there, or a line of them is not in the format.
    """
    texts = dict(_texts(path))
    named = {part: [name for name in sorted(texts) if part in PurePath(name).name] for part in ("train", "test")}
    for part, names in named.items():
        if len(names) != 1:
            raise InvalidEventError(str(path), names or sorted(texts), f"one file whose name has {part} in it")
    (train_name,), (test_name,) = named["train"], named["test"]
    train, test = texts[train_name].splitlines(), texts[test_name].splitlines()
    timed = bool(train) and "\t" in train[0]
    if timed:
        visits = Visits(_timed(train, train_name), cases_of(_timed(test, test_name)), True)
    else:
        sessions = [Session(items, [float(at)] * len(items)) for at, line in enumerate(train) if (items := line.split())]
        visits = Visits(sessions, list(_cases(test, test_name, float(len(sessions)))), False)
    if not any(len(session.items) > 1 for session in visits.train):
        raise InvalidEventError(train_name, f"{len(visits.train)} sessions", "sessions of two clicks or more")
    if not visits.test:
        raise InvalidEventError(test_name, "no case", "at least one prefix with a next click")
    return visits


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        yield from ((file.name, file.read_text()) for file in sorted(path.iterdir()) if file.suffix in (".txt", ".tsv"))
    else:
        yield from archived(path)


def archived(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every file in a tar archive.

    Raises:
        InvalidEventError: it is none, or holds what is no text.
    """
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None:
                    yield member.name, file.read().decode()
    except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
        raise InvalidEventError(str(path), str(error), "a tar archive, or a directory") from error


def _timed(lines: list[str], name: str) -> list[Session]:
    columns = lines[0].split("\t")
    try:
        at = [columns.index(column) for column in ("SessionId", "ItemId", "Time")]
    except ValueError:
        raise InvalidEventError(f"{name}:1", lines[0], "a header with SessionId, ItemId and Time") from None
    clicks: dict[str, list[tuple[float, str]]] = {}
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        try:
            clicks.setdefault(cells[at[0]], []).append((float(cells[at[2]]), cells[at[1]]))
        except (IndexError, ValueError):
            raise InvalidEventError(
                f"{name}:{number}", line, f"{len(columns)} tab-separated cells with a time in seconds"
            ) from None
    sessions = []
    for session in clicks.values():
        session.sort(key=lambda click: click[0])
        sessions.append(Session([item for _, item in session], [time for time, _ in session]))
    return sorted(sessions, key=lambda session: session.times[-1])


def _cases(lines: list[str], name: str, time: float) -> Iterator[Case]:
    for number, line in enumerate(lines, start=1):
        prefix, tab, target = line.rpartition("\t")
        if not (tab and prefix.split() and target.strip()):
            raise InvalidEventError(f"{name}:{number}", line, "items, a tab, and the next item")
        items = prefix.split()
        yield Case(items, [time] * len(items), target.strip())
