"""Threads for the processors that may be used, not for those that the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lplgrad_backend.processors import usable_processors

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("said", "processors"),
    [
        ("max 100000", CORES),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("150000 100000", min(2, CORES)),
        ("100000000 100000", CORES),
        ("0 100000", CORES),
        ("100000 0", CORES),
        ("nan 100000", CORES),
        ("inf 100000", CORES),
        ("", CORES),
        ("nonsense", CORES),
    ],
)
def test_a_limit_of_version_2_counts(tmp_path: Path, said: str, processors: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{said}\n")
    assert usable_processors(tmp_path) == processors


@pytest.mark.parametrize(("quota", "processors"), [("-1", CORES), ("50000", 1), ("150000", min(2, CORES))])
def test_a_limit_of_version_1_counts(tmp_path: Path, quota: str, processors: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert usable_processors(tmp_path) == processors


def test_where_nobody_tells_all_count(tmp_path: Path) -> None:
    assert usable_processors(tmp_path) == CORES


def test_processors_that_are_kept_from_it_do_not_count(tmp_path: Path) -> None:
    one = min(os.sched_getaffinity(0))
    script = f"import os, pathlib; os.sched_setaffinity(0, {{{one}}})\n" + (
        "from lplgrad_backend.processors import usable_processors\n"
        f"print(usable_processors(pathlib.Path({str(tmp_path)!r})))\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout == "1\n"
