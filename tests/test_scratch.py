"""Folders of running rounds: gone at the end, told from what a killed process left, removed with their project's others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lplgrad_backend.scratch import left_scratch, remove_scratch, scratch
from lplgrad_backend.store import Store

KILLED = """
import os, signal, sys
from pathlib import Path
from lplgrad_backend.scratch import scratch
with scratch(Path(sys.argv[1]), 3) as folder:
    (folder / "shards").mkdir()
    (folder / "shards" / "0.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_is_there_for_its_block_and_then_gone(tmp_path: Path) -> None:
    with scratch(tmp_path / "scratch", 3) as first, scratch(tmp_path / "scratch", 3) as second:
        assert first != second and first.name.startswith("3-")
        (first / "inside").mkdir()
        assert left_scratch(tmp_path / "scratch") == []
    assert list((tmp_path / "scratch").iterdir()) == []


def test_it_goes_also_when_its_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on purpose"), scratch(tmp_path, 3):
        raise ValueError("on purpose")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_round_left_is_named_and_goes_with_the_next_look_at_its_project(tmp_path: Path) -> None:
    store = Store(tmp_path)
    subprocess.run([sys.executable, "-c", KILLED, str(store.scratch_folder)], check=False, timeout=60)
    with scratch(store.scratch_folder, 4) as at_work:
        left = left_scratch(store.scratch_folder)
        assert len(left) == 1 and left[0].startswith("3-")
        assert store.check() == [f"scratch/{left[0]} was left by an interrupted round."]
        remove_scratch(store.scratch_folder, 33)
        assert left_scratch(store.scratch_folder) == left
        store.tidy(3)
        assert [path.name for path in store.scratch_folder.iterdir()] == [at_work.name]
    assert store.check() == []
