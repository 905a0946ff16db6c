"""TensorBoard's event files hold what the releases say; the format is read back here record by record."""

from pathlib import Path

import pytest
import tensorflow as tf

from streams.records import Release
from trainer.tensorboard import Board


def release(version: int, outcome: str = "promoted") -> Release:
    return Release(
        model="shelf",
        version=version,
        outcome=outcome,
        reason=f"because of {version}",
        metrics={"served_log_loss": 0.5 + version},
        offsets={},
        examples=10 * version,
        feature_version="f",
        time_ms=0,
    )


def test_each_release_is_a_step_of_one_run(tmp_path: Path) -> None:
    board = Board(str(tmp_path))
    board.tell(release(3))
    board.tell(release(4, "refused"))
    (file,) = (tmp_path / "shelf").iterdir()
    events = [tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(file))]
    told = {
        (event.step, value.tag): (value.metadata.plugin_data.plugin_name, tf.make_ndarray(value.tensor).tolist())
        for event in events
        for value in event.summary.value
    }
    assert told[3, "served_log_loss"] == ("scalars", 3.5)
    assert told[4, "served_log_loss"] == ("scalars", 4.5)
    assert (told[3, "promoted"][1], told[4, "promoted"][1], told[4, "examples"][1]) == (1.0, 0.0, 40.0)
    assert told[4, "reason"] == ("text", [b"because of 4"])
    assert len(told) == 8


def test_a_directory_that_cannot_be_written_is_said_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    Board(str(tmp_path / "file")).tell(release(1))
    assert "tensorboard_not_told" in capsys.readouterr().out
