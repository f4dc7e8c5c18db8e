"""A training that goes on after its process has ended: its checkpoint on disk, under a key that no other training has."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from lplgrad_backend.checkpoint_file import read_checkpoint, write_checkpoint
from lplgrad_backend.errors import StoreError
from lplgrad_backend.labeling import Example
from lplgrad_backend.lplgrad.checkpoint import Checkpoint
from lplgrad_backend.lplgrad.network import Network
from lplgrad_backend.lplgrad.recipe import Recipe

log = logging.getLogger(__name__)
SECONDS = 5.0  # of training, and the epoch that goes on then, may have to be done again
SHARE = 0.05  # of a training's time that its checkpoints may take: of large networks on slow disks there are fewer


class Resumption:
    """The keeper (`lplgrad.checkpoint.Keeper`) of one training. What the disk refuses is logged, and no more.

    Args:
        file: see checkpoint_file.py.
        key: of `key_of`.
        seconds: pass between two writings, at least; more where a writing takes more than `SHARE` of them.
    """

    def __init__(
        self, file: Path, key: str, *, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file, self._key, self._seconds, self._clock = file, key, seconds, clock
        self._due = clock() + seconds

    def recall(self) -> Checkpoint | None:
        """See `Keeper`."""
        found = read_checkpoint(self._file, self._key)
        if found is None:
            return None
        (epoch, steps), arrays = found
        log.info("the training goes on after epoch %d, as %s has it", epoch, self._file)
        return Checkpoint(epoch, steps, {name: torch.from_numpy(array) for name, array in arrays.items()})

    def keep(self, checkpoint: Callable[[], Checkpoint]) -> None:
        """See `Keeper`."""
        began = self._clock()
        if began < self._due:
            return
        now = checkpoint()
        try:
            arrays = {name: tensor.numpy() for name, tensor in now.tensors.items()}
            write_checkpoint(self._file, self._key, (now.epoch, now.steps), arrays)
        except StoreError as error:
            log.warning("%s", error)
        ended = self._clock()
        self._due = ended + max(self._seconds, (ended - began) / SHARE)


def key_of(
    network: Network, examples: Iterable[Example], targets: Tensor, recipe: Recipe, seed: int, device: torch.device
) -> str:
    """A digest of everything that a training is a function of: the weights that it starts from among it."""
    said = [[example.task_id, example.uri] for example in examples], recipe.as_plain(), seed, device.type
    digest = hashlib.sha256(json.dumps([*said, network.architecture.as_plain(), torch.__version__]).encode())
    for tensor in (targets, *network.state_dict().values()):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
