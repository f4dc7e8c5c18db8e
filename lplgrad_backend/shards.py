"""A large pool in shards that several workers on a shared queue score: what is asked, who is at which, what was found.

Everything of it stands in the round's folder, which all workers see: the plan, the network's weights, and a file for each
shard that is done. A shard is claimed by a key in Redis that runs out unless its holder renews it, so that one whose
worker died is taken by another. Two that score the same shard do no harm: they find the same. The round's owner scores
shards itself, gathers what others found, and alone orders, saves and publishes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict
from redis import Redis, RedisError

from lplgrad_backend.errors import StoreError
from lplgrad_backend.files import write_whole, written
from lplgrad_backend.labeling import Labeling
from lplgrad_backend.locks import Lease, elapsed
from lplgrad_backend.logs import About

log = logging.getLogger(__name__)
T = TypeVar("T")
Tasks = Sequence[tuple[int, str]]
ROUND = re.compile(r"[1-9]\d{0,18}-[A-Za-z0-9_]{1,40}")  # a folder of scratch.py
FOLDER, PLAN, WANTED = "shards", "plan.json", "attempt"
LOOK_SECONDS = 0.2  # between looks at what others do


class Plan(BaseModel):
    """What is asked of whoever scores a shard.

    Attributes:
        attempt: differs when the round's child was started again, and so may have other weights.
        about: what log lines are about.
        architecture, trained: of the network, whose weights stand in the round's folder (`Recipe.trained`).
        frozen: what the frozen part of the network says of the images is to be kept, and nothing measured.
        ladder: temperatures of the gradient norms; the first is 1.
        confidence: by what logits are divided for probabilities.
        batch: images measured at once; `size` is a multiple of it, so that batches are those of a pool in one piece.
        size: tasks in a shard; the last one may have fewer.
        tasks: (task id, image address) of the whole pool.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt: str
    project: int
    labeling: Labeling
    about: About
    architecture: dict[str, Any]
    trained: str
    frozen: bool
    ladder: tuple[float, ...]
    confidence: float
    batch: int
    size: int
    tasks: tuple[tuple[int, str], ...]

    @property
    def count(self) -> int:
        """How many shards there are."""
        return -(-len(self.tasks) // self.size)

    def part(self, shard: int) -> Tasks:
        """Tasks of a shard."""
        return self.tasks[shard * self.size : (shard + 1) * self.size]


def shard_size(wanted: int, batch: int) -> int:
    """Tasks in a shard: whole batches, as many as `wanted` tasks need."""
    return -(-wanted // batch) * batch


class Claims:
    """Who is at which shard, in Redis. One that is away lets everybody be at everything, which costs time alone."""

    def __init__(self, client: Redis, seconds: float, clock: Callable[[], float] = elapsed) -> None:
        self._client, self._seconds, self._clock = client, seconds, clock

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Yields whether it is this process's until the block ends."""
        lease = Lease(self._client, _key(name), self._seconds, self._clock)
        try:
            ours = lease.take()
        except RedisError as error:
            log.warning("%s cannot be asked for: %s", _key(name), error)
            yield True
            return
        with lease.kept() if ours else contextlib.nullcontext():
            yield ours

    def claimed(self, name: str) -> bool:
        """Whether some process has it."""
        try:
            return bool(self._client.exists(_key(name)))
        except RedisError:
            return False


def _key(name: str) -> str:
    return f"lplgrad.shard.{name}"


class Board:
    """The shards of one round, in its folder.

    Args:
        scratch: MODEL_DIR/scratch.
        name: of the round's folder.

    Raises:
        StoreError: there can be no such folder.
    """

    def __init__(self, scratch: Path, name: str, claims: Claims) -> None:
        if not ROUND.fullmatch(name):
            raise StoreError(f"{name[:80]!r} is not the name of a round's folder.")
        self.name, self.round = name, scratch / name
        self._folder, self._claims = self.round / FOLDER, claims

    def publish(self, plan: Plan) -> None:
        """Make the shards known to whoever asks, instead of what stood here before.

        Raises:
            StoreError: the disk refuses.
        """
        with written(f"The shards of {self.name}", self._folder):
            self._folder.mkdir(exist_ok=True)
            write_whole(self._folder / PLAN, json.dumps(plan.model_dump(mode="json")).encode(), durable=False)
            write_whole(self._folder / WANTED, plan.attempt.encode(), durable=False)

    def plan(self) -> Plan | None:
        """What was published; None when the round is over."""
        try:
            return Plan.model_validate(json.loads((self._folder / PLAN).read_bytes()))
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """No shard is wanted any more."""
        for name in (WANTED, PLAN):
            (self._folder / name).unlink(missing_ok=True)

    @property
    def is_open(self) -> bool:
        """Whether the round still wants shards scored."""
        return (self._folder / WANTED).is_file()

    def wants(self, plan: Plan) -> bool:
        """Whether these are still the shards that the round wants scored."""
        try:
            return (self._folder / WANTED).read_text() == plan.attempt
        except OSError:
            return False

    def file(self, plan: Plan, shard: int) -> Path:
        """Where what is found of a shard stands, once it is done."""
        return self._folder / f"{plan.attempt}-{shard}.safetensors"

    def write(self, plan: Plan, shard: int, content: bytes) -> None:
        """Leave what was found of a shard; without content only that it is done. Nothing when the round is over.

        Raises:
            StoreError: the disk refuses.
        """
        try:
            with written(f"Shard {shard} of {self.name}", self._folder):
                write_whole(self.file(plan, shard), content, durable=False)
        except StoreError:
            if self.is_open:
                raise

    def is_done(self, plan: Plan, shard: int) -> bool:
        """Whether somebody has left what was found of a shard."""
        return self.file(plan, shard).is_file()

    @contextlib.contextmanager
    def claim(self, plan: Plan, shard: int) -> Iterator[bool]:
        """Yields whether the shard is for this process to score: nobody else is at it, and it is not done."""
        with self._claims.claim(_name(plan, shard)) as ours:
            yield ours and not self.is_done(plan, shard)

    def has_work(self, plan: Plan) -> bool:
        """Whether some shard is neither done nor being scored."""
        return any(
            not self.is_done(plan, shard) and not self._claims.claimed(_name(plan, shard))
            for shard in range(plan.count)
        )

    def helper_folder(self) -> Path:
        """A new folder in that of the round, for the results of a child that scores shards of it.

        Raises:
            StoreError: the round is over, or the disk refuses.
        """
        folder = self._folder / f"helper-{uuid.uuid4().hex}"
        try:
            folder.mkdir()
        except OSError as error:
            raise StoreError(f"No more of {self.name} is scored: {error}") from error
        return folder


def _name(plan: Plan, shard: int) -> str:
    return f"{plan.attempt}.{shard}"


def gather(
    board: Board,
    plan: Plan,
    score: Callable[[Tasks, Callable[[int], None]], T],
    fetch: Callable[[int], T | None],
    done: Callable[[int], None],
    wait: Callable[[float], object],
) -> list[T]:
    """What was found of each shard, in their order, when all are done; for the round's owner.

    Args:
        score: scores tasks here, and tells how many of them are done.
        fetch: reads what another left of a shard; None where that cannot be used, and it is scored here then.
        done: is told how many tasks of the pool are done.
        wait: sleeps so many seconds.
    """
    found: dict[int, T] = {}
    while len(found) < plan.count:
        before = len(found)
        for shard in range(plan.count):
            if shard not in found:
                so_far = sum(len(plan.part(one)) for one in found)
                found |= _one(board, plan, shard, score, fetch, partial(_told, done, so_far))
        done(sum(len(plan.part(shard)) for shard in found))
        if len(found) == before:
            wait(LOOK_SECONDS)
    return [found[shard] for shard in range(plan.count)]


def _told(done: Callable[[int], None], so_far: int, more: int) -> None:
    done(so_far + more)


def _one(
    board: Board,
    plan: Plan,
    shard: int,
    score: Callable[[Tasks, Callable[[int], None]], T],
    fetch: Callable[[int], T | None],
    told: Callable[[int], None],
) -> dict[int, T]:
    if board.is_done(plan, shard):
        fetched = fetch(shard)
        if fetched is not None:
            return {shard: fetched}
        board.file(plan, shard).unlink(missing_ok=True)
    with board.claim(plan, shard) as ours:
        if not ours:
            return {}
        scored = score(plan.part(shard), told)
        board.write(plan, shard, b"")  # so that nobody else begins with it
        return {shard: scored}
