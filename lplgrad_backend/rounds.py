"""A round's heavy part as a child process: what it is asked (`Order`), what it says meanwhile, what it leaves behind.

The parent writes one JSON line to the child's standard input and keeps that pipe open: its end means that the parent is
gone, and the child goes too. The child writes JSON lines of progress to its standard output and results into a folder.
Training therefore has its own memory, which returns to the system, its own low priority, and can be ended at any time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from lplgrad_backend.errors import NotLearnable, TrainingError
from lplgrad_backend.history import Suspect
from lplgrad_backend.labeling import Example, Labeling
from lplgrad_backend.logs import About, current
from lplgrad_backend.settings import Settings, read_settings, without_secrets
from lplgrad_backend.status import Phase
from lplgrad_backend.store import OrderHealth

log = logging.getLogger(__name__)
WEIGHTS, SCORES, OUTCOME = "weights.safetensors", "scores.safetensors", "outcome.json"
TRAINER = (sys.executable, "-m", "lplgrad_backend.trainer")
GRACE_SECONDS = 10.0
SMALLEST_SHARE = 8
# where the kernel counts the processes that it killed for memory: a container's own, and the machine's
KERNEL_KILLS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))
ENVIRONMENT = {
    # Threads of a step that wait for each other sleep. They would spin otherwise, and where other programs want the
    # processors too, the one that is waited for then gets its turn late: a step takes many times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    # What a batch has freed is kept for the next one (mallopt(3)). The kernel would hand it out again page by page, each
    # wiped: that took up to a third of the time in which images are scored. More is kept than they take at a time.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
}
"""Of processes that train and score, where the operator has not said otherwise."""


class PoolTask(BaseModel):
    """One unlabelled task."""

    model_config = ConfigDict(frozen=True)

    task: int
    uri: str


class Order(BaseModel):
    """What the child is to do: train on `examples` and score `pool` with the result; or score it with `version`; or
    order it without training, `cold`, `examples` being labelled already; or score shards of another's round, `helps`."""

    model_config = ConfigDict(frozen=True)

    project: int
    labeling: Labeling
    examples: list[Example] = []
    held_out: list[Example] = []  # labelled images not to train on, but to say what the result makes of them
    pool: list[PoolTask]
    version: str | None = None  # score with this version instead of training
    about: About = About()  # what the child's log lines are about
    cold: bool = False
    helps: str | None = None  # name of that round's folder (see shards.py)
    share: int = 1  # batches are this many times smaller than they would be: memory ran out with larger ones

    def smaller(self) -> Order | None:
        """The same with batches of half the size; None where these are as small as they get."""
        return None if self.share >= SMALLEST_SHARE else self.model_copy(update={"share": 2 * self.share})


class Outcome(BaseModel):
    """What the child found, beside the weights and scores it wrote."""

    model_config = ConfigDict(frozen=True)

    architecture: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    recipe_reason: str = ""
    ordered_by: str = "lplgrad"
    health: OrderHealth | None = None
    temperature: float = 1.0
    temperature_from: str = ""
    metrics: dict[str, float] = {}
    warnings: list[str] = []
    suspects: list[Suspect] = []  # the most suspect first
    unreadable: dict[int, str] = {}  # task id -> why, of examples and pool
    held_out: dict[str, list[str]] = {}  # image_key -> classes that the network names


class Progress(BaseModel):
    """One line from the child."""

    model_config = ConfigDict(frozen=True)

    phase: Phase
    done: int
    total: int


class Failure(BaseModel):
    """The child's last line when it gives up, in words for a person."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["not learnable", "failed", "out of memory"]
    failure: str


class Shards(BaseModel):
    """The child's line when others may help: how many shards of its pool there are for them."""

    model_config = ConfigDict(frozen=True)

    shards: int


class Stop(Protocol):
    """Says whether a round is to end; an event is one."""

    def is_set(self) -> bool:
        """Whether it is."""

    def wait(self, timeout: float) -> bool:
        """Wait until it is, at most so many seconds. Returns whether it is."""


class RoundStopped(Exception):
    """The round was asked to stop; nothing is wrong."""


class _OutOfMemory(Exception):
    """The child said that memory ran out, or the kernel ended it for that."""


class _Killed(Exception):
    """Somebody ended the child by SIGKILL, or the kernel did where it does not say so."""


