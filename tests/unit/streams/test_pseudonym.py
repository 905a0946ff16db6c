"""Pseudonyms: one key whoever starts first, and no id without it."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from liveshelf.errors import ConflictError, CorruptError
from liveshelf.settings import Settings
from streams.pseudonym import KEY_BYTES, KEY_FILE, Pseudonyms


def settings_in(path: Path) -> Settings:
    return msgspec.structs.replace(Settings(), data_dir=str(path))


def test_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "new" / "data")
    first = Pseudonyms.open(settings)
    key = settings.data_path / KEY_FILE
    assert len(key.read_bytes()) == KEY_BYTES
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert [path.name for path in settings.data_path.iterdir()] == [KEY_FILE], "the draft is gone"
    assert Pseudonyms.open(settings).shopper("", "c", "") == first.shopper("", "c", "")


def test_processes_that_start_together_end_with_one_key(tmp_path: Path) -> None:
    for attempt in range(20):
        settings = settings_in(tmp_path / str(attempt))
        with ThreadPoolExecutor(8) as pool:
            seen = set(pool.map(lambda _: Pseudonyms.open(settings).shopper("u", "", ""), range(8)))  # noqa: B023
        assert len(seen) == 1


@pytest.mark.parametrize("content", [b"", b"short", bytes(KEY_BYTES + 1)])
def test_key_of_another_size_is_refused(tmp_path: Path, content: bytes) -> None:
    key = tmp_path / KEY_FILE
    key.write_bytes(content)
    key.chmod(0o600)
    with pytest.raises(CorruptError, match=f"holds {len(content)} bytes"):
        Pseudonyms.open(settings_in(tmp_path))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_key_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    Pseudonyms.open(settings_in(tmp_path))
    (tmp_path / KEY_FILE).chmod(mode)
    with pytest.raises(CorruptError, match="chmod 600"):
        Pseudonyms.open(settings_in(tmp_path))


def test_data_directory_that_cannot_be_made_is_a_conflict(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConflictError, match="LIVESHELF_DATA_DIR"):
        Pseudonyms.open(settings_in(tmp_path / "file" / "data"))


def test_known_answer() -> None:
    """The algorithm may never change: shoppers would all become strangers. By `openssl dgst -sha256 -mac HMAC`."""
    pseudonyms = Pseudonyms(b"k" * KEY_BYTES)
    assert pseudonyms.shopper("ann@shop.example", "", "") == "176ed188327b1f0d32714a84240f1a84"


def test_first_id_that_is_set_names_the_shopper_and_its_kind_counts() -> None:
    pseudonyms = Pseudonyms(os.urandom(KEY_BYTES))
    assert pseudonyms.shopper("u", "c", "s") == pseudonyms.shopper("u", "", "")
    assert pseudonyms.shopper("", "c", "s") == pseudonyms.shopper("", "c", "")
    one_id = "7"
    names = {
        pseudonyms.shopper(one_id, "", ""),
        pseudonyms.shopper("", one_id, ""),
        pseudonyms.shopper("", "", one_id),
        pseudonyms.session(one_id),
    }
    assert len(names) == 4
    assert pseudonyms.shopper("", "", "") == pseudonyms.session("") == ""
    assert all(len(name) == 32 for name in names)


def test_another_key_gives_other_pseudonyms() -> None:
    assert Pseudonyms(b"a" * KEY_BYTES).session("s") != Pseudonyms(b"b" * KEY_BYTES).session("s")
