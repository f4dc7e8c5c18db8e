"""The queue between web and worker: a bell per project, a loop that answers it, and a sweep for bells that were lost.

The only file that imports huey. A bell rung twice before it is answered is one job; a bell rung while its job runs is one
more job. Jobs are answered first come, first served, one round each, so projects take turns. A queue that loses a job
(its process was killed) costs time alone: the sweep rings for every known project.
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

log = logging.getLogger(__name__)
Queue: TypeAlias = Huey  # what other modules call it
IDLE_SECONDS = 0.25
# what reading a message raises that is not JSON, lacks a field, or names no job of ours
FOREIGN = (ValueError, RecursionError, KeyError, TypeError, AttributeError, HueyException)


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
            return RedisHuey("lplgrad", url=url, results=False, serializer=JsonSerializer(), blocking=False)
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
    """Rings and answers bells. `answer(project)` is called in the process that calls `step`."""

    def __init__(self, queue: Queue, answer: Callable[[int], object]) -> None:
        self._queue = queue
        self._job = queue.task(name="reconcile")(self._run)
        self._answer = answer

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
        """Answer one bell. Returns False when there was none. A message that nobody here has sent is dropped."""
        try:
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
        self._answer(project)


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
    next_sweep = clock()
    while not stop.is_set():
        try:
            if clock() >= next_sweep:
                next_sweep = clock() + sweep_seconds
                for project in sweep():
                    jobs.ring_anew(project)
            answered = jobs.step()
        except Exception:
            log.exception("the queue could not be read")
            answered = False
        if not answered:
            stop.wait(IDLE_SECONDS)
