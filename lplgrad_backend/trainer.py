"""The child process of a round: load images, train, save weights, score the pool (`python -m lplgrad_backend.trainer`).

Speaks with its parent as rounds.py says. It is niced below web and worker, so that serving stays quick while it works.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from lplgrad_backend.cold_order import order_cold
from lplgrad_backend.errors import LPLGradError, NotLearnable
from lplgrad_backend.examination import Confidence, confidence, find_suspects, named_classes, opinion
from lplgrad_backend.files import written
from lplgrad_backend.frozen_features import FrozenFeatures
from lplgrad_backend.images import Images
from lplgrad_backend.latecomers import insert
from lplgrad_backend.logs import start_logging
from lplgrad_backend.lplgrad.acquisition import DEFAULT
from lplgrad_backend.lplgrad.cold_start import is_cold
from lplgrad_backend.lplgrad.cross_fitting import Unseen, cross_fit
from lplgrad_backend.lplgrad.gradnorm.entropy import TEMPERATURES
from lplgrad_backend.lplgrad.network import Looked, Network
from lplgrad_backend.lplgrad.ordering import SAFE, Acquisition, Health, Ordered
from lplgrad_backend.lplgrad.recipe import Recipe
from lplgrad_backend.lplgrad.spreading import GAP
from lplgrad_backend.lplgrad.training import EpochRecord, fit
from lplgrad_backend.memory import in_batches, is_out_of_memory, memory_warning, scoring_batch
from lplgrad_backend.preparation import device_of, start_of, typical_side
from lplgrad_backend.processors import usable_processors
from lplgrad_backend.resumption import Resumption, key_of
from lplgrad_backend.rounds import OUTCOME, SCORES, WEIGHTS, Failure, Order, Outcome, Progress, Shards, receive
from lplgrad_backend.scoring import (
    by_norm,
    in_queue,
    load_network,
    order_measured,
    pool_scores,
)
from lplgrad_backend.settings import Settings
from lplgrad_backend.shared_scoring import Sharing, help_out
from lplgrad_backend.sight import Labelled, Sight
from lplgrad_backend.sources import open_images, open_label_studio
from lplgrad_backend.status import Phase
from lplgrad_backend.store import OrderHealth, Store, write_scores
from lplgrad_backend.together import fit_together, processes_for

log = logging.getLogger(__name__)
NICENESS = 10
REPORT_SECONDS = 0.5
FIRST_TO_END = "800"  # of -1000 to 1000


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
    if order.helps is not None:
        return help_out(order, settings, images)
    if order.cold:
        return order_cold(order, folder, settings, images, report, _sharing(order, folder, settings, "head"))
    if order.version is not None:
        return _score_only(order, folder, settings, images, report)
    started = time.monotonic()
    labeling, device = order.labeling, device_of(settings)
    longest = typical_side(order, images)
    start = start_of(settings, longest, len(labeling.classes), labeling.multiple, len(order.examples), device)
    network, recipe = start.network.to(device), in_batches(start.recipe, order.share)
    log.info("project %d: recipe %s", order.project, start.reason)
    frozen = FrozenFeatures(network, images, scoring_batch(order.share)) if recipe.trained == "head" else None
    sharing = _sharing(order, folder, settings, recipe.trained)
    sight = Sight(network, images, frozen, scoring_batch(order.share), sharing)
    labelled = sight.labelled(order.examples, lambda done: report(Phase.LOADING, done, len(order.examples)))
    check_classes(labelled, len(order.examples))
    unseen = None
    if isinstance(labelled.images, Looked):
        unseen = cross_fit(network, labelled.images, labelled.targets, recipe, seed=settings.seed, device=device)
    metrics = _train(
        network, labelled, recipe, settings, folder, report, Store(settings.model_dir).checkpoint_path(order.project)
    )
    with written("What a round has trained", folder):
        safetensors.torch.save_file(network.state_dict(), folder / WEIGHTS)
    trained_seconds = time.monotonic() - started
    held_out = sight.labelled(order.held_out)
    said = opinion(network, held_out.images, held_out.targets)
    suspicions = unseen or opinion(network, labelled.images, labelled.targets)
    sure = _confidence(unseen, labelled, said, held_out, labeling.multiple)
    scored = _score_and_order(sight, sure.temperature, order, folder, labelled, settings, report)
    metrics |= scored.metrics | {"seconds_training": trained_seconds, "seconds": time.monotonic() - started}
    metrics["images_looked_at"] = sight.looked_at
    metrics |= {"cache_hits": images.lookups.hits, "cache_misses": images.lookups.misses}
    return scored.model_copy(
        update={
            "architecture": network.architecture.as_plain(),
            "recipe": recipe.as_plain(),
            "recipe_reason": start.reason,
            "temperature": sure.temperature,
            "temperature_from": sure.origin,
            "metrics": metrics,
            "warnings": start.said + scored.warnings + memory_warning(order.share),
            "suspects": find_suspects(suspicions, labelled.targets, labelled.examples, labeling),
            "unreadable": labelled.unreadable | scored.unreadable,
            "held_out": named_classes(held_out.examples, said, labeling),
        }
    )


def _sharing(order: Order, folder: Path, settings: Settings, trained: str) -> Sharing | None:
    if settings.queue_url is None:
        return None
    return Sharing(folder, order, settings, trained, lambda count: say(Shards(shards=count).model_dump()))


def _score_only(order: Order, folder: Path, settings: Settings, images: Images, report: Reporter) -> Outcome:
    store = Store(settings.model_dir)
    manifest = store.manifest(order.project, str(order.version))
    network = load_network(manifest, store.weights_path(order.project, manifest.version)).to(device_of(settings))
    sharing = _sharing(order, folder, settings, str(manifest.recipe.get("trained", "all")))
    tasks = [(entry.task, entry.uri) for entry in order.pool]
    found = Sight(network, images, None, scoring_batch(order.share), sharing).pool(
        tasks, TEMPERATURES[:1], manifest.temperature, lambda done: report(Phase.SCORING, done, len(tasks))
    )
    known = store.scores(order.project, manifest.version)
    standing = insert([task for task, _ in found.tasks], found.measured, known, manifest.scale)
    write_scores(pool_scores(found, standing, len(order.labeling.classes)), folder / SCORES)
    return Outcome(metrics={"scale": manifest.scale}, unreadable=found.unreadable)


# Training


def check_classes(labelled: Labelled, asked: int) -> None:
    """Whether there is something to learn.

    Raises:
        NotLearnable: the images that can be read show fewer than two classes.
    """
    if int((labelled.counts > 0).sum()) < 2:
        unreadable = len(labelled.unreadable)
        raise NotLearnable(f"{unreadable} of {asked} labelled images cannot be read; two classes are needed.")


def _train(
    network: Network,
    labelled: Labelled,
    recipe: Recipe,
    settings: Settings,
    folder: Path,
    report: Reporter,
    checkpoint: Path,
) -> dict[str, float]:
    device = device_of(settings)
    processes = processes_for(settings, device, recipe)
    metrics: dict[str, float] = {"images": len(labelled.targets), "processes": processes}
    for record in _records(network, labelled, recipe, settings, device, folder, processes, checkpoint):
        report(Phase.TRAINING, record.epoch, record.epochs)
        metrics |= {
            "epochs": record.epoch,
            "loss": record.loss,
            "ranking_loss": record.ranking_loss,
            "training_accuracy": record.accuracy,
        }
    return metrics


def _records(
    network: Network,
    labelled: Labelled,
    recipe: Recipe,
    settings: Settings,
    device: torch.device,
    folder: Path,
    processes: int,
    checkpoint: Path,
) -> Iterator[EpochRecord]:
    images, targets, seed = labelled.images, labelled.targets, settings.seed
    if processes == 1 or isinstance(images, Looked):
        keeper = Resumption(checkpoint, key_of(network, labelled.examples, targets, recipe, seed, device))
        yield from fit(network, images, targets, recipe, seed=seed, device=device, keeper=keeper)
        return
    with tempfile.TemporaryDirectory(dir=folder) as shared:
        yield from fit_together(
            network, images, targets, recipe, seed=seed, device=device, processes=processes,
            threads=torch.get_num_threads(), folder=Path(shared),
        )  # fmt: skip


def _confidence(
    unseen: Unseen | None, labelled: Labelled, said: Unseen, held_out: Labelled, multiple: bool
) -> Confidence:
    """By cross-fitted networks where there are some, else by the images that were held out."""
    if unseen is not None:
        return confidence(unseen, labelled.targets, multiple, "cross-fitted labelled images")
    return confidence(said, held_out.targets, multiple, "held-out labelled images")


# Scoring and ordering


def acquisition_of(settings: Settings, draw: int = 0) -> Acquisition:
    """What the settings say about how to order a pool. `draw`: see `Acquisition`."""
    usual = "lplgrad" if settings.preset == "paper" else DEFAULT
    strategy = usual if settings.strategy == "auto" else settings.strategy
    as_it_is = strategy in ("lplgrad", "random") or settings.coverage == "off"  # the paper's order, and chance itself
    return Acquisition(
        strategy=strategy,
        apart=1 if as_it_is else GAP,
        sharpness=None if settings.coverage == "off" else settings.coverage,
        strict=settings.strict,
        random_share=settings.random_share,
        draw=draw,
    )


def draw_of(order: Order) -> int:
    """A number that a pool has of its own, so that each round draws its random share anew and a repetition the same."""
    return zlib.crc32(repr([order.project, sorted(entry.task for entry in order.pool)]).encode())


def _score_and_order(
    sight: Sight,
    confidence: float,
    order: Order,
    folder: Path,
    labelled: Labelled,
    settings: Settings,
    report: Reporter,
) -> Outcome:
    """Score and order the pool and write it; what is to be said about the order and of images that cannot be used."""
    wanted, multiple = acquisition_of(settings, draw_of(order)), order.labeling.multiple
    tasks = sorted((entry.task, entry.uri) for entry in order.pool)
    ladder = TEMPERATURES if wanted.strategy == "lplgrad-ladder" else TEMPERATURES[:1]
    found = sight.pool(tasks, ladder, confidence, lambda done: report(Phase.SCORING, done, len(tasks)))
    outcome, standing = Outcome(ordered_by=wanted.strategy), by_norm(found.measured)
    if found.measured:
        features, cold = sight.features(labelled.images), too_cold(settings, wanted, labelled)
        with _one_thread():
            ordered = order_measured(
                found.measured, features, labelled.counts, multiple, wanted, settings.seed, cold=cold
            )
        standing = in_queue(ordered.queue, len(ordered.pool), ordered.random)
        outcome = Outcome(ordered_by=ordered.ordered_by, health=seen_of(ordered.health), warnings=complaints(ordered))
    write_scores(pool_scores(found, standing, len(order.labeling.classes)), folder / SCORES)
    return outcome.model_copy(update={"metrics": {"scale": standing.scale}, "unreadable": found.unreadable})


def too_cold(settings: Settings, wanted: Acquisition, labelled: Labelled) -> bool:
    """Whether pretrained features are known and labels are too few for the default strategy to ask a network (below three a
    class). A network that learns its features from so few has none to compare by."""
    usual = wanted.strategy == DEFAULT and wanted.sharpness is not None and not wanted.strict
    frozen = isinstance(labelled.images, Looked)
    return settings.cold_start and usual and frozen and is_cold(labelled.counts)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Ordering is thousands of small steps: several threads wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def seen_of(health: Health) -> OrderHealth:
    """Health as it is stored; JSON knows no NaN."""
    correlation = health.correlation if math.isfinite(health.correlation) else None
    return OrderHealth(
        correlation=correlation,
        duplicates=health.duplicates,
        head_classes=health.head_classes,
        sentence=health.sentence or "",
    )


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
    with contextlib.suppress(OSError):  # where memory runs out this process is the one to end, and is started again
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_END)
    torch.set_num_threads(settings.threads or usable_processors())
    try:
        outcome = run(order, folder, settings)
        if folder.is_dir():  # it is gone where the round was another's and is over
            with written("What a round has found", folder):
                (folder / OUTCOME).write_text(outcome.model_dump_json())
    except NotLearnable as error:
        say(Failure(kind="not learnable", failure=str(error)).model_dump())
    except LPLGradError as error:
        say(Failure(kind="failed", failure=str(error)).model_dump())
    except Exception as error:
        if not is_out_of_memory(error):
            log.exception("project %d: the round failed", order.project)
            os._exit(1)
        said = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        say(Failure(kind="out of memory", failure=f" ({said[:200]})").model_dump())
    os._exit(0)  # the thread that waits for the parent's end holds standard input


if __name__ == "__main__":
    main()
