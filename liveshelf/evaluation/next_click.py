"""Next click in full ranking: learn from the training sessions, then answer every case as it would be served, and count.

The ranker learns from the tail of the training data, asked of an index and an encoder that end before it; then both are made anew from all
of it. The test cases are looked at once, by `answers`; nothing of them is learnt, not even within a session.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from features.next_click import Array, Asker
from features.sessions import LENGTH, SessionIndex, Weights
from liveshelf.errors import SettingsError
from liveshelf.evaluation.visits import Case, Session, Visits, cases_of
from serving import tfserving_pb2 as pb
from serving.model_server.runtime import Threads
from serving.model_server.servable import Servable
from serving.tensors import decode_tensor, encode_tensor, write_answer

AT = 20  # places of the list that is judged
ENCODER_EPOCHS, RANKER_EPOCHS = 12, 6
ENCODER_CLICKS = 4_000_000
"""Clicks that the encoder learns from, all epochs together: a log of more than some 330,000 gets fewer epochs, each of more updates. Set by
what two cores learn in a quarter of an hour."""
RANKED_MAX = 20_000  # lists that the ranker learns from, drawn from the tail; 0.5 GB of inputs
REQUEST = 64  # cases a request to the model
RECENCY_SHARE = 0.36
"""Of a log without times, in sessions: as 2.5 days of Yoochoose's seven. Neighbours alone on the tail of Diginetica's training data (1,500
cases, HR/MRR@20): .1 .511/.193, .36 .549/.204, 1 .547/.204, 3 .549/.202."""
RULE_DISTANCE = 10  # clicks that a sequential rule reaches
SEED = 1
BASELINES = ("popular", "sr", "vsknn", "stan", "gru")

Bar = Callable[[str], AbstractContextManager[tuple[Callable[[int], None], Callable[[int], None]]]]
Lists = Callable[[Sequence[Case]], list[list[int]]]
"""Cases → rows of at most AT items, best first, for each."""


@dataclass
class Learnt:
    """From some sessions: rows, the index, and how the recipe's times are to be read."""

    rows: dict[str, int]
    index: SessionIndex
    sessions: list[list[int]]
    time: float

    @classmethod
    def of(cls, sessions: Sequence[Session], timed: bool) -> "Learnt":
        rows: dict[str, int] = {}
        for session in sessions:
            for item in session.items:
                rows.setdefault(item, len(rows) + 1)
        as_rows = [[rows[item] for item in session.items] for session in sessions]
        weights = Weights() if timed else replace(Weights(), recency=RECENCY_SHARE * len(sessions))
        index = SessionIndex(len(sessions), weights)
        index.extend((at, s, session.times[-1]) for at, (s, session) in enumerate(zip(as_rows, sessions, strict=True)))
        return cls(rows, index, as_rows, sessions[-1].times[-1])

    @property
    def items(self) -> int:
        return len(self.rows) + 1

    def visit(self, case: Case) -> tuple[list[int], list[float]]:
        """Known items of the prefix and their times."""
        known = [(self.rows[item], at) for item, at in zip(case.prefix, case.times, strict=True) if item in self.rows]
        return [row for row, _ in known], [at for _, at in known]


def evaluate(visits: Visits, baselines: Sequence[str], bar: Bar, epochs_max: int = ENCODER_EPOCHS) -> dict[str, Any]:
    """Figures of ours, and of each baseline."""
    for name in baselines:
        if name not in BASELINES:
            raise SettingsError(f"--baseline {name}: expected one of {', '.join(BASELINES)}")
    from trainer import next_click  # TensorFlow: 7 s to import

    began = time.monotonic()
    head, tail = visits.split()
    ranker = _fit_ranker(Learnt.of(head, visits.timed), tail, epochs_max, bar)
    learnt = Learnt.of(visits.train, visits.timed)
    encoder = _fit_encoder(learnt, "encoder, all days", epochs_max, bar)
    trained_s = time.monotonic() - began
    with TemporaryDirectory(prefix="liveshelf-evaluate-") as place:
        path = Path(place) / "1"
        next_click.write(encoder, ranker, list(learnt.rows), path)
        result = {
            "items": len(learnt.rows),
            "train_sessions": len(visits.train),
            **_judged("ours", served(learnt, path), learnt, visits.test, bar),
        }
    result["train_seconds"] = round(trained_s, 1)
    others = {name: _judged(name, baseline(name, learnt, encoder), learnt, visits.test, bar) for name in baselines}
    return result | ({"baselines": others} if others else {}) | {"seconds": round(time.monotonic() - began, 1)}


