"""One of several processes that train one network (`torchrun … -m lplgrad_backend.rank FOLDER`); see together.py."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist

from lplgrad_backend.errors import LPLGradError
from lplgrad_backend.files import keep_private
from lplgrad_backend.lplgrad.team import Together, share_batch_norm
from lplgrad_backend.lplgrad.training import fit
from lplgrad_backend.memory import is_out_of_memory
from lplgrad_backend.rounds import Failure, leave_with_parent
from lplgrad_backend.together import GROUP, TRAINED, News, read_task, say

log = logging.getLogger(__name__)
PATIENCE = timedelta(minutes=30)  # for the slowest of the others, in one step


def train(folder: Path, rank: int, processes: int, card: int) -> None:
    """Do this process's part; the first one tells of each epoch and leaves the trained network.

    Raises:
        LPLGradError: as of `training.fit`.
    """
    task, network, images, targets, recipe = read_task(folder)
    torch.set_num_threads(task.threads)
    device = torch.device(task.device, card) if task.device != "cpu" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # they meet by a file: a port would be open to others
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{folder.absolute() / GROUP}",
        rank=rank,
        world_size=processes,
        timeout=PATIENCE,
    )
    network.to(device)
    share_batch_norm(network)
    for record in fit(network, images, targets, recipe, seed=task.seed, device=device, team=Together()):
        if rank == 0:
            say(News(**asdict(record)))
    if rank == 0:
        safetensors.torch.save_file(network.state_dict(), folder / TRAINED)
    dist.barrier()


def main() -> None:
    """By the environment that torchrun makes; an error is a line to who started all of them."""
    keep_private()
    leave_with_parent(sys.stdin.buffer)
    places = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    try:
        train(Path(sys.argv[1]), *places)
    except Exception as error:
        if isinstance(error, LPLGradError):
            say(Failure(kind="failed", failure=str(error)))
        elif is_out_of_memory(error):
            say(Failure(kind="out of memory", failure=f"{type(error).__name__}: {error}"[:200]))
        else:
            log.exception("one of several training processes failed")
        os._exit(1)
    os._exit(0)  # the thread that waits for the parent's end holds standard input


if __name__ == "__main__":
    main()
