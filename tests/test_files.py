"""Files appear whole or not at all."""

import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lplgrad_backend.files import (
    is_leftover,
    keep_private,
    remove_folder,
    remove_leftovers,
    whole_folder,
    write_whole,
)


@pytest.mark.parametrize(
    ("before", "file", "folder"), [(0o022, 0o640, 0o750), (0o000, 0o660, 0o770), (0o077, 0o600, 0o700)]
)
def test_what_is_kept_private_others_cannot_read(tmp_path: Path, before: int, file: int, folder: int) -> None:
    kept = os.umask(before)
    try:
        keep_private()
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir()
    finally:
        os.umask(kept)
    assert (tmp_path / "file").stat().st_mode & 0o777 == file
    assert (tmp_path / "folder").stat().st_mode & 0o777 == folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [True, False])
def test_write_whole_replaces(tmp_path: Path, durable: bool) -> None:
    write_whole(tmp_path / "a", b"one", durable=durable)
    write_whole(tmp_path / "a", b"two", durable=durable)
    assert (tmp_path / "a").read_bytes() == b"two"
    assert names(tmp_path) == ["a"]


def test_a_refused_write_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()  # a folder in the way: the rename fails after the temporary file was written
    with pytest.raises(OSError):
        write_whole(tmp_path / "a", b"x")
    assert names(tmp_path) == ["a"]


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "v1") as folder:
        (folder / "weights").write_bytes(b"w")
        assert not (tmp_path / "v1").exists()
    assert (tmp_path / "v1" / "weights").read_bytes() == b"w"
    assert names(tmp_path) == ["v1"]


def test_an_interrupted_folder_never_appears(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "v1") as folder:
        (folder / "weights").write_bytes(b"w")
        raise RuntimeError
    assert names(tmp_path) == []


def test_a_folder_is_never_overwritten(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "v1") as folder:
        (folder / "a").write_bytes(b"first")
    with pytest.raises(FileExistsError), whole_folder(tmp_path / "v1") as folder:
        (folder / "a").write_bytes(b"second")
    assert (tmp_path / "v1" / "a").read_bytes() == b"first"


def test_removing_what_is_gone_is_no_error(tmp_path: Path) -> None:
    remove_folder(tmp_path / "v1")


def test_what_nobody_writes_any_more_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    (tmp_path / ".v2.abc.tmp").mkdir()
    (tmp_path / ".v2.abc.tmp" / "weights").write_bytes(b"half")
    (tmp_path / ".mark.tasks.abc.tmp").write_bytes(b"of a writer that was killed")
    (tmp_path / "v1").mkdir()
    with (tmp_path / ".status.json.def.tmp").open("xb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        assert not is_leftover(tmp_path / ".status.json.def.tmp")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [".status.json.def.tmp", "v1"]
    assert is_leftover(tmp_path / ".status.json.def.tmp")


def test_writers_and_removers_at_once_lose_nothing(tmp_path: Path) -> None:
    done = threading.Event()

    def tidy() -> None:
        while not done.is_set():
            remove_leftovers(tmp_path)

    tidying = threading.Thread(target=tidy)
    tidying.start()
    try:
        with ThreadPoolExecutor(4) as writers:
            for number in writers.map(lambda n: write_whole(tmp_path / str(n % 3), b"%d" % n) or n, range(300)):
                assert (tmp_path / str(number % 3)).exists()
    finally:
        done.set()
        tidying.join()
    assert names(tmp_path) == ["0", "1", "2"]


def test_a_temporary_file_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write_whole(tmp_path / "deep" / "a", b"x", through=tmp_path)
    assert (names(tmp_path), names(tmp_path / "deep")) == (["deep"], ["a"])
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "a", b"x", through=tmp_path)
    assert names(tmp_path) == ["deep"]
