"""The torch side of shards.py: a pool scored by its round's owner and whoever helps, with the results of one process.

Batches are those of a pool in one piece, so each image is measured among the same others; on machines that are alike the
numbers are equal to the last bit. With a frozen network helpers put what it says of images into the cache that all share.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch

from lplgrad_backend.errors import ImageError, ImageUnreadable, StoreError
from lplgrad_backend.files import written
from lplgrad_backend.frozen_features import FrozenFeatures, Seen
from lplgrad_backend.images import Images
from lplgrad_backend.locks import open_redis
from lplgrad_backend.logs import current
from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.lplgrad.pool import Answers
from lplgrad_backend.lplgrad.training import freeze
from lplgrad_backend.memory import scoring_batch
from lplgrad_backend.preparation import device_of
from lplgrad_backend.rounds import WEIGHTS, Order, Outcome
from lplgrad_backend.scoring import BATCH, Measured, Scorer
from lplgrad_backend.settings import Settings
from lplgrad_backend.shards import Board, Claims, Plan, Tasks, gather, shard_size

log = logging.getLogger(__name__)
T = TypeVar("T")
One = Measured | ImageError
Told = Callable[[int], None]
MOST_HELPERS = 100  # each scores more than one shard if there are any left


@dataclass(frozen=True)
class Sharing:
    """How the pool of a round is scored by several.

    Attributes:
        folder: of the round, below that of all rounds. What it trained is in it; of another network the weights are left.
        trained: of the network (`Recipe.trained`).
        invite: tells whoever may help how many shards there are.
    """

    folder: Path
    order: Order
    settings: Settings
    trained: str
    invite: Callable[[int], None]

    def measure(self, images: Images, scorer: Scorer, tasks: Tasks, done: Told) -> list[One]:
        """What `scorer`, which is for ordering, measures of the images of (task id, address) pairs."""

        def score(part: Tasks, told: Told) -> list[One]:
            return list(scorer.measure(images, part, told))

        plan = self._plan(scorer.network, tasks, scorer.batch, scorer.temperatures, scorer.confidence)
        return [one for part in self._gather(scorer.network, plan, score, read_measured, done) for one in part]

    def see(self, frozen: FrozenFeatures, network: Network, tasks: Tasks, done: Told) -> Seen:
        """What `frozen`, which looks with `network`, sees of the images."""
        plan = self._plan(network, tasks, BATCH, (), 1.0)
        parts = self._gather(network, plan, frozen.see, lambda plan, shard, file: frozen.see(plan.part(shard)), done)
        return Seen.joined(parts, plan.size)

    def _plan(self, network: Network, tasks: Tasks, batch: int, ladder: Sequence[float], confidence: float) -> Plan:
        return Plan(
            attempt=uuid.uuid4().hex,
            project=self.order.project,
            labeling=self.order.labeling,
            about=current(),
            architecture=network.architecture.as_plain(),
            trained=self.trained,
            frozen=not ladder,
            ladder=tuple(ladder),
            confidence=confidence,
            batch=batch,
            size=shard_size(self.settings.shard_size, batch),
            tasks=tuple(tasks),
        )

    def _gather(
        self,
        network: Network,
        plan: Plan,
        score: Callable[[Tasks, Told], T],
        fetch: Callable[[Plan, int, Path], T | None],
        done: Told,
    ) -> list[T]:
        if plan.count < 2:
            return [score(plan.tasks, done)]
        board = open_board(self.settings, self.folder.name)
        self._leave(network)
        board.publish(plan)
        self.invite(min(plan.count - 1, MOST_HELPERS))
        wait = threading.Event().wait
        try:
            return gather(board, plan, score, lambda shard: fetch(plan, shard, board.file(plan, shard)), done, wait)
        finally:
            board.close()

    def _leave(self, network: Network) -> None:
        """For helpers, if no network is there yet."""
        if not (self.folder / WEIGHTS).exists():
            with written("The network of a round", self.folder):
                safetensors.torch.save_file(network.state_dict(), self.folder / WEIGHTS)


def open_board(settings: Settings, name: str) -> Board:
    """The shards of the round whose folder has this name.

    Raises:
        StoreError: there can be no such folder.
    """
    assert settings.queue_url is not None
    claims = Claims(open_redis(settings.queue_url), settings.lock_seconds)
    return Board(settings.model_dir / "scratch", name, claims)


# Whoever helps


def help_out(order: Order, settings: Settings, images: Images) -> Outcome:
    """Score shards of another's round, as long as there are any that nobody is at; from the last one on, since the owner
    begins with the first.

    Raises:
        LPLGradError: the round is over, or its network cannot be used.
    """
    board = open_board(settings, str(order.helps))
    plan = board.plan()
    if plan is None:
        raise StoreError(f"No more of {board.name} is scored.")
    look = _sight(plan, board, settings, images, min(plan.batch, scoring_batch(order.share)))
    scored = 0
    for shard in reversed(range(plan.count)):
        if not board.wants(plan):
            break
        with board.claim(plan, shard) as ours:
            if ours:
                board.write(plan, shard, look(plan.part(shard)))
                scored += 1
    log.info("project %d: scored %d of %d shards of another's round", plan.project, scored, plan.count)
    return Outcome(metrics={"shards": scored})


def _sight(plan: Plan, board: Board, settings: Settings, images: Images, batch: int) -> Callable[[Tasks], bytes]:
    network = Network(Architecture.from_plain(plan.architecture))
    try:
        network.load_state_dict(safetensors.torch.load_file(board.round / WEIGHTS))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise StoreError(f"The network of {board.name} cannot be used: {error}") from error
    freeze(network, plan.trained)
    network = network.to(device_of(settings)).eval()
    if plan.frozen:
        frozen = FrozenFeatures(network, images, batch)

        def keep(tasks: Tasks) -> bytes:
            frozen.see(tasks)
            return b""

        return keep
    scorer = Scorer(network, for_ordering=True, temperatures=plan.ladder, confidence=plan.confidence, batch=batch)
    return lambda tasks: measured_bytes(list(scorer.measure(images, tasks)))


# What is found, as it lies on the disk


def measured_bytes(found: Sequence[One]) -> bytes:
    """What was measured for ordering, as safetensors; of the others why they could not be."""
    used = [at for at, one in enumerate(found) if isinstance(one, Measured)]
    measured = [one for one in found if isinstance(one, Measured)]
    answers = [one.answers for one in measured if one.answers is not None]
    why = {at: [one.uri, one.reason] for at, one in enumerate(found) if isinstance(one, ImageError)}
    arrays = {"used": torch.tensor(used, dtype=torch.int64)}
    if answers:
        joined = Answers.joined(answers)
        arrays |= {name: getattr(joined, name).contiguous() for name in Answers.__dataclass_fields__}
        arrays["probabilities"] = torch.from_numpy(np.stack([one.probabilities for one in measured]))
    return safetensors.torch.save(arrays, {"unreadable": json.dumps(why)})


def read_measured(plan: Plan, shard: int, file: Path) -> list[One] | None:
    """What `measured_bytes` wrote of a shard; None where that is not what is in the file."""
    try:
        with safetensors.safe_open(file, "pt") as content:
            arrays = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  (no mapping)
            why = json.loads((content.metadata() or {})["unreadable"])
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        log.warning("project %d: shard %d is scored again: %s", plan.project, shard, error)
        return None
    found: dict[int, One] = {int(at): ImageUnreadable(uri, reason) for at, (uri, reason) in why.items()}
    if len(arrays["used"]):
        answers = Answers(*(arrays[name] for name in Answers.__dataclass_fields__))
        rows = zip(arrays["used"].tolist(), answers.each(), arrays["probabilities"].numpy(), strict=True)
        found |= {at: Measured(float(one.ladder[0, 0]), row, one) for at, one, row in rows}
    if sorted(found) != list(range(len(plan.part(shard)))):
        log.warning("project %d: shard %d is scored again: it is not whole", plan.project, shard)
        return None
    return [found[at] for at in range(len(found))]
