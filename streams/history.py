"""Replays the log into the features' history (see `features.history`), partition by partition, in processes of its own."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from features.feature_set import FeatureSet, to_text
from features.history import PartitionHistory, put_in_place
from features.store import FeatureRows
from liveshelf.settings import Settings
from streams.partition_log import PartitionLog
from streams.processes import Progress, in_processes
from streams.rebuild import STORE_TIMEOUT_S, Part, PartitionFold, States, given_states, given_upto, hand_over_all


class HistoryPart(NamedTuple):
    part: Part
    given: States
    given_upto: int
    directory: Path


def write_history(
    settings: Settings, features: FeatureSet, directory: Path, progress: Progress, begin: Progress
) -> tuple[int, int]:
    """Write the history of `features`, of the whole log as it is now, into `directory`; return how many events and rows of history.

    `begin` is told how many records there are to read, `progress` how many were.

    Raises:
        UnavailableError: store or broker does not answer; an earlier history stays as it was.
    """
    reader = PartitionLog(settings)
    spans = {p: reader.ends(p) for p in range(settings.partitions)}
    lows, highs = {p: low for p, (low, _) in spans.items()}, {p: high for p, (_, high) in spans.items()}
    begin(2 * sum(highs[p] - lows[p] for p in spans))
    given = given_states(hand_over_all(settings, features, lows, highs, progress))
    upto = given_upto(FeatureRows(settings, STORE_TIMEOUT_S), features.version)
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory) as fresh:
        parts = [HistoryPart(Part(settings, to_text(features), p, lows[p], highs[p]), given, upto[p], Path(fresh)) for p in spans]
        written = in_processes(history_partition, parts, progress)
        put_in_place(features, Path(fresh), directory)
    return sum(events for events, _ in written), sum(rows for _, rows in written)


def history_partition(task: HistoryPart, progress: Progress) -> tuple[int, int]:
    """Fold one partition and write down every change; return its events and rows of history."""
    part, given, upto, directory = task
    features = part.features()
    folded = PartitionFold(features, part.partition, given, upto)
    with PartitionHistory(features, directory, part.partition) as history:
        folded.changed = history.changed
        for batch in PartitionLog(part.settings).read(part.partition, part.start, part.end):
            folded.fold(batch)
            progress(len(batch))
    return folded.events, history.rows
