"""A training that goes on after its process has ended: its standing on disk, under a key that only the same training has."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from lplgrad_backend.checkpoints import read_checkpoint, write_checkpoint
from lplgrad_backend.errors import StoreError
from lplgrad_backend.labeling import Example
from lplgrad_backend.lplgrad.network import Network
from lplgrad_backend.lplgrad.recipe import Recipe
from lplgrad_backend.lplgrad.standing import Standing

log = logging.getLogger(__name__)
SECONDS = 5.0  # of training that may have to be done again


class Resumption:
    """The memory (`lplgrad.standing.Memory`) of one training. What the disk refuses is logged, and no more.

    Args:
        file: see checkpoints.py.
        key: of `key_of`.
        seconds: pass between two writings, at least; a write takes a fraction of one.
    """

    def __init__(
        self, file: Path, key: str, *, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file, self._key, self._seconds, self._clock = file, key, seconds, clock
        self._last = clock()

    def recall(self) -> Standing | None:
        """See `Memory`."""
        found = read_checkpoint(self._file, self._key)
        if found is None:
            return None
        (epoch, steps), arrays = found
        log.info("the training goes on after epoch %d, as %s has it", epoch, self._file)
        return Standing(epoch, steps, {name: torch.from_numpy(array) for name, array in arrays.items()})

    def keep(self, standing: Callable[[], Standing]) -> None:
        """See `Memory`."""
        if self._clock() < self._last + self._seconds:
            return
        now = standing()
        try:
            arrays = {name: tensor.numpy() for name, tensor in now.tensors.items()}
            write_checkpoint(self._file, self._key, (now.epoch, now.steps), arrays)
        except StoreError as error:
            log.warning("%s", error)
        self._last = self._clock()


def key_of(
    network: Network, examples: Iterable[Example], targets: Tensor, recipe: Recipe, seed: int, device: torch.device
) -> str:
    """A digest of everything that a training is a function of: the weights that it starts from among it."""
    said = [[example.task_id, example.uri] for example in examples], recipe.as_plain(), seed, device.type
    digest = hashlib.sha256(json.dumps([*said, network.architecture.as_plain(), torch.__version__]).encode())
    for tensor in (targets, *network.state_dict().values()):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
