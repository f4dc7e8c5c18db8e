"""How many processors this process may use: fewer than the machine has, in a container with a limit."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_processors(cgroups: Path = CGROUPS) -> int:
    """Processors that the kernel lets this process run on, less where a container's share of time is smaller.

    More threads than that wait for each other: a training step then takes many times as long.

    Args:
        cgroups: where Linux tells the limit (Documentation/admin-guide/cgroup-v2.rst: cpu.max; cgroup-v1: cpu.cfs_*).

    Returns:
        At least 1. A share of 1.5 processors counts as 2.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _share(cgroups)
    return max(1, math.ceil(min(cores, share))) if share is not None else cores


def _share(cgroups: Path) -> float | None:
    """Processors' worth of time that the cgroup is given, None where there is no limit or nobody tells."""
    version_1 = (cgroups / "cpu" / "cpu.cfs_quota_us", cgroups / "cpu" / "cpu.cfs_period_us")
    try:
        files = version_1 if version_1[0].is_file() else (cgroups / "cpu.max",)
        quota, period = (float(word) for file in files for word in file.read_text().split())
    except (OSError, ValueError):  # `max` is no number: no limit
        return None
    return quota / period if quota > 0 and period > 0 else None
