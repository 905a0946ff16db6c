"""What a step works on: new records of the log as samples, one in ten of them set aside for judging models."""

import hashlib
from collections.abc import Collection

import msgspec
import numpy as np

from features.encoder import Encoder
from features.events import Event
from features.feature_set import FeatureSet
from features.rows import CatalogItem
from liveshelf.settings import Settings
from streams.topics import CATALOG, CLICKSTREAM, TRAINING_EXAMPLES
from trainer import bootstrap
from trainer.examples import LearntExample, samples_of
from trainer.log import Logged, LogReader, Offsets
from trainer.samples import Sample, Samples, concat, empty, stack

UNSEEN_ONE_IN = 10
ENCODED_AT_ONCE = 1_000  # samples one by one are several times the size of columns


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """New material, split into what is learnt from and what never is."""

    kind: str
    """`bootstrap` or `step`."""
    offsets: Offsets
    consumed: int
    """Records read, those that could not be used included."""
    train: Samples
    unseen: Samples
    unusable: int = 0
    duplicates: int = 0
    request_ids: list[str] = []
    catalog: list[CatalogItem] = []
    """Its new records."""
    time_ms: int = 0
    """About when it happened: the median of its examples' times, so that a wrong clock here and there moves nothing; the last event's."""


def from_clickstream(settings: Settings, offsets: Offsets, features: FeatureSet, until: Offsets | None = None) -> Batch:
    """The event log, replayed into samples. `offsets` of other topics are kept: examples made of the same events hold shelves that were
    really shown, and are learnt from next. `until`: the read that ended there, once more.

    Raises:
        UnavailableError: Kafka does not answer.
        NotFoundError: the log does not hold what was read until `until`.
    """
    reader = LogReader(settings, CLICKSTREAM, Event, latest=bootstrap.EVENTS_MAX // settings.partitions, until=until)
    partitions: dict[int, list[Logged[Event]]] = {}
    for events in reader:
        for logged in events:
            partitions.setdefault(logged.partition, []).append(logged)
    catalog, catalog_offsets = _catalog(settings, {}, until)
    merged = list(bootstrap.merge(partitions[p] for p in sorted(partitions)))
    split = Split(features)
    for event_id, sample in bootstrap.replay(merged, catalog, settings.seed, features):
        split.add(event_id, sample)
    train, unseen = split.encoded()
    return Batch(
        kind="bootstrap",
        offsets=offsets | catalog_offsets | reader.offsets,
        catalog=catalog,
        time_ms=merged[-1].record.time_ms if merged else 0,
        consumed=len(merged) + reader.undecodable,
        train=train,
        unseen=unseen,
        unusable=split.left_out + reader.undecodable,
    )


def from_examples(
    settings: Settings, offsets: Offsets, already: Collection[str], features: FeatureSet, until: Offsets | None = None
) -> Batch:
    """Examples from `offsets` on, without those whose request id (and late purchase) is in `already` or came before: the join delivers at
    least once. `until`: the read that ended there, once more.

    Raises:
        UnavailableError: Kafka does not answer.
        NotFoundError: the log does not hold what was read until `until`.
    """
    oldest = -(-settings.train_examples_max // settings.partitions)
    reader = LogReader(settings, TRAINING_EXAMPLES, LearntExample, offsets, oldest=oldest, until=until)
    seen, ids, encoder = set(already), [], Encoder(features)
    heaps: tuple[list[Samples], list[Samples]] = ([empty(features)], [empty(features)])
    times: list[int] = []
    consumed = duplicates = unusable = 0
    catalog, catalog_offsets = _catalog(settings, offsets, until)
    for logged in reader:
        new = {}
        for _, _, example in logged:
            if (key := f"{example.request_id}/{example.late}" if example.late else example.request_id) not in seen:
                seen.add(key)
                new[key] = example
        keys, examples = list(new), list(new.values())
        samples, of = samples_of(examples, encoder)
        aside = np.array([is_unseen(examples[n].request_id) for n in of], dtype=bool)  # a late purchase with its own shelf
        for heap, rows in zip(heaps, (~aside, aside), strict=True):
            heap.append(samples.take(rows))
        ids += keys
        times += [example.time_ms for example in examples]
        consumed += len(logged)
        duplicates += len(logged) - len(new)
        unusable += len(new) - samples.size
    train, unseen = (concat(*heap) for heap in heaps)
    return Batch(
        kind="step",
        offsets=offsets | catalog_offsets | reader.offsets,
        catalog=catalog,
        time_ms=int(np.median(times)) if times else 0,
        consumed=consumed + reader.undecodable,
        train=train,
        unseen=unseen,
        unusable=unusable + reader.undecodable,
        duplicates=duplicates,
        request_ids=ids,
    )


def _catalog(settings: Settings, offsets: Offsets, until: Offsets | None) -> tuple[list[CatalogItem], Offsets]:
    """The catalog's records from `offsets` on, and where they end."""
    reader = LogReader(settings, CATALOG, CatalogItem, offsets, until=until)
    return [logged.record for items in reader for logged in items], reader.offsets


def is_unseen(key: str) -> bool:
    """Whether the request or event `key` is set aside: the same answer in every run, so no later model learns from it either."""
    return int.from_bytes(hashlib.sha1(key.encode(), usedforsecurity=False).digest()) % UNSEEN_ONE_IN == 0


class Split:
    """Sorts samples into two heaps, putting them into columns as they come."""

    def __init__(self, features: FeatureSet) -> None:
        self.left_out = 0
        self._features = features
        self._waiting: tuple[list[Sample], list[Sample]] = ([], [])
        self._encoded: tuple[list[Samples], list[Samples]] = ([empty(features)], [empty(features)])

    def add(self, key: str, sample: Sample) -> None:
        heap = int(is_unseen(key))
        self._waiting[heap].append(sample)
        if len(self._waiting[heap]) >= ENCODED_AT_ONCE:
            self._encode(heap)

    def encoded(self) -> tuple[Samples, Samples]:
        """(to learn from, never to be learnt from)."""
        for heap in (0, 1):
            self._encode(heap)
        return concat(*self._encoded[0]), concat(*self._encoded[1])

    def _encode(self, heap: int) -> None:
        samples, left_out = stack(self._waiting[heap], self._features)
        self._encoded[heap].append(samples)
        self._waiting[heap].clear()
        self.left_out += left_out
