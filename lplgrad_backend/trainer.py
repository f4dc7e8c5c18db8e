"""The child process of a round: load images, train, save weights, score the pool (`python -m lplgrad_backend.trainer`).

Speaks with its parent as rounds.py says. It is niced below web and worker, so that serving stays quick while it works.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from lplgrad_backend.cold_order import order_cold
from lplgrad_backend.errors import ImageError, LPLGradError, NotLearnable
from lplgrad_backend.examination import examine
from lplgrad_backend.history import SUSPECTS_KEPT, Suspect
from lplgrad_backend.images import Images
from lplgrad_backend.labeling import Example, Labeling
from lplgrad_backend.logs import start_logging
from lplgrad_backend.lplgrad.gradnorm.entropy import TEMPERATURES
from lplgrad_backend.lplgrad.network import Network
from lplgrad_backend.lplgrad.objective import main_loss
from lplgrad_backend.lplgrad.ordering import SAFE, Acquisition, Ordered
from lplgrad_backend.lplgrad.recipe import Recipe
from lplgrad_backend.lplgrad.suspicion import excess_losses, suspected
from lplgrad_backend.lplgrad.training import fit, look_at
from lplgrad_backend.preparation import device_of, start_of, typical_side
from lplgrad_backend.rounds import OUTCOME, SCORES, WEIGHTS, Failure, Order, Outcome, Progress, receive
from lplgrad_backend.scoring import (
    Readable,
    Scorer,
    among,
    as_batch,
    by_norm,
    in_queue,
    load_network,
    order_measured,
    pool_scores,
    readable,
)
from lplgrad_backend.settings import Settings
from lplgrad_backend.sources import open_images, open_label_studio
from lplgrad_backend.status import Phase
from lplgrad_backend.store import Store, write_scores

log = logging.getLogger(__name__)
NICENESS = 10
REPORT_SECONDS = 0.5


class Reporter:
    """Progress lines to the parent, at most two a second and always the last of a phase."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, phase: Phase, done: int, total: int) -> None:
        if done < total and time.monotonic() - self._last < REPORT_SECONDS:
            return
        self._last = time.monotonic()
        say(Progress(phase=phase, done=done, total=total).model_dump(mode="json"))


