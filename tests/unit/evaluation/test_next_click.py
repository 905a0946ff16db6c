"""The whole next-click pipeline on planted sessions: it learns what is there to learn, and what is served is what was trained."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from features.next_click import CANDIDATES, Asker
from liveshelf.errors import SettingsError
from liveshelf.evaluation.next_click import Learnt, Model, baseline, evaluate, recent_of
from liveshelf.evaluation.visits import Case, Session, Visits, cases_of
from trainer import next_click

ITEMS, SEED = 30, 3


def planted(n: int, first: int, rng: np.random.Generator) -> list[Session]:
    """Shoppers walk a ring of items upwards, one or two at a step."""
    sessions = []
    for at in range(first, first + n):
        steps = rng.choice([1, 2], size=rng.integers(2, 6), p=[0.8, 0.2])
        walk = (rng.integers(ITEMS) + np.concatenate([[0], np.cumsum(steps)])) % ITEMS
        sessions.append(Session([f"item-{i}" for i in walk], [at * 600.0 + k for k in range(len(walk))]))
    return sessions


@pytest.fixture(scope="module")
def visits() -> Visits:
    rng = np.random.default_rng(SEED)
    return Visits(planted(500, 0, rng), cases_of(planted(40, 500, rng)), True)


def quiet(_: str) -> nullcontext:  # type: ignore[type-arg]
    return nullcontext((lambda _: None, lambda _: None))


def test_ours_finds_a_planted_walk_and_popularity_does_not(visits: Visits) -> None:
    result = evaluate(visits, ("popular", "sr", "vsknn", "stan", "gru"), quiet, epochs_max=3)
    assert result["predictions"] == len(visits.test)
    assert result["hr20"] > 0.95
    assert result["mrr20"] > 0.75, "the next item of the ring comes first four times out of five: (.8 × 1 + .2 / 2) = .9 at best"
    assert result["mrr20"] > 2 * result["baselines"]["popular"]["mrr20"]
    assert result["baselines"]["stan"]["mrr20"] > 2 * result["baselines"]["popular"]["mrr20"]


@pytest.fixture(scope="module")
def trained(visits: Visits) -> tuple[Learnt, next_click.Encoder, next_click.Ranker, dict[str, np.ndarray]]:
    learnt = Learnt.of(visits.train, True)
    encoder = next_click.fit_encoder(learnt.sessions, learnt.items, 1, SEED)
    seen = [learnt.visit(case) for case in visits.test]
    rows = [visit for visit, _ in seen]
    asker = Asker(learnt.index, learnt.items, learnt.time)
    asked = asker.ask(rows, [at for _, at in seen], next_click.retrieve(encoder, recent_of(rows)))
    ranker = next_click.fit_ranker(encoder, asked, np.array([learnt.rows[case.target] for case in visits.test]), 1, SEED)
    return learnt, encoder, ranker, asked


def test_the_served_model_scores_as_the_trained_one(trained: tuple, tmp_path: Path) -> None:  # type: ignore[type-arg]
    learnt, encoder, ranker, asked = trained
    next_click.write(encoder, ranker, list(learnt.rows), tmp_path / "1")
    model = Model(tmp_path / "1")
    ids = np.array([b"", *(item.encode() for item in learnt.rows)], dtype=object)
    features = {name: asked[name] for name in ("candidate_features", "visit_features")}
    score = model.ask("rank", recent_items=ids[asked["recent"]], candidates=ids[asked["candidates"]], **features)["score"]
    given = [asked[name] for name in ("recent", "candidates", "candidate_features", "visit_features")]
    inputs = next_click.inputs_of(encoder, next_click.unit(encoder.item.embeddings), *given)
    np.testing.assert_allclose(score, ranker(inputs, asked["candidates"] > 0).numpy(), rtol=1e-4, atol=1e-4)
    found = model.ask("retrieve", recent_items=ids[asked["recent"]])["item"]
    assert found.tolist() == ids[next_click.retrieve(encoder, asked["recent"])].tolist()
    model.close()


def test_an_unknown_item_in_a_visit_changes_nothing(trained: tuple, tmp_path: Path) -> None:  # type: ignore[type-arg]
    learnt, encoder, ranker, _ = trained
    next_click.write(encoder, ranker, list(learnt.rows), tmp_path / "1")
    model = Model(tmp_path / "1")
    visit = np.full((2, 20), b"", dtype=object)
    visit[0, :2] = b"item-4", b"item-3"
    visit[1, :4] = b"new", b"item-4", b"newer", b"item-3"
    found = model.ask("retrieve", recent_items=visit)
    np.testing.assert_allclose(found["score"][0], found["score"][1], rtol=1e-5)
    model.close()


def test_candidates_are_distinct_and_start_with_the_visit(trained: tuple) -> None:  # type: ignore[type-arg]
    *_, asked = trained
    for recent, candidates in zip(asked["recent"], asked["candidates"], strict=True):
        shown = candidates[candidates > 0]
        assert len(set(shown.tolist())) == len(shown) <= CANDIDATES
        assert shown[0] == recent[0]


def test_a_visit_of_unknown_items_is_answered_too(trained: tuple) -> None:  # type: ignore[type-arg]
    learnt, encoder, *_ = trained
    nobody = [Case(["new"], [0.0], "newer")]
    for name in ("popular", "sr", "vsknn", "stan", "gru"):
        assert len(baseline(name, learnt, encoder)(nobody)) == 1


def test_an_unknown_baseline_is_refused_before_anything_is_learnt(visits: Visits) -> None:
    with pytest.raises(SettingsError, match="expected one of popular, sr"):
        evaluate(visits, ("best",), quiet)
