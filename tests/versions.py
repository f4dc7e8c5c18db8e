"""Small versions for tests: everything real but the network, which is one tensor."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from lplgrad_backend.labeling import Labeling
from lplgrad_backend.store import Manifest, PoolScores, Store, address_digest

LABELING = Labeling(from_name="kind", to_name="image", data_key="image", classes=("cat", "dog"), multiple=False)


LIKELY = {2: [0.75, 0.25], 3: [0.3, 0.1, 0.6]}


def pool_scores(
    tasks: Sequence[tuple[int, str]],
    scores: Sequence[float] | None = None,
    random: Collection[int] | None = None,
    classes: int = 2,
) -> PoolScores:
    """Scores of these tasks; by default spread over (0, 1) in the order given. `random`: tasks drawn at random. Of the
    classes the last is likeliest but for two, of which it is the first."""
    count = len(tasks)
    values = np.asarray(scores if scores is not None else np.linspace(0.1, 0.9, count), dtype=np.float64)
    return PoolScores(
        tasks=np.array([task for task, _ in tasks], dtype=np.int64),
        addresses=np.array([address_digest(uri) for _, uri in tasks], dtype=np.int64),
        norms=1.0 / values - 1.0,
        worth=1.0 / values - 1.0,
        scores=values,
        probabilities=np.tile(np.array(LIKELY[classes], dtype=np.float32), (count, 1)),
        predicted_losses=np.linspace(2.0, 1.0, count),
        random=np.zeros(count, dtype=bool) if random is None else np.isin([task for task, _ in tasks], list(random)),
    )


def save_version(
    store: Store,
    project: int,
    version: str,
    *,
    labeling: Labeling = LABELING,
    tasks: Sequence[tuple[int, str]] = ((1, "/a.png"), (2, "/b.png")),
    digests: dict[str, str] | None = None,
    unreadable: dict[int, str] | None = None,
    held_back: str = "",
    metrics: dict[str, float] | None = None,
    random: Collection[int] | None = None,
    **further: Any,
) -> Manifest:
    """Save a version whose weights are four numbers. `further`: what else its manifest says."""
    weights = store.folder / "weights.tmp"
    weights.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file({"head.weight": np.arange(4, dtype=np.float32)}, weights)
    draft = {
        "project": project,
        "version": version,
        "created": datetime(2026, 1, 1, tzinfo=UTC),
        "labeling": labeling,
        "architecture": {},
        "recipe": {},
        "seed": 0,
        "labels": {"cat": 1, "dog": 1},
        "scale": 1.0,
        "newest_task": max((task for task, _ in tasks), default=0),
        "metrics": metrics or {},
        "unreadable": unreadable or {},
        "held_back": held_back,
        **further,
    }
    manifest = store.save(draft, weights, digests or {}, pool_scores(tasks, random=random))
    Path(weights).unlink()
    return manifest