def say(message: Mapping[str, Any]) -> None:
    """One line to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def run(order: Order, folder: Path, settings: Settings) -> Outcome:
    """Do what was asked; leave weights and scores in `folder`.

    Raises:
        NotLearnable: too few labelled images can be read.
        LPLGradError: anything else that ends the round.
    """
    images = open_images(settings, open_label_studio(settings))
    report = Reporter()
    if order.cold:
        return order_cold(order, folder, settings, images, report)
    if order.version is not None:
        return _score_only(order, folder, settings, images, report)
    started = time.monotonic()
    labeling, device = order.labeling, device_of(settings)
    longest = typical_side(order, images)
    start = start_of(settings, longest, len(labeling.classes), labeling.multiple, len(order.examples), device)
    network, recipe = start.network, start.recipe
    log.info("project %d: recipe %s", order.project, start.reason)
    pixels, targets, unreadable = _load_examples(order, network.architecture.side, images, report)
    metrics = _train(network, pixels, targets, recipe, settings, report)
    used = [example for example in order.examples if example.task_id not in unreadable]
    suspects = find_suspects(network, pixels, targets, used, order.labeling)
    safetensors.torch.save_file(network.state_dict(), folder / WEIGHTS)
    trained_seconds = time.monotonic() - started
    held_out = examine(network, images, order.held_out, order.labeling.classes)
    scored = _score_and_order(network, order, folder, images, pixels, settings, report)
    metrics |= scored.metrics | {"seconds_training": trained_seconds, "seconds": time.monotonic() - started}
    return Outcome(
        architecture=network.architecture.as_plain(),
        recipe=recipe.as_plain(),
        recipe_reason=start.reason,
        ordered_by=scored.ordered_by,
        metrics=metrics,
        warnings=start.said + scored.warnings,
        suspects=suspects,
        unreadable=unreadable | scored.unreadable,
        held_out=held_out,
    )


def _score_only(order: Order, folder: Path, settings: Settings, images: Images, report: Reporter) -> Outcome:
    store = Store(settings.model_dir)
    manifest = store.manifest(order.project, str(order.version))
    network = load_network(manifest, store.weights_path(order.project, manifest.version)).to(device_of(settings))
    found = _measure(Scorer(network), order, images, report)
    standing = among(found.measured, store.scores(order.project, manifest.version), manifest.scale)
    write_scores(pool_scores(found, standing, len(order.labeling.classes)), folder / SCORES)
    return Outcome(metrics={"scale": manifest.scale}, unreadable=found.unreadable)


# Training


def _load_examples(order: Order, side: int, images: Images, report: Reporter) -> tuple[Tensor, Tensor, dict[int, str]]:
    """Labelled images [N, 3, S, S] uint8, their targets [N, C], and the tasks whose image cannot be used."""
    pixels: list[NDArray[np.uint8]] = []
    targets, unreadable = [], {}
    tasks = [(example.task_id, example.uri) for example in order.examples]
    for done, (example, one) in enumerate(zip(order.examples, images.load_many(tasks, side), strict=True), 1):
        if isinstance(one, ImageError):
            unreadable[example.task_id] = one.reason
        else:
            pixels.append(one)
            targets.append(example.target)
        report(Phase.LOADING, done, len(tasks))
    seen = torch.tensor(targets, dtype=torch.float32).reshape(-1, len(order.labeling.classes))
    if int((seen.sum(0) > 0).sum()) < 2:
        raise NotLearnable(f"{len(unreadable)} of {len(tasks)} labelled images cannot be read; two classes are needed.")
    return as_batch(pixels), seen, unreadable


def _train(
    network: Network, images: Tensor, targets: Tensor, recipe: Recipe, settings: Settings, report: Reporter
) -> dict[str, float]:
    metrics: dict[str, float] = {"images": len(images)}
    for record in fit(network, images, targets, recipe, seed=settings.seed, device=device_of(settings)):
        report(Phase.TRAINING, record.epoch, record.epochs)
        metrics |= {
            "epochs": record.epoch,
            "loss": record.loss,
            "ranking_loss": record.ranking_loss,
            "training_accuracy": record.accuracy,
        }
    return metrics


def find_suspects(
    network: Network, images: Tensor, targets: Tensor, examples: Sequence[Example], labeling: Labeling
) -> list[Suspect]:
    """Labelled images [N, 3, S, S] whose label looks wrong to the trained network, the most suspect first."""
    looked = look_at(network, images)
    with torch.no_grad():
        predicted = network.loss_prediction(looked.pooled).float().cpu()
    logits, multiple = looked.logits.float().cpu(), labeling.multiple
    losses = main_loss(logits, targets, multiple)
    excess, expected = excess_losses(losses, predicted)
    said = logits > 0 if multiple else logits == logits.amax(1, keepdim=True)
    chosen = targets >= 0.5 if multiple else targets == targets.amax(1, keepdim=True)
    # both may name several classes; only those that share none of one question contradict each other
    contradicted = (said != chosen).any(1) if multiple else ~(said & chosen).any(1)
    return [
        Suspect(
            task=examples[at].task_id,
            uri=examples[at].uri,
            label=_named(labeling, chosen[at]),
            predicted=_named(labeling, said[at]),
            loss=float(losses[at]),
            expected=float(expected[at]),
            excess=float(excess[at]),
        )
        for at in suspected(excess, contradicted)[:SUSPECTS_KEPT]
    ]


def _named(labeling: Labeling, held: Tensor) -> str:
    return ", ".join(name for name, holds in zip(labeling.classes, held.tolist(), strict=True) if holds)


# Scoring and ordering


def acquisition_of(settings: Settings) -> Acquisition:
    """What the settings say about how to order a pool."""
    strategy, coverage = settings.strategy, settings.coverage
    if strategy == "auto":
        strategy = "lplgrad" if settings.preset == "paper" else "lplgrad-coverage"
    return Acquisition(strategy, None if coverage == "off" else coverage, settings.strict)


def _measure(scorer: Scorer, order: Order, images: Images, report: Reporter) -> Readable:
    tasks = [(entry.task, entry.uri) for entry in order.pool]
    measured = scorer.measure(images, tasks, lambda done: report(Phase.SCORING, done, len(tasks)))
    return readable(tasks, list(measured))


def _score_and_order(
    network: Network,
    order: Order,
    folder: Path,
    images: Images,
    labelled: Tensor,
    settings: Settings,
    report: Reporter,
) -> Outcome:
    """Score and order the pool and write it; what is to be said about the order and of images that cannot be used."""
    wanted, multiple = acquisition_of(settings), order.labeling.multiple
    ladder = TEMPERATURES if wanted.strategy == "lplgrad-ladder" else TEMPERATURES[:1]
    found = _measure(Scorer(network, for_ordering=True, temperatures=ladder), order, images, report)
    standing, ordered_by, warnings = by_norm(found.measured), wanted.strategy, []
    if found.measured:
        features = look_at(network, labelled).features.cpu()
        ordered = order_measured(found.measured, features, multiple, wanted, settings.seed)
        standing, ordered_by, warnings = (
            in_queue(ordered.queue, len(ordered.pool)),
            ordered.ordered_by,
            complaints(ordered),
        )
    write_scores(pool_scores(found, standing, len(order.labeling.classes)), folder / SCORES)
    metrics = {"scale": standing.scale}
    return Outcome(ordered_by=ordered_by, metrics=metrics, warnings=warnings, unreadable=found.unreadable)


def complaints(ordered: Ordered) -> list[str]:
    """What a person should know about an order, at most one sentence or two."""
    if ordered.health.sentence is None:
        return []
    if ordered.ordered_by == SAFE:
        return [f"{ordered.health.sentence} This round is ordered by {SAFE} instead; LPLGRAD_STRICT=true forbids that."]
    return [ordered.health.sentence]


def main() -> None:
    """Read the order from standard input, do it, and leave; errors go to the parent as a sentence."""
    order, folder, settings = receive(sys.stdin.buffer)
    start_logging(settings, order.about)
    os.nice(NICENESS)
    torch.set_num_threads(settings.threads or os.cpu_count() or 1)
    try:
        (folder / OUTCOME).write_text(run(order, folder, settings).model_dump_json())
    except NotLearnable as error:
        say(Failure(kind="not learnable", failure=str(error)).model_dump())
    except LPLGradError as error:
        say(Failure(kind="failed", failure=str(error)).model_dump())
    except Exception:
        log.exception("project %d: the round failed", order.project)
        os._exit(1)
    os._exit(0)  # the thread that waits for the parent's end holds standard input


if __name__ == "__main__":
    main()
