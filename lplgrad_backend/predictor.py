"""Answering `/predict`: one result per task, in order, always.

A task that the version served scored in its round gets exactly what was published; any other is scored now with the same
network. An unreadable image costs its own task alone.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lplgrad_backend.errors import ImageError, StoreError, TrainingError
from lplgrad_backend.images import Images, Lookups
from lplgrad_backend.labeling import Labeling, image_uri, prediction
from lplgrad_backend.latecomers import insert
from lplgrad_backend.publication import LAST_IN_LINE, UNTRAINED
from lplgrad_backend.scoring import Scorer, load_network
from lplgrad_backend.served import served
from lplgrad_backend.settings import Settings
from lplgrad_backend.store import Manifest, PoolScores, Store, for_classes

log = logging.getLogger(__name__)
UNTRAINED_SCORE = 0.5
VERSIONS_IN_MEMORY = 4


@dataclass(frozen=True)
class _Loaded:
    """A version in memory."""

    manifest: Manifest
    scorer: Scorer
    scores: PoolScores


@dataclass(frozen=True)
class _Answer:
    """What is known of one task: its score and its class probabilities, in the version's classes."""

    score: float
    probabilities: NDArray[np.float32] | None  # [C], None for an image that cannot be read


class Predictor:
    """Predicts with the version that each project is served. Safe for several threads."""

    def __init__(self, settings: Settings, store: Store, images: Images) -> None:
        self._settings, self._store, self._images = settings, store, images
        self._loaded: OrderedDict[tuple[int, str], _Loaded] = OrderedDict()
        self._loading = threading.Lock()

    @property
    def lookups(self) -> Lookups:
        """How often the image cache had what was predicted."""
        return self._images.lookups

    def version(self, project: int) -> str:
        """Name of the version that people are served, or "untrained"."""
        shown = served(self._store, project)
        return shown.version if shown else UNTRAINED

    def predict(self, project: int, labeling: Labeling, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One prediction per task, in order. Lowest score = most informative; 1 for an image that cannot be read."""
        version = self._served(project)
        if version is None:
            return [prediction(labeling, probabilities=None, score=UNTRAINED_SCORE, version=UNTRAINED) for _ in tasks]
        addressed = [_addressed(labeling, task) for task in tasks]
        answers = {at: _published(version, task, uri) for at, (task, uri) in enumerate(addressed)}
        missing = [at for at, answer in answers.items() if answer is None]
        answers |= zip(missing, self._measured(version, [addressed[at] for at in missing]), strict=True)
        return [self._row(version, labeling, answer) for answer in answers.values() if answer is not None]

    def _served(self, project: int) -> _Loaded | None:
        shown = served(self._store, project)
        if shown is None:
            return None
        key = (project, shown.version)
        with self._loading:
            if key not in self._loaded:
                try:
                    self._loaded[key] = self._load(shown)
                except StoreError:
                    log.exception("project %d: %s cannot be loaded", project, shown.version)
                    return None
            self._loaded.move_to_end(key)
            while len(self._loaded) > VERSIONS_IN_MEMORY:
                self._loaded.popitem(last=False)
            return self._loaded[key]

    def _load(self, manifest: Manifest) -> _Loaded:
        network = load_network(manifest, self._store.weights_path(manifest.project, manifest.version))
        return _Loaded(
            manifest,
            Scorer(network, confidence=manifest.temperature),
            self._store.scores(manifest.project, manifest.version),
        )

    def _measured(self, version: _Loaded, tasks: Sequence[tuple[int, str]]) -> list[_Answer]:
        try:
            found = list(version.scorer.measure(self._images, tasks))
        except TrainingError as error:
            log.error("project %d, %s: %s", version.manifest.project, version.manifest.version, error)
            return [_Answer(LAST_IN_LINE, None) for _ in tasks]
        answers = []
        for (task, _), one in zip(tasks, found, strict=True):
            if isinstance(one, ImageError):
                log.warning("project %d, task %d: %s", version.manifest.project, task, one)
                answers.append(_Answer(LAST_IN_LINE, None))
            else:
                score = insert([task], [one], version.scores, version.manifest.scale).scores[0]
                answers.append(_Answer(float(score), one.probabilities))
        return answers

    def _row(self, version: _Loaded, labeling: Labeling, answer: _Answer) -> dict[str, Any]:
        shown = None
        if answer.probabilities is not None and self._settings.preannotate:
            shown = for_classes(answer.probabilities[None], version.manifest.labeling.classes, labeling.classes)[
                0
            ].tolist()
        return prediction(labeling, probabilities=shown, score=answer.score, version=version.manifest.version)


def _addressed(labeling: Labeling, task: Mapping[str, Any]) -> tuple[int, str]:
    try:
        return int(task.get("id") or 0), image_uri(labeling, task)
    except ImageError:
        return int(task.get("id") or 0), ""


def _published(version: _Loaded, task: int, uri: str) -> _Answer | None:
    at = version.scores.position(task, uri)
    return None if at is None else _Answer(float(version.scores.scores[at]), version.scores.probabilities[at])
