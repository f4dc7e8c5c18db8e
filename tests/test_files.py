"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from lplgrad_backend.files import remove_folder, remove_leftovers, whole_folder, write_whole


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


def test_leftover_folders_go_and_fresh_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / ".v2.abc.tmp").mkdir()
    (tmp_path / ".v2.abc.tmp" / "weights").write_bytes(b"half")
    (tmp_path / ".mark.tasks.abc.tmp").write_bytes(b"being written")
    (tmp_path / "v1").mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".mark.tasks.abc.tmp", "v1"]
