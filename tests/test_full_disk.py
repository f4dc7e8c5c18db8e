"""A disk that is full or read-only: said in words, nothing lost, and the backend goes on when there is room again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_stage import ROOT, ChaosStage, chaos_stage
from learner_stage import Stage

pytestmark = pytest.mark.timeout(300)

MEGABYTE = 2**20
SAVED, NOTHING = 300_000, 5_000  # bytes left: too little for a version, and for the queue's own notes


class SmallDisk:
    """A file system in memory. Needs root, as the tests of several machines do."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._filler = folder, folder / "filler"

    def mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)], check=True, timeout=30)

    def fill(self, left: int) -> None:
        state = os.statvfs(self.folder)
        self._filler.write_bytes(bytes(state.f_bavail * state.f_frsize - left))

    def empty(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = SmallDisk(folder)
    disk.mount(f"size={24 * MEGABYTE}")
    yield disk
    subprocess.run(["umount", str(folder)], check=True, timeout=30)


def last_error(stage: ChaosStage) -> str:
    return stage.wait_until(lambda: stage.status.last_error, "an error")


def test_a_full_disk_is_said_and_nothing_is_lost(disk: SmallDisk) -> None:
    with chaos_stage(disk.folder, LPLGRAD_SWEEP_SECONDS="2") as stage:
        stage.label()
        stage.settle()
        disk.fill(SAVED)
        stage.label()
        said = last_error(stage)
        assert "cannot be written below MODEL_DIR" in said and str(stage.models) in said
        assert "the disk is full. Make room there" in said
        assert stage.is_up()
        disk.empty()
        stage.settle()  # every label is learned, every task ordered, check() finds nothing
        assert stage.status.last_error is None
        disk.fill(NOTHING)
        stage.label()  # the webhooks cannot be noted
        assert stage.is_up()
        disk.empty()
        stage.settle()
        assert stage.status.published == "v3"


def test_a_read_only_folder_is_said(disk: SmallDisk) -> None:
    stage = Stage(disk.folder)
    stage.label(10)
    stage.look()
    disk.mount("remount,ro")
    stage.label(10, first=10)
    assert stage.learner.reconcile(stage.project) is False  # somebody has to look again
    assert len(stage.orders) == 1
    started = subprocess.run(
        [sys.executable, "-m", "lplgrad_backend", "serve", "--port", "0"], cwd=ROOT, timeout=120,
        env={**os.environ, "MODEL_DIR": str(disk.folder)}, capture_output=True, text=True,
    )  # fmt: skip
    assert started.returncode != 0
    assert "MODEL_DIR" in started.stderr and "Read-only file system" in started.stderr
    assert "Traceback" not in started.stderr
    disk.mount("remount,rw")
    assert stage.look().published == "v2"
