"""The exported SavedModel: answers as the Keras model does, needs nothing of ours, and appears whole or not at all."""

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.planted_shop import FEATURES, PlantedShop
from trainer import directory, export, inverted_file
from trainer.examples import samples_of
from trainer.gate import unservable
from trainer.learner import Learner, be_deterministic
from trainer.samples import TASKS, Samples
from trainer.vocabulary import FIRST_ROW

tf = pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def shelves() -> Samples:
    be_deterministic()
    shop = PlantedShop()
    shop.events(300)
    return samples_of(shop.examples(64, "r"), shop.encoder)[0]


@pytest.fixture(scope="module")
def learner(shelves: Samples) -> Learner:
    """With items that have a row of their own, a row that was given back, items known by their content alone, and unknown ones."""
    learner = Learner(FEATURES, seed=7)
    known = shelves.take(np.arange(12))
    items = PlantedShop().catalog()
    learner.know(msgspec.structs.replace(item, embedding=(float(n), 1.0, -2.0)) for n, item in enumerate(items[:50]))
    learner.admit(known)  # of the other shelves' items some were seen too rarely
    gone = next(iter(learner.vocabulary.items))
    learner.vocabulary._take(learner.vocabulary.items[gone])
    assert 0 < len(learner.vocabulary) < len(learner.table()[0]) < len(items)
    learner.normalise(shelves)
    learner.fit(known, np.random.default_rng(1), 3, 1e-2)
    return learner


