"""The order of a pool before there is a trained network: typical images first, by pretrained features or simple ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lplgrad_backend.errors import ImageError, NotLearnable
from lplgrad_backend.frozen_features import FrozenFeatures
from lplgrad_backend.images import Images
from lplgrad_backend.lplgrad.cold_start import cold_queue, simple_features
from lplgrad_backend.lplgrad.training import look_at
from lplgrad_backend.memory import scoring_batch
from lplgrad_backend.preparation import Start, device_of, start_of, typical_side
from lplgrad_backend.rounds import SCORES, Order, Outcome
from lplgrad_backend.scoring import Measured, Readable, as_batch, in_queue, pool_scores
from lplgrad_backend.settings import Settings
from lplgrad_backend.shared_scoring import Sharing
from lplgrad_backend.status import Phase
from lplgrad_backend.store import write_scores

BATCH = 64
TYPICALITY = "typicality"


def order_cold(
    order: Order,
    folder: Path,
    settings: Settings,
    images: Images,
    report: Callable[[Phase, int, int], None],
    sharing: Sharing | None = None,
) -> Outcome:
    """Order the pool of `order`, of which `examples` are labelled already, and write scores. Nothing is trained; norms
    and probabilities of the scores are zeros.

    Args:
        sharing: with whom pretrained weights look at the pool; None: alone.

    Raises:
        NotLearnable: no image of the pool can be read.
    """
    longest, device = typical_side(order, images), device_of(settings)
    classes = order.labeling.classes
    start = start_of(settings, longest, len(classes), order.labeling.multiple, len(order.examples), device)
    tasks = sorted((entry.task, entry.uri) for entry in order.pool)
    look = sight_of(start, images, device, sharing, scoring_batch(order.share))
    pool = look(tasks, lambda done: report(Phase.SCORING, done, len(tasks)))
    if not len(pool.features):
        raise NotLearnable(f"None of the {len(tasks)} unlabelled images can be read, so they stand in no order.")
    labelled = look([(one.task_id, one.uri) for one in order.examples], lambda done: None)
    queue = cold_queue(pool.features, labelled.features, settings.seed)
    nothing = Measured(0.0, np.zeros(len(classes), np.float32))
    found = Readable([tasks[at] for at in pool.used], [nothing] * len(pool.used), pool.unreadable)
    standing = in_queue(queue, len(pool.features))
    write_scores(pool_scores(found, standing, len(classes)), folder / SCORES)
    return Outcome(
        ordered_by=TYPICALITY,
        recipe_reason=_basis(start),
        metrics={"scale": standing.scale},
        warnings=start.said,
        unreadable=found.unreadable,
    )


@dataclass(frozen=True)
class Compared:
    """By what images are compared, [N, D] on the processor, of those tasks (positions `used`) whose image can be read."""

    features: Tensor
    used: list[int]
    unreadable: dict[int, str]


Look = Callable[[Sequence[tuple[int, str]], Callable[[int], None]], Compared]
"""(task id, address) pairs, and who is told how many are done -> by what they are compared."""


def sight_of(
    start: Start, images: Images, device: torch.device, sharing: Sharing | None = None, batch: int = BATCH
) -> Look:
    """Features of pretrained weights, which the first round finds kept; where there are none, colours and edges. `batch`:
    images that go through a network at once."""
    if start.pretrained and start.network.head_is_linear:
        network = start.network.to(device)
        frozen = FrozenFeatures(network, images, batch)

        def kept(tasks: Sequence[tuple[int, str]], done: Callable[[int], None]) -> Compared:
            seen = frozen.see(tasks, done) if sharing is None else sharing.see(frozen, network, tasks, done)
            return Compared(seen.looked.features.cpu(), seen.used, seen.unreadable)

        return kept
    return partial(_anew, _features(start, device, batch), images, start.network.architecture.side)


def _features(start: Start, device: torch.device, batch: int) -> Callable[[Tensor], Tensor]:
    if not start.pretrained:
        return simple_features
    network = start.network.to(device)
    return lambda pixels: look_at(network, pixels, batch).features.float().cpu()


def _basis(start: Start) -> str:
    if start.pretrained:
        return f"features of {start.network.architecture.backbone}'s pretrained weights"
    return "colours and edges"


def _anew(
    features: Callable[[Tensor], Tensor],
    images: Images,
    side: int,
    tasks: Sequence[tuple[int, str]],
    done: Callable[[int], None],
) -> Compared:
    found: list[Tensor] = [features(torch.zeros(0, 3, side, side, dtype=torch.uint8))]
    used: list[int] = []
    unreadable: dict[int, str] = {}
    for start in range(0, len(tasks), BATCH):
        part = tasks[start : start + BATCH]
        loaded = list(images.load_many(part, side))
        pixels = [one for one in loaded if not isinstance(one, ImageError)]
        found += [features(as_batch(pixels))] if pixels else []
        used += [start + at for at, one in enumerate(loaded) if not isinstance(one, ImageError)]
        unreadable |= {
            task: one.reason for (task, _), one in zip(part, loaded, strict=True) if isinstance(one, ImageError)
        }
        done(start + len(part))
    return Compared(torch.cat(found), used, unreadable)