def run_round(
    order: Order,
    folder: Path,
    settings: Settings,
    report: Callable[[Progress], None],
    stop: Stop,
    command: Sequence[str] = TRAINER,
    invite: Callable[[str, int], None] = lambda name, count: None,
) -> Outcome:
    """Run the child to its end; again with smaller batches when memory runs out, and once more when it is killed.

    Results are in `folder`; `report` is called with each line of progress, and `invite` with that folder's name and the
    number of shards that others may score.

    Raises:
        NotLearnable: there is nothing to train on.
        TrainingError: the child ended without a result; the message carries its last words.
        RoundStopped: `stop` said so.
    """

    def hear(said: Progress | Shards) -> None:
        report(said) if isinstance(said, Progress) else invite(folder.name, said.shards)

    current, kills = order, 0
    while True:
        try:
            return _attempt(current, folder, settings, hear, stop, command)
        except _OutOfMemory as error:
            smaller = current.smaller()
            if smaller is None:
                raise TrainingError(
                    f"Memory ran out, also with batches {current.share} times smaller than usual{error}. Set a smaller "
                    "LPLGRAD_IMAGE_SIZE or LPLGRAD_POOL_LIMIT, or give the backend more memory."
                ) from error
            log.warning("project %d: memory ran out; again with batches of half the size", order.project)
            current = smaller
        except _Killed as error:
            kills += 1
            if kills > 1:
                raise TrainingError(
                    "The training process was killed twice, most likely for memory: use a smaller LPLGRAD_IMAGE_SIZE."
                ) from error
            log.warning("project %d: the training process was killed; once more", order.project)


def _attempt(
    order: Order,
    folder: Path,
    settings: Settings,
    hear: Callable[[Progress | Shards], None],
    stop: Stop,
    command: Sequence[str],
) -> Outcome:
    (folder / OUTCOME).unlink(missing_ok=True)
    before = kernel_kills()
    with _child(command, stop) as child:
        assert child.stdin is not None and child.stdout is not None
        _send(child.stdin, order, folder, settings)
        last = _listen(child.stdout, hear)
        status = child.wait()
    if stop.is_set():
        raise RoundStopped
    if isinstance(last, Failure):
        kind = {"not learnable": NotLearnable, "out of memory": _OutOfMemory}.get(last.kind, TrainingError)
        raise kind(last.failure)
    if status == -signal.SIGKILL:
        raise _OutOfMemory if kernel_kills() > before else _Killed
    if status != 0 or not (folder / OUTCOME).is_file():
        raise TrainingError(f"The training process ended with status {status} and no result; see the log.")
    return Outcome.model_validate_json((folder / OUTCOME).read_bytes())


def kernel_kills(files: Iterable[Path] = KERNEL_KILLS) -> int:
    """How many processes the kernel has killed for memory so far, as far as it says so here."""
    found = 0
    for file in files:
        with contextlib.suppress(OSError):
            found += sum(int(count) for count in re.findall(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE))
    return found


@contextlib.contextmanager
def _child(command: Sequence[str], stop: Stop) -> Iterator[subprocess.Popen[bytes]]:
    # a process group of its own: the terminal's Ctrl-C asks the parent, which ends the child in order
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**ENVIRONMENT, **without_secrets(os.environ)},
        process_group=0,
    )
    ended = threading.Event()
    watcher = threading.Thread(target=_end_on_stop, args=(child, stop, ended), daemon=True)
    watcher.start()
    try:
        yield child
    finally:
        ended.set()
        end_process(child)
        watcher.join()


def _end_on_stop(child: subprocess.Popen[bytes], stop: Stop, ended: threading.Event) -> None:
    while not ended.is_set():
        if stop.wait(0.2):
            end_process(child)
            return


def end_process(process: subprocess.Popen[bytes], grace_seconds: float = GRACE_SECONDS) -> None:
    """Ask a process to end, make it end after a grace period, and collect it. Its pipes are closed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _send(pipe: IO[bytes], order: Order, folder: Path, settings: Settings) -> None:
    order = order.model_copy(update={"about": current()})
    message = {"order": order.model_dump(mode="json"), "folder": str(folder), "settings": settings.environ()}
    with contextlib.suppress(BrokenPipeError):  # the child died at once; its exit status says why
        pipe.write(json.dumps(message).encode() + b"\n")
        pipe.flush()


def _listen(lines: IO[bytes], hear: Callable[[Progress | Shards], None]) -> Progress | Shards | Failure | None:
    last: Progress | Shards | Failure | None = None
    for line in lines:
        said = _understood(line)
        if isinstance(said, Progress | Shards):
            hear(said)
        last = said or last
    return last


def _understood(line: bytes) -> Progress | Shards | Failure | None:
    """What a line says; None for a library's chatter on standard output."""
    for kind in (Progress, Failure, Shards):
        with contextlib.suppress(ValidationError):
            return kind.model_validate_json(line)
    return None


def receive(pipe: IO[bytes]) -> tuple[Order, Path, Settings]:
    """The child's side: read what is to be done. From then on the end of the pipe ends this process."""
    message = json.loads(pipe.readline())
    leave_with_parent(pipe)
    return Order.model_validate(message["order"]), Path(message["folder"]), read_settings(message["settings"], None)


def leave_with_parent(pipe: IO[bytes], leave: Callable[[], None] = lambda: os._exit(1)) -> None:
    """Call `leave` as soon as the other end of `pipe` is closed, which the kernel does when the parent dies."""

    def wait() -> None:
        # not through the pipe's buffer: at the interpreter's end a thread that waits inside one is a fatal error
        while os.read(pipe.fileno(), 1024):
            pass
        leave()

    threading.Thread(target=wait, daemon=True).start()