@pytest.fixture(scope="module")
def exported(learner: Learner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "1"
    export.write(learner, path, 1, "shelf")
    return path


def served_inputs(shelves: Samples, candidates: bool) -> dict[str, object]:
    names = ("recent_items", "recent_events", "recent_age", "shopper_features") + ("candidates", "candidate_features") * candidates
    return {name: tf.constant(getattr(shelves, name)) for name in names}


def test_rank_equals_the_keras_model_also_for_unknown_items(learner: Learner, exported: Path, shelves: Samples) -> None:
    served = tf.saved_model.load(str(exported))
    rows = learner.rows(shelves.candidates)
    assert (rows < FIRST_ROW).any(), "unknown"
    assert ((rows >= FIRST_ROW) & (rows < learner.model.capacity)).any(), "with a row"
    assert (rows >= learner.model.capacity).any(), "known by content"
    expected = learner.predict(shelves)
    for signature in ("rank", "serving_default"):
        found = served.signatures[signature](**served_inputs(shelves, candidates=True))
        for i, task in enumerate(TASKS):
            np.testing.assert_allclose(found[task].numpy(), expected[:, :, i], rtol=1e-5, atol=1e-6)


def test_retrieve_equals_a_full_scan_by_the_keras_model(learner: Learner, exported: Path, shelves: Samples) -> None:
    is_full_scan(learner, exported, shelves)


def test_so_it_does_through_blocks_when_all_are_looked_into(
    learner: Learner, shelves: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "EXACT_MAX", 0)
    monkeypatch.setattr(inverted_file, "SIZE", 8)
    monkeypatch.setattr(inverted_file, "CLUSTERED", 10)
    export.write(learner, tmp_path / "1", 1, "shelf")
    assert tf.saved_model.load(str(tmp_path / "1")).rows.shape[0] > 3, "blocks"
    is_full_scan(learner, tmp_path / "1", shelves)


def is_full_scan(learner: Learner, exported: Path, shelves: Samples) -> None:
    found = tf.saved_model.load(str(exported)).signatures["retrieve"](**served_inputs(shelves, candidates=False))
    ids, vectors = learner.table()
    vectors = vectors[FIRST_ROW:]
    cosines = learner.model.similarity(learner.model.shopper(learner._columns(shelves)), vectors).numpy()
    assert found["item"].shape == (64, len(ids))  # fewer items than RETRIEVED_MAX
    np.testing.assert_allclose(found["score"].numpy(), -np.sort(-cosines, axis=1), rtol=1e-4, atol=1e-5)
    index = {item: n for n, item in enumerate(ids)}
    for n in range(0, 64, 16):
        named = [cosines[n, index[item]] for item in found["item"].numpy()[n].tolist()]
        np.testing.assert_allclose(named, found["score"].numpy()[n], rtol=1e-4, atol=1e-5)


def test_shapes_and_warmup_requests(learner: Learner, exported: Path) -> None:
    from tensorflow_serving.apis import prediction_log_pb2

    shapes = {name: shape for name, (shape, finite) in export.probe(exported, FEATURES).outputs.items() if finite}
    assert shapes == export.expected_outputs(len(learner.table()[0]))
    served = tf.saved_model.load(str(exported))
    asked = []
    for record in tf.data.TFRecordDataset(str(exported / "assets.extra" / "tf_serving_warmup_requests")):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
        served.signatures[request.model_spec.signature_name](**inputs)
        asked.append((request.model_spec.signature_name, inputs["candidates"].shape[1] if "candidates" in inputs else 0))
    assert asked == [("retrieve", 0), ("rank", 10), ("rank", 500), ("describe", 0)]


def test_loads_in_a_process_that_has_nothing_of_ours(exported: Path, tmp_path: Path) -> None:
    """Isolated (-I) and elsewhere, with our packages refused should they be installed; no Keras object is asked for either."""
    script = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("liveshelf", "trainer", "features", "streams", "serving"):
            raise ImportError(name + " is ours")
sys.meta_path.insert(0, Refuse())
import tensorflow as tf
model = tf.saved_model.load({str(exported)!r})
assert set(model.signatures) == {{"rank", "retrieve", "describe", "serving_default"}}, set(model.signatures)
out = model.signatures["retrieve"](
    recent_items=tf.fill([1, 20], ""), recent_events=tf.zeros([1, 20], tf.int32),
    recent_age=tf.zeros([1, 20]), shopper_features=tf.zeros([1, {len(FEATURES.shopper_columns)}]))
print(len(out["item"].numpy()[0]))
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 0


def test_every_op_is_registered_in_plain_tensorflow(exported: Path, tmp_path: Path) -> None:
    """What the stock TensorFlow Serving binary knows: asked in a clean process, of the graph and of all functions in it."""
    operations = export.operations(exported)
    assert len(operations) > 20
    assert unservable(operations) == ""
    script = f"""
from tensorflow.python.framework import op_def_registry
print([name for name in {sorted(operations)!r} if op_def_registry.get(name) is None])
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[]"


def test_a_model_that_calls_into_python_is_found_out(tmp_path: Path) -> None:
    """It loads and answers here, in the very process that made it; a stock server refuses to load it."""

    class Calls(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])  # type: ignore[untyped-decorator]
        def rank(self, x: object) -> object:
            return tf.py_function(lambda value: value + 1, [x], tf.float32)

    module = Calls()
    tf.saved_model.save(module, str(tmp_path), signatures={"rank": module.rank})
    assert "EagerPyFunc" in unservable(export.operations(tmp_path))


def test_versions_come_and_go_whole(tmp_path: Path) -> None:
    models = tmp_path / "shelf"
    assert directory.versions(models) == []
    interrupted = directory.partial(models, 1)
    interrupted.mkdir()
    (interrupted / "saved_model.pb").write_bytes(b"half")
    assert directory.live_version(models) == 0
    for version in range(1, directory.KEPT + 4):
        place = directory.partial(models, version)
        assert not place.exists(), "what was left there is gone"
        (place / "variables").mkdir(parents=True)
        (place / "variables" / "data").write_bytes(b"whole")
        directory.publish(place, version)
        assert directory.live_version(models) == version
    assert directory.versions(models) == list(range(4, directory.KEPT + 4))
    assert [entry.name for entry in models.iterdir() if not entry.name.isdigit()] == []
