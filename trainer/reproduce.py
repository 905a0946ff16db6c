"""`python -m trainer.reproduce VERSION`: makes a version again from its lineage, and says whether every weight is the same, bit for bit.

The steps that led to it are taken again, from the first model on, each with the settings of its release and on the very records that it read
then. What people or the machine decided is taken over: whether a model server could serve it in time. Nothing is served or told.

It needs the log as far back as the first of those steps read it (`training-examples` are kept for 30 days; of the catalog only the latest record
of each item stays, so that embeddings which have changed since are not those of then), and the same versions of code and libraries.
"""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from features.feature_set import FeatureSet
from features.registry import FeatureRegistry
from liveshelf.errors import LiveshelfError, NotFoundError
from liveshelf.settings import Settings, load_settings
from streams.records import Release
from trainer import lineage, releases
from trainer.gate import Verdict
from trainer.intake import Batch, from_clickstream, from_examples
from trainer.log import Offsets
from trainer.step import Made, Trainer, Tried


class Reproduced(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    steps: int
    """Releases that were made again, the version's own included."""
    weights: str
    """Hash of what was made now."""
    expected: str
    """Hash of what was made then."""
    other_code: dict[str, str]
    """Code of then that is another now; any of it may make other weights."""

    @property
    def same(self) -> bool:
        return self.weights == self.expected


def reproduce(settings: Settings, features: FeatureSet, history: Iterable[Release], version: int, home: Path) -> Reproduced:
    """Make `version` again under `home`, which must be empty.

    Raises:
        NotFoundError: no such version, or the log does not reach back to what it was made of.
        UnavailableError: Kafka does not answer.
    """
    chain = chain_of(history, version)
    for release in chain:
        weights = _again(settings, features, release, home)
    made = chain[-1].lineage
    assert made is not None
    now = lineage.code()
    return Reproduced(
        version=version,
        steps=len(chain),
        weights=weights,
        expected=made.weights,
        other_code={name: then for name, then in made.code.items() if now.get(name) != then},
    )


def chain_of(history: Iterable[Release], version: int) -> list[Release]:
    """The releases that led to `version`, refused ones included, since they moved the log's offsets; it stands last.

    Where a checkpoint was lost the trainer went back and took other steps from there: those that were given up are not among them.
    """
    made = [(release, release.lineage) for release in history if release.lineage is not None]
    at = next((n for n, (release, _) in enumerate(made) if release.version == version), None)
    if at is None:
        raise NotFoundError(f"no release with a lineage is known of version {version}; `liveshelf models` lists the versions")
    found = [made[at]]
    for release, of in reversed(made[:at]):
        if of.step < found[-1][1].step and release.feature_version == found[-1][0].feature_version:
            found.append((release, of))
    first, of = found[-1]
    if of.step != len(of.reads):
        raise NotFoundError(f"version {version} goes back to version {first.version} and beyond, and of that no lineage is known")
    return [release for release, _ in reversed(found)]


class _Again(Trainer):
    """Takes one step again, from the checkpoint that the steps before left in its data directory."""

    until: Offsets
    then: Release
    now: Release | None = None

    def _read(self, kind: str) -> Batch:
        if kind == "bootstrap":
            return from_clickstream(self._settings, self._state.offsets, self.features, self.until)
        return from_examples(self._settings, self._state.offsets, self._state.consumed, self.features, self.until)

    def _tried(self, made: Made, place: Path, version: int, items: int) -> Tried:
        place.mkdir()  # the card's
        return Tried(Verdict(self.then.outcome == "promoted", self.then.reason), {})

    def _tell(self, release: Release) -> None:
        self.now = release  # the log knows it already

    def _finish(self) -> None:
        """There is nothing to finish: nobody is served."""


def _again(settings: Settings, features: FeatureSet, release: Release, home: Path) -> str:
    """The hash of the weights that the step of `release` makes."""
    of = release.lineage
    assert of is not None
    trainer = _Again(msgspec.structs.replace(settings, data_dir=str(home), **of.settings), features)
    trainer.then = release
    for end in of.reads:
        trainer.until = end
        trainer.step()
    trainer.until = release.offsets
    result = trainer.bootstrap() if of.kind == "bootstrap" else trainer.step()
    if trainer.now is None or trainer.now.lineage is None:
        raise NotFoundError(f"version {release.version} cannot be made again: {result.reason}")
    return trainer.now.lineage.weights


def main() -> int:
    """Exit 0 when the weights are the same, 1 when they are not."""
    if len(sys.argv) != 2 or not sys.argv[1].isdigit():
        print("usage: python -m trainer.reproduce VERSION", file=sys.stderr)  # noqa: T201
        return 2
    version = int(sys.argv[1])
    try:
        settings = load_settings()
        history = releases.history(settings)
        wanted = next((r.feature_version for r in history if r.version == version), "")
        registry = FeatureRegistry(settings)
        if (features := registry.feature_set(wanted)) is None:
            raise NotFoundError(
                f"version {version} learnt from features {wanted or 'that nobody knows of'}, which are not registered"
            )
        with tempfile.TemporaryDirectory(prefix="liveshelf-reproduce-") as home:
            found = reproduce(settings, features, history, version, Path(home))
    except LiveshelfError as error:
        print(f"reproduce: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(msgspec.json.encode({**msgspec.to_builtins(found), "same": found.same}).decode())  # noqa: T201
    return 0 if found.same else 1


if __name__ == "__main__":
    sys.exit(main())
