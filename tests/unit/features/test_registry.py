"""Feature versions in Feast's registry: who is known, in which order, and what another way of folding left there."""

from pathlib import Path

import pytest

from features import declarations
from features.declarations import default_text
from features.feature_set import FeatureSet, load_feature_set
from features.registry import FeatureRegistry
from liveshelf.errors import ConflictError, NotFoundError
from liveshelf.settings import Settings
from tests.conftest import local_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return local_settings(tmp_path)


def of(n: int) -> FeatureSet:
    """A version that keeps `n` items."""
    return load_feature_set(default_text().replace("    n: 20\n", f"    n: {n}\n"), "test")


def test_versions_stand_in_the_order_of_their_registration_for_every_process(settings: Settings) -> None:
    registry = FeatureRegistry(settings)
    assert not registry.registered()
    assert registry.newest().version == of(20).version  # what is declared, until something is registered
    for n in (20, 10, 30, 10):
        registry.register(of(n))
    for one in (registry, FeatureRegistry(settings)):
        assert list(one.feature_sets()) == [of(n).version for n in (20, 10, 30)]
        assert one.newest().sequence.n == 30


def test_a_version_that_is_being_rebuilt_is_known_and_not_among_those_that_are_served(settings: Settings) -> None:
    registry = FeatureRegistry(settings)
    registry.register(of(20))
    registry.register(of(30), rebuilding=True)
    assert list(registry.feature_sets()) == [of(20).version]
    assert registry.rebuilding() == {of(30).version}
    assert registry.feature_set(of(30).version) is not None
    with pytest.raises(ConflictError, match="the only one"):
        registry.retire(of(20).version)
    registry.activate(of(30).version)
    assert registry.newest().version == of(30).version
    registry.retire(of(20).version)
    assert list(registry.feature_sets()) == [of(30).version]
    for call in (registry.retire, registry.activate):
        with pytest.raises(NotFoundError, match=of(20).version):
            call(of(20).version)


def test_versions_of_another_fold_format_are_passed_over_so_that_the_agents_fold_anew(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Liveshelf was upgraded: rows of before cannot be read by this fold, and the log gives new ones."""
    with monkeypatch.context() as before:
        before.setattr(declarations, "FOLD_FORMAT", declarations.FOLD_FORMAT - 1)
        old = of(20)
        FeatureRegistry(settings).register(old)
    registry = FeatureRegistry(settings)
    assert old.version != of(20).version
    assert not registry.registered()
    registry.register_first()
    assert list(registry.feature_sets()) == [of(20).version]
