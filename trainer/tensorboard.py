"""Tells TensorBoard of each release: every metric as a scalar at the step of its version, and the reason as text.

In TensorBoard's own event format, written by TensorFlow; whoever looks at it has TensorBoard (`tensorboard --logdir DIRECTORY`).
"""

from pathlib import Path

import structlog
import tensorflow as tf

from streams.records import Release

log = structlog.get_logger()


class Board:
    """One run a model, in one file a process."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory).expanduser()
        self._writers: dict[str, object] = {}

    def tell(self, release: Release) -> None:
        """A disk that does not take it is said, and costs nothing but the curves."""
        try:
            if release.model not in self._writers:
                self._writers[release.model] = tf.summary.create_file_writer(str(self._directory / release.model))
            with self._writers[release.model].as_default(step=release.version):  # type: ignore[attr-defined]
                promoted = float(release.outcome == "promoted")
                for name, value in ({"promoted": promoted, "examples": release.examples} | release.metrics).items():
                    tf.summary.write(name, tf.constant(value, tf.float32), metadata=_of_plugin("scalars", "SCALAR"))
                tf.summary.write("reason", tf.constant([release.reason]), metadata=_of_plugin("text", "TENSOR"))
                tf.summary.flush()
        except tf.errors.OpError as error:
            log.warning("tensorboard_not_told", directory=str(self._directory), reason=str(error))


def _of_plugin(name: str, kind: str) -> object:
    metadata = tf.compat.v1.SummaryMetadata(data_class=f"DATA_CLASS_{kind}")
    metadata.plugin_data.plugin_name = name
    return metadata
