"""Training by several processes: torchrun starts them, and each is lplgrad_backend/rank.py.

What they train on goes through a folder, news of each epoch and the first reason to give up come from their standard output,
and the end of their standard input means that who started them is gone, whereupon they go too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from lplgrad_backend.errors import TrainingError
from lplgrad_backend.files import written
from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.lplgrad.recipe import Recipe, recipe_from_plain
from lplgrad_backend.lplgrad.training import EpochRecord, freeze
from lplgrad_backend.rounds import Failure, end_process, kernel_kills
from lplgrad_backend.settings import Settings, without_secrets

log = logging.getLogger(__name__)
TASK, START, TRAINED = "task.json", "start.safetensors", "trained.safetensors"
LAUNCHED, GROUP = "launched", "group"  # files by which torchrun and then the processes meet
NETWORK, DATA = "network.", "data."
LAUNCHER, RANK = "lplgrad_backend.launcher", "lplgrad_backend.rank"
REASON = re.compile(r"\w*(\.\w+)*Error: ")
LOOPBACK = dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), "lo0" if sys.platform == "darwin" else "lo")


class Task(BaseModel):
    """What each process is to do; tensors come beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: dict[str, Any]
    recipe: dict[str, Any]
    seed: int
    device: str  # the type alone
    threads: int


class News(BaseModel):
    """An epoch's record, as one line."""

    model_config = ConfigDict(frozen=True)

    epoch: int
    epochs: int
    loss: float
    ranking_loss: float
    accuracy: float
    seconds: float


def processes_for(settings: Settings, device: torch.device, recipe: Recipe) -> int:
    """How many processes train: as set, or one per visible card, but never more than half a batch or than there are cards;
    and one where the head alone is trained on stored features, which takes seconds."""
    cards = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1
    wanted = settings.processes or cards
    most = cards if device.type == "cuda" else wanted
    return 1 if recipe.trained == "head" else max(1, min(wanted, most, recipe.batch // 2))


def fit_together(
    network: Network,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    processes: int,
    threads: int,
    folder: Path,
) -> Iterator[EpochRecord]:
    """As `training.fit`, by several processes on this machine; pixels alone.

    Args:
        threads: of all processes together.
        folder: an empty one for what they are told and leave.

    Raises:
        TrainingError: the loss is not finite, or one of them ended.
        torch.OutOfMemoryError: memory ran out in one of them.
    """
    share = max(1, threads // processes)
    task = Task(
        architecture=network.architecture.as_plain(),
        recipe=recipe.as_plain(),
        seed=seed,
        device=device.type,
        threads=share,
    )
    tensors = {NETWORK + name: value for name, value in network.state_dict().items()}
    with written("What several processes train from", folder):
        (folder / TASK).write_text(task.model_dump_json())
        safetensors.torch.save_file({**tensors, DATA + "images": images, DATA + "targets": targets}, folder / START)
    yield from _listen(folder, processes, share)
    network.load_state_dict(safetensors.torch.load_file(folder / TRAINED))
    freeze(network, recipe.trained)
    network.to(device).eval()


def read_task(folder: Path) -> tuple[Task, Network, Tensor, Tensor, Recipe]:
    """What `fit_together` wrote: also the network, images and targets, on the processor."""
    task = Task.model_validate_json((folder / TASK).read_bytes())
    tensors = safetensors.torch.load_file(folder / START)
    network = Network(Architecture.from_plain(task.architecture))
    network.load_state_dict(
        {name.removeprefix(NETWORK): value for name, value in tensors.items() if name.startswith(NETWORK)}
    )
    return task, network, tensors[DATA + "images"], tensors[DATA + "targets"], recipe_from_plain(task.recipe)


def _listen(folder: Path, processes: int, threads: int) -> Iterator[EpochRecord]:
    failure, before = None, kernel_kills()
    with _torchrun(folder, processes, threads) as (process, last_words):
        assert process.stdout is not None
        for line in process.stdout:
            said = _understood(line)
            if isinstance(said, News):
                yield EpochRecord(**said.model_dump())
            failure = failure or (said if isinstance(said, Failure) else None)
        status = process.wait()
    if failure is not None and failure.kind != "out of memory":
        raise TrainingError(failure.failure)
    if failure is not None or (status and kernel_kills() > before):
        raise torch.OutOfMemoryError(failure.failure if failure else "the kernel ended one of several processes")
    if status != 0 or not (folder / TRAINED).is_file():
        reasons = [line for line in last_words if REASON.match(line)]
        raise TrainingError(
            f"One of {processes} training processes ended without a result; the log may say why. "
            f"{''.join(reasons[-1:])[:300]} LPLGRAD_PROCESSES=1 trains with one."
        )


def _understood(line: bytes) -> News | Failure | None:
    for kind in (News, Failure):
        with contextlib.suppress(ValidationError):
            return kind.model_validate_json(line)
    return None


@contextlib.contextmanager
def _torchrun(folder: Path, processes: int, threads: int) -> Iterator[tuple[subprocess.Popen[bytes], list[str]]]:
    """The running processes, and the last lines that they wrote to standard error, which are logged as ours."""
    command = [
        sys.executable, "-m", LAUNCHER, "--nnodes=1", f"--nproc-per-node={processes}", "--max-restarts=0",
        "--rdzv-backend=file", f"--rdzv-endpoint={folder.absolute() / LAUNCHED}",
        f"--log-dir={folder}", "-m", RANK, str(folder),
    ]  # fmt: skip
    environ = {**LOOPBACK, **without_secrets(os.environ), "OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
    )
    assert process.stderr is not None
    said: list[str] = []
    listener = threading.Thread(target=_log, args=(process.stderr, said), daemon=True)
    listener.start()
    try:
        yield process, said
    finally:
        end_process(process)
        listener.join()
        process.stderr.close()


def _log(lines: IO[bytes], said: list[str]) -> None:
    for line in lines:
        text = line.decode(errors="replace").strip()
        if text:
            log.info("%s", text)
            said[:] = [*said[-19:], text]


def say(message: BaseModel) -> None:
    """One line to who started this."""
    sys.stdout.write(json.dumps(message.model_dump()) + "\n")
    sys.stdout.flush()