def _fit_encoder(learnt: Learnt, name: str, epochs_max: int, bar: Bar) -> Any:
    from trainer import next_click

    epochs = min(epochs_max, max(1, round(ENCODER_CLICKS / max(sum(len(session) - 1 for session in learnt.sessions), 1))))
    with bar(name) as (advance, total):
        total(epochs * _windows(learnt.sessions))
        return next_click.fit_encoder(learnt.sessions, learnt.items, epochs, SEED, advance)


def _fit_ranker(learnt: Learnt, tail: Sequence[Session], epochs_max: int, bar: Bar) -> Any:
    from trainer import next_click

    encoder = _fit_encoder(learnt, "encoder, without the tail", epochs_max, bar)
    cases = [case for case in cases_of(list(tail)) if case.target in learnt.rows]
    if len(cases) > RANKED_MAX:
        cases = [cases[k] for k in np.random.default_rng(SEED).choice(len(cases), RANKED_MAX, replace=False)]
    pairs = [(learnt.visit(case), learnt.rows[case.target]) for case in cases]
    pairs = [pair for pair in pairs if pair[0][0]]
    asker, parts = Asker(learnt.index, learnt.items, learnt.time), []
    with bar("lists of the tail") as (advance, total):
        total(len(pairs))
        for at in range(0, len(pairs), REQUEST):
            part = pairs[at : at + REQUEST]
            rows, times = [visit[0] for visit, _ in part], [visit[1] for visit, _ in part]
            parts.append((rows, times))
            advance(len(part))
    asked = [asker.ask(rows, times, found) for rows, times, found in _retrieved(encoder, parts)]
    if not asked:
        raise SettingsError("the tail of the training data holds no next click to learn a ranking from; give a longer log")
    joined = {name: np.concatenate([part[name] for part in asked]) for name in asked[0]}
    with bar("ranker") as (advance, total):
        total(RANKER_EPOCHS * len(pairs))
        return next_click.fit_ranker(encoder, joined, np.array([row for _, row in pairs]), RANKER_EPOCHS, SEED, advance)


def _retrieved(encoder: Any, parts: list[tuple[list[list[int]], list[list[float]]]]) -> Any:
    from trainer import next_click

    recent = np.concatenate([np.zeros((0, LENGTH), np.int32), *(recent_of(rows) for rows, _ in parts)])
    found, at = next_click.retrieve(encoder, recent) if len(recent) else recent, 0
    for rows, times in parts:
        yield rows, times, found[at : at + len(rows)]
        at += len(rows)


def recent_of(visits: Sequence[Sequence[int]]) -> Array:
    """[B, LENGTH] latest first."""
    recent = np.zeros((len(visits), LENGTH), np.int32)
    for k, visit in enumerate(visits):
        latest = visit[-LENGTH:][::-1]
        recent[k, : len(latest)] = latest
    return recent


class Model:
    """An exported version, run by the model server's own code, in this process."""

    def __init__(self, path: Path) -> None:
        self._loader = ThreadPoolExecutor(1)
        self._servable = Servable("next-click", 1, path, Threads(), self._loader)

    def ask(self, signature: str, **inputs: Array) -> dict[str, Array]:
        request = pb.RawPredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "next-click", signature
        for name, array in inputs.items():
            tensor = pb.Tensor()
            encode_tensor(array, tensor)
            request.inputs[name] = tensor.SerializeToString()
        answers = {}
        for name, value in self._servable.run(self._servable.prepare(request)).items():
            tensor = pb.Tensor()
            write_answer(value.dtype, value.shape, value.content, tensor)
            answers[name] = decode_tensor(tensor)
        return answers

    def close(self) -> None:
        self._servable.close()
        self._loader.shutdown()


