"""The file of a training in progress: whole and one's own, or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lplgrad_backend.checkpoint_file import is_damaged, read_checkpoint, write_checkpoint
from lplgrad_backend.errors import StoreError

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([], dtype=np.uint8), "c": np.array(7)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "3" / "checkpoint"
    write_checkpoint(file, "key", (4, 17), ARRAYS)
    return file


def test_what_was_written_is_read(file: Path) -> None:
    found = read_checkpoint(file, "key")
    assert found is not None
    numbers, arrays = found
    assert numbers == (4, 17)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)
    assert [path.name for path in file.parent.iterdir()] == ["checkpoint"]


def test_the_last_one_counts(file: Path) -> None:
    write_checkpoint(file, "key", (5, 21), {"a": np.zeros(1)})
    found = read_checkpoint(file, "key")
    assert found is not None
    assert found[0] == (5, 21)


def test_anothers_is_none(file: Path) -> None:
    assert read_checkpoint(file, "another key") is None
    assert not is_damaged(file)


def test_where_there_is_none(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "checkpoint", "key") is None
    assert not is_damaged(tmp_path / "checkpoint")


@pytest.mark.parametrize("length", [0, 5, 40, -1])
def test_half_of_one_is_none(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])
    assert read_checkpoint(file, "key") is None
    assert is_damaged(file)


@pytest.mark.parametrize("place", [0, 31, 33, 60, -1])
def test_one_with_a_flipped_bit_is_none(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)
    assert read_checkpoint(file, "key") is None
    assert is_damaged(file)


def test_a_refusing_disk_is_named() -> None:
    with pytest.raises(StoreError, match="checkpoint cannot be written below MODEL_DIR, in /dev/null/1"):
        write_checkpoint(Path("/dev/null/1/checkpoint"), "key", (1, 1), ARRAYS)
