"""The order of a pool before there is a trained network: typical images first, by pretrained features or simple ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lplgrad_backend.errors import ImageError, NotLearnable
from lplgrad_backend.images import Images
from lplgrad_backend.lplgrad.cold_start import cold_queue, simple_features
from lplgrad_backend.lplgrad.network import Network
from lplgrad_backend.lplgrad.training import look_at
from lplgrad_backend.preparation import Start, device_of, start_of, typical_side
from lplgrad_backend.rounds import SCORES, Order, Outcome
from lplgrad_backend.scoring import Measured, as_batch, in_queue, pool_scores, readable
from lplgrad_backend.settings import Settings
from lplgrad_backend.status import Phase
from lplgrad_backend.store import write_scores

BATCH = 64
TYPICALITY = "typicality"
Look = Callable[[Tensor], Tensor]
"""Images uint8 [N, 3, S, S] -> features [N, D]."""


def order_cold(
    order: Order, folder: Path, settings: Settings, images: Images, report: Callable[[Phase, int, int], None]
) -> Outcome:
    """Order the pool of `order`, of which `examples` are labelled already, and write scores. Nothing is trained; norms
    and probabilities of the scores are zeros.

    Raises:
        NotLearnable: no image of the pool can be read.
    """
    longest, device = typical_side(order, images), device_of(settings)
    classes = order.labeling.classes
    start = start_of(settings, longest, len(classes), order.labeling.multiple, len(order.examples), device)
    look, side = look_of(start, device), start.network.architecture.side
    tasks = [(entry.task, entry.uri) for entry in order.pool]
    seen = _seen(look, images, tasks, side, lambda done: report(Phase.SCORING, done, len(tasks)))
    labelled = _seen(look, images, [(one.task_id, one.uri) for one in order.examples], side, lambda done: None)
    nothing = np.zeros(len(classes), np.float32)
    found = readable(tasks, [one if isinstance(one, ImageError) else Measured(0.0, nothing) for one in seen])
    if not found.measured:
        raise NotLearnable(f"None of the {len(tasks)} unlabelled images can be read, so they stand in no order.")
    features = {task: one for (task, _), one in zip(tasks, seen, strict=True) if isinstance(one, Tensor)}
    pool = torch.stack([features[task] for task, _ in found.tasks])
    known = [one for one in labelled if isinstance(one, Tensor)]
    queue = cold_queue(pool, torch.stack(known) if known else pool[:0], settings.seed)
    standing = in_queue(queue, len(pool))
    write_scores(pool_scores(found, standing, len(classes)), folder / SCORES)
    return Outcome(
        ordered_by=TYPICALITY,
        recipe_reason=_basis(start),
        metrics={"scale": standing.scale},
        warnings=start.said,
        unreadable=found.unreadable,
    )


def look_of(start: Start, device: torch.device) -> Look:
    """What images are compared by: features of pretrained weights, or where there are none of colours and edges."""
    if not start.pretrained:
        return simple_features
    network: Network = start.network.to(device)
    return lambda pixels: look_at(network, pixels).features.float().cpu()


def _basis(start: Start) -> str:
    if start.pretrained:
        return f"features of {start.network.architecture.backbone}'s pretrained weights"
    return "colours and edges"


def _seen(
    look: Look, images: Images, tasks: Sequence[tuple[int, str]], side: int, done: Callable[[int], None]
) -> list[Tensor | ImageError]:
    """Features [D] of each (task id, address), or why its image cannot be used."""
    found: list[Tensor | ImageError] = []
    for start in range(0, len(tasks), BATCH):
        loaded = list(images.load_many(tasks[start : start + BATCH], side))
        pixels = [one for one in loaded if not isinstance(one, ImageError)]
        features: Iterator[Tensor] = iter(look(as_batch(pixels)) if pixels else [])
        found += [one if isinstance(one, ImageError) else next(features) for one in loaded]
        done(len(found))
    return found