def served(learnt: Learnt, path: Path) -> Lists:
    """Ours: retrieve, find, rank, as the scorer does."""
    model, asker = Model(path), Asker(learnt.index, learnt.items, learnt.time)
    ids = np.array([b"", *(item.encode() for item in learnt.rows)], dtype=object)
    row_of = {item.encode(): row for item, row in learnt.rows.items()}

    def lists(cases: Sequence[Case]) -> list[list[int]]:
        seen = [learnt.visit(case) for case in cases]
        visits, times = [visit for visit, _ in seen], [at for _, at in seen]
        items = ids[recent_of(visits)]
        found = model.ask("retrieve", recent_items=items)["item"]
        asked = asker.ask(visits, times, np.vectorize(lambda item: row_of.get(item, 0), otypes=[np.int32])(found))
        given = {name: asked[name] for name in ("candidate_features", "visit_features")}
        scores = model.ask("rank", recent_items=items, candidates=ids[asked["candidates"]], **given)["score"]
        best = np.argsort(-scores, axis=1, kind="stable")[:, :AT]
        return [[row for row in rows if row] for rows in np.take_along_axis(asked["candidates"], best, axis=1).tolist()]

    return lists


def baseline(name: str, learnt: Learnt, encoder: Any) -> Lists:
    """popular; sr (sequential rules); vsknn (neighbours, whatever their age and place); stan (with both); gru (the encoder alone)."""
    index = learnt.index
    if name == "popular":
        counts = index.popularity(learnt.items, learnt.time, (1e12,))[:, 0]
        top = [int(row) for row in np.argsort(-counts, kind="stable")[:AT] if row]
        return lambda cases: [top] * len(cases)
    if name == "sr":
        rules = _rules(learnt.sessions)
        return lambda cases: [rules.get(rows[-1], []) if (rows := learnt.visit(case)[0]) else [] for case in cases]
    if name == "gru":
        from trainer import next_click

        return lambda cases: next_click.retrieve(encoder, recent_of([learnt.visit(case)[0] for case in cases]), AT).tolist()
    if name == "vsknn":
        index = SessionIndex(len(learnt.sessions), replace(index.weights, recency=1e12, length=0.5))
        index.extend((at, rows, 0.0) for at, rows in enumerate(learnt.sessions))
    column = 4 if name == "vsknn" else 0

    def neighbours(cases: Sequence[Case]) -> list[list[int]]:
        out = []
        for case in cases:
            rows, times = learnt.visit(case)
            found = index.query(rows, times[-1]) if rows else None
            out.append([] if found is None else found.rows[np.argsort(-found.scores[:, column], kind="stable")[:AT]].tolist())
        return out

    return neighbours


def _rules(sessions: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    weights: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for rows in sessions:
        for at, row in enumerate(rows):
            for gap, after in enumerate(rows[at + 1 : at + 1 + RULE_DISTANCE], start=1):
                weights[row][after] += 1 / gap
    return {row: sorted(after, key=lambda item: (-after[item], item))[:AT] for row, after in weights.items()}


def _judged(name: str, lists: Lists, learnt: Learnt, cases: Sequence[Case], bar: Bar) -> dict[str, Any]:
    began, hits, reciprocal = time.monotonic(), 0, 0.0
    with bar(name) as (advance, total):
        total(len(cases))
        for at in range(0, len(cases), REQUEST):
            part = cases[at : at + REQUEST]
            answers = lists(part)
            assert len(answers) == len(part), (len(answers), len(part))
            for case, rows in zip(part, answers, strict=True):
                target = learnt.rows.get(case.target)
                if target in rows:
                    hits, reciprocal = hits + 1, reciprocal + 1 / (1 + rows.index(target))
            advance(len(part))
    n = len(cases)
    per_case = 1e3 * (time.monotonic() - began) / n
    return {
        "hr20": round(hits / n, 4),
        "mrr20": round(reciprocal / n, 4),
        "predictions": n,
        "ms_per_prediction": round(per_case, 3),
    }


def _windows(sessions: Sequence[Sequence[int]]) -> int:
    return sum(-(-(len(s) - 1) // LENGTH) for s in sessions if len(s) > 1)
