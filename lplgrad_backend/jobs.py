"""The queue between web and worker: a bell per project, a loop that answers it, and a sweep for bells that were lost.

The only file that imports huey. A bell rung twice before it is answered is one job; a bell rung while its job runs is one
more job. Jobs are answered first come, first served, one round each, so projects take turns. A bell whose project another
worker is at stays with the worker that took it, which looks as soon as the other lets go, or is gone. A queue that loses a
job (its process was killed) costs time alone: the sweep rings for every known project.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from huey import Huey, MemoryHuey, RedisHuey, SqliteHuey
from huey.exceptions import HueyException
from huey.registry import Message
from huey.serializer import Serializer
from redis import RedisError

from lplgrad_backend.errors import StoreError
from lplgrad_backend.locks import open_redis

log = logging.getLogger(__name__)
Queue: TypeAlias = Huey  # what other modules call it
IDLE_SECONDS = 0.25
# what reading a message raises that is not JSON, lacks a field, or names no job of ours
FOREIGN = (ValueError, RecursionError, KeyError, TypeError, AttributeError, HueyException)
AGAIN_SECONDS = 1.0  # between looks at a project that another worker is at, and between calls for a queue that is away


class JsonSerializer(Serializer):  # type: ignore[misc]
    """Queue messages as JSON instead of pickles: whoever can write to the queue's storage must not be able to run code
    here. A message that is not JSON raises ValueError or RecursionError."""

    def _serialize(self, data: Any) -> bytes:
        if isinstance(data, Message):
            return json.dumps({"id": data.id, "name": data.name, "args": data.args}).encode()
        return json.dumps(data).encode()

    def _deserialize(self, data: bytes) -> Any:
        value = json.loads(bytes(data))
        if isinstance(value, dict) and "name" in value:
            return Message(id=value["id"], name=value["name"], args=tuple(value["args"]), kwargs={}, retries=0)
        return value


def open_queue(url: str | None, folder: Path) -> Queue:
    """A Redis queue at `url`, or one in a file below `folder`.

    Raises:
        StoreError: the file cannot be used.
    """
    with _errors_of_queue():
        if url is not None:
            pool = open_redis(url).connection_pool
            return RedisHuey(
                "lplgrad", connection_pool=pool, results=False, serializer=JsonSerializer(), blocking=False
            )
        folder.mkdir(parents=True, exist_ok=True)
        return SqliteHuey(
            "lplgrad",
            filename=str(folder / "queue.db"),
            results=False,
            serializer=JsonSerializer(),
            fsync=False,
            strict_fifo=True,
        )


@contextmanager
def _errors_of_queue() -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error, RedisError) as error:
        raise StoreError(
            f"The queue cannot be used: {error}. See LPLGRAD_QUEUE_URL, or without one MODEL_DIR and its queue.db, "
            "which may be removed: what waited in it is found again."
        ) from error


def memory_queue() -> Queue:
    """A queue that lives in this process, for tests."""
    return MemoryHuey("lplgrad", results=False, serializer=JsonSerializer())


class Jobs:
    """Rings and answers bells. `answer(project)` is called in the process that calls `step`; it returns False when another
    process is at the project, and is then called again a little later, or after so many seconds as it returns.
    `assist(name)` is called there too, for each invitation to score a part of the round of that name."""

    def __init__(
        self,
        queue: Queue,
        answer: Callable[[int], object],
        clock: Callable[[], float] = time.monotonic,
        assist: Callable[[str], object] = lambda name: None,
    ) -> None:
        self._queue = queue
        self._job = queue.task(name="reconcile")(self._run)
        self._help = queue.task(name="assist")(assist)
        self._answer, self._clock = answer, clock
        self._owed: dict[int, float] = {}  # project -> when to call for it again

    def ring(self, project: int) -> None:
        """Ask for a look at the project, unless one is asked for already.

        Raises:
            StoreError: the queue cannot be reached.
        """
        with _errors_of_queue():
            if self._queue.put_if_empty(_bell(project), 1):
                self._job(int(project))

    def ring_anew(self, project: int) -> None:
        """The same for a bell that may have been lost: forgets that it was rung."""
        if project not in self.waiting():
            self._queue.delete(_bell(project))
        self.ring(project)

    def waiting(self) -> list[int]:
        """Projects whose bell was rung and not answered yet, in their order.

        Raises:
            StoreError: the queue cannot be reached.
        """
        with _errors_of_queue():
            return [task.args[0] for task in self._queue.pending() if _is_bell(task)]

    def step(self) -> bool:
        """Answer one bell. Returns False when there was none. A message that nobody here has sent is dropped.

        Raises:
            StoreError: the queue cannot be reached.
        """
        owed = next((project for project, due in self._owed.items() if due <= self._clock()), None)
        if owed is not None:
            self._owed.pop(owed)
            self._call(owed)
            return True
        try:
            with _errors_of_queue():
                task = self._queue.dequeue()
            if task is None:
                return False
            self._queue.execute(task)
        except FOREIGN as error:
            log.warning("something in the queue was not put there by this program (%s)", type(error).__name__)
        return True

    def _run(self, project: int) -> None:
        # before the answer, so that a bell rung from now on is one more job
        self._queue.delete(_bell(project))
        self._owed.pop(project, None)
        self._call(project)

    def invite(self, name: str, count: int) -> None:
        """Ask workers to score parts of the round of that name, as many as there are parts. A lost invitation, or a queue
        that is away, costs time alone."""
        try:
            with _errors_of_queue():
                for _ in range(count):
                    self._help(name)
        except StoreError as error:
            log.warning("nobody is asked to help with %s: %s", name, error)

    def hand_back(self) -> None:
        """Ring again for the projects that this process still owes a look, since it leaves.

        Raises:
            StoreError: the queue cannot be reached.
        """
        for project in self._owed:
            self.ring(project)

    def _call(self, project: int) -> None:
        answered = self._answer(project)
        if answered is False:
            self._owed[project] = self._clock() + AGAIN_SECONDS
        elif isinstance(answered, float):
            self._owed[project] = self._clock() + answered


def _is_bell(task: Any) -> bool:
    return len(task.args) == 1 and isinstance(task.args[0], int)


def _bell(project: int) -> str:
    return f"bell.{int(project)}"


def work(
    jobs: Jobs,
    sweep: Callable[[], Iterable[int]],
    sweep_seconds: float,
    stop: threading.Event,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Answer bells until `stop` is set, and ring for every project that `sweep` names, at start and every so often."""
    next_sweep, away = clock(), False
    while not stop.is_set():
        try:
            if clock() >= next_sweep:
                next_sweep = clock() + sweep_seconds
                for project in sweep():
                    jobs.ring_anew(project)
            answered, pause, away = jobs.step(), IDLE_SECONDS, False
        except StoreError as error:
            if not away:
                log.warning("%s", error)
            # what was rung for meanwhile is found by a sweep as soon as there is a queue again
            answered, pause, away, next_sweep = False, AGAIN_SECONDS, True, clock()
        except Exception:
            log.exception("a look ended unexpectedly")
            answered, pause = False, IDLE_SECONDS
        if not answered:
            stop.wait(pause)
