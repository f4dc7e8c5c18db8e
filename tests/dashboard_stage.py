"""A project on disk as the status page meets it after some rounds: versions, history, status, images in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from versions import pool_scores, save_version

from lplgrad_backend.history import Choice, Group, History, Suspect, VersionRecord, with_version, write_history
from lplgrad_backend.image_cache import ImageCache, Known
from lplgrad_backend.image_source import ImageSource
from lplgrad_backend.labeling import Labeling
from lplgrad_backend.public_web import PublicWeb
from lplgrad_backend.status import Phase, ProjectStatus, StatusFolder, now
from lplgrad_backend.store import OrderHealth, Store

PROJECT = 3
SIDE = 32
EVIL = "<img src=x onerror=alert(1)>"
CLASSES = ("cat", "dog", EVIL, "a heron & its “young”")
LABELING = Labeling("kind", "image", "image", CLASSES, multiple=False)
TASKS = tuple((number, f"https://pictures.example/{number}.png") for number in range(1, 61))
DRAWN = (2, 22, 42)
MADE: Mapping[str, Any] = {
    "recipe_reason": "frozen: as set.",
    "ordered_by": "badge",
    "health": OrderHealth(
        correlation=-0.2, duplicates=0.1, head_classes=(1, 2), sentence="margin ranks against its uncertainty."
    ),
    "temperature": 1.5,
    "temperature_from": "60 cross-fitted labelled images",
}


def write_project(folder: Path, versions: int = 6) -> Store:
    """Everything that a worker leaves of a project after so many rounds."""
    store = Store(folder)
    history = History()
    for number in range(1, versions + 1):
        manifest = save_version(store, PROJECT, f"v{number}", labeling=LABELING, tasks=TASKS, random=DRAWN, **MADE)
        history = with_version(history, manifest, pool_scores(TASKS, random=DRAWN), dict(TASKS), suspects(), SIDE)
    history = history.model_copy(update={"versions": [judged(record) for record in history.versions]})
    write_history(store, PROJECT, history)
    StatusFolder(folder).write(status())
    keep_images(folder / "images")
    return store


def judged(record: VersionRecord) -> VersionRecord:
    """Better with every version; the last was compared with nothing yet."""
    number = int(record.version[1:])
    if number == 6:
        return record.model_copy(update={"images": 60})
    right = 10 + 3 * number
    named = [
        Choice(predicted=CLASSES[0], chosen=CLASSES[0], count=right - 4),
        Choice(predicted=CLASSES[1], chosen=CLASSES[1], count=4),
    ]
    wrong = [Choice(predicted=EVIL, chosen=CLASSES[3], count=30 - right)]
    groups = {
        "drawn": Group(tasks=[100 + number], agreed=int(number > 1), classes={"cat": 1}),
        "chosen": Group(
            tasks=list(range(200 + 10 * number, 209 + 10 * number)), agreed=4, classes={"cat": 4, "dog": 5}
        ),
    }
    changes = groups | {"images": 10 * number, "compared": 30, "agreed": right, "choices": named + wrong}
    return record.model_copy(update=changes)


def suspects() -> list[Suspect]:
    return [
        Suspect(task=task, uri=TASKS[task - 1][1], label=label, predicted="dog", loss=3.1, expected=0.2, excess=9.0)
        for task, label in ((50, EVIL), (51, "cat"))
    ]


def status() -> ProjectStatus:
    return ProjectStatus(
        project=PROJECT,
        title=f"Birds & pets {EVIL}",
        labels={"cat": 31, "dog": 18, EVIL: 7, CLASSES[3]: 4},
        due="4 more label(s)",
        rounds=6,
        round_seconds=80.0,
        read_at=datetime(2026, 1, 2, 10, 30, tzinfo=UTC),
        published="v6",
        last_error=f"Label Studio, GET /api: {EVIL}",
        last_error_at=datetime(2026, 1, 2, 10, 31, tzinfo=UTC),
        unreadable={58: EVIL},
        unreadable_count=1,
    )


def training(epoch: int) -> ProjectStatus:
    started = now() - timedelta(seconds=30)
    running = {"phase": Phase.TRAINING, "done": epoch, "total": 20, "round_started": started, "phase_started": started}
    return status().model_copy(update=running)


def keep_images(folder: Path) -> None:
    """Digits, as a round has decoded them; twice as wide as high at their source."""
    cache, source = ImageCache(folder, 2**30), ImageSource(None, PublicWeb(allow_private=False, seconds=1.0), 2**20)
    digits = load_digits().images
    for task, uri in TASKS[:-1]:
        grey = np.kron(np.round(digits[task] * (255 / 16)).astype(np.uint8), np.ones((SIDE // 8, SIDE // 8), np.uint8))
        known = Known(hashlib.sha256(grey.tobytes()).hexdigest(), 128, 64)
        cache.keep_known(source.place(uri, task).key, known)
        cache.keep_pixels(known, np.stack([grey] * 3, axis=2))
