"""What the frozen part of a network says of images: computed once, then kept on disk by content, weights and side.

So a round that trains the head alone looks only at images that it has not seen before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lplgrad_backend.errors import ImageError, ImageUnreadable
from lplgrad_backend.images import Images
from lplgrad_backend.lplgrad.network import Looked, Network
from lplgrad_backend.lplgrad.training import look_at
from lplgrad_backend.scoring import as_batch

BATCH = 64


@dataclass(frozen=True)
class Seen:
    """What was seen of some tasks' images.

    Attributes:
        looked: of those that can be used, in their order; its logits are zeros, since the head may be trained later.
        used: positions of these among the tasks.
        unreadable: task id -> why its image cannot be used.
        computed: how many were not kept and had to be looked at.
    """

    looked: Looked
    used: list[int]
    unreadable: dict[int, str]
    computed: int

    @classmethod
    def joined(cls, parts: Sequence[Seen], size: int) -> Seen:
        """What was seen of consecutive parts of `size` tasks each, the last one perhaps of fewer."""
        looked = [part.looked for part in parts]
        return cls(
            Looked(
                torch.cat([one.logits for one in looked]),
                torch.cat([one.features for one in looked]),
                tuple(torch.cat(level) for level in zip(*(one.pooled for one in looked), strict=True)),
            ),
            [at + number * size for number, part in enumerate(parts) for at in part.used],
            {task: why for part in parts for task, why in part.unreadable.items()},
            sum(part.computed for part in parts),
        )


class FrozenFeatures:
    """Looks at images with one network whose head is linear. Not for several threads.

    Args:
        network: on the device that it is to run on.
        batch: how many images go through it at once.
    """

    def __init__(self, network: Network, images: Images, batch: int = BATCH) -> None:
        assert isinstance(network.head, nn.Linear)
        self._network, self._images, self._batch = network, images, batch
        self._widths = [network.head.in_features, *(level.channels for level in network.levels)]
        self._name = frozen_digest(network)

    def see(self, tasks: Sequence[tuple[int, str]], done: Callable[[int], None] = lambda count: None) -> Seen:
        """Look at the images of (task id, address) pairs."""
        rows: list[NDArray[np.float32]] = []
        used: list[int] = []
        unreadable: dict[int, str] = {}
        computed = 0
        for start in range(0, len(tasks), BATCH):
            part = tasks[start : start + BATCH]
            kept = {at: self._kept(*task) for at, task in enumerate(part)}
            missing = [at for at, row in kept.items() if row is None]
            fresh = dict(zip(missing, self._fresh([part[at] for at in missing]), strict=True))
            computed += len(missing)
            for at, (task, uri) in enumerate(part):
                one = fresh.get(at, kept[at])
                if not isinstance(one, np.ndarray):
                    unreadable[task] = one.reason if one else ""
                elif not np.isfinite(one).all():
                    unreadable[task] = ImageUnreadable(uri, "its features are not finite numbers.").reason
                else:
                    rows.append(one)
                    used.append(start + at)
            done(start + len(part))
        return Seen(self._looked(rows), used, unreadable, computed)

    def _kept(self, task: int, uri: str) -> NDArray[np.float32] | None:
        return self._images.features(uri, task, self._name, sum(self._widths))

    def _fresh(self, tasks: Sequence[tuple[int, str]]) -> list[NDArray[np.float32] | ImageError]:
        if not tasks:
            return []
        loaded = list(self._images.load_many(tasks, self._network.architecture.side))
        pixels = [one for one in loaded if not isinstance(one, ImageError)]
        rows = iter(_rows(look_at(self._network, as_batch(pixels), self._batch)) if pixels else [])
        found = [one if isinstance(one, ImageError) else next(rows) for one in loaded]
        for (task, uri), one in zip(tasks, found, strict=True):
            if not isinstance(one, ImageError):
                self._images.keep_features(uri, task, self._name, one)
        return found

    def _looked(self, rows: list[NDArray[np.float32]]) -> Looked:
        device = next(self._network.parameters()).device
        stacked = np.stack(rows) if rows else np.zeros((0, sum(self._widths)), np.float32)
        features, *levels = torch.from_numpy(stacked).to(device).split(self._widths, dim=1)
        logits = features.new_zeros(len(rows), self._network.architecture.classes)
        return Looked(logits, features.contiguous(), tuple(level.contiguous() for level in levels))


def _rows(looked: Looked) -> list[NDArray[np.float32]]:
    """Features and pooled levels of each image behind each other."""
    return list(torch.cat([looked.features, *looked.pooled], 1).float().cpu().numpy())


def frozen_digest(network: Network) -> str:
    """16 hexadecimal digits of all that the features depend on but the image: the weights before the head, how they are
    put together, and the side of the images."""
    inside = network.head_name + "."
    digest = hashlib.sha256(json.dumps({**network.architecture.as_plain(), "classes": 0}, sort_keys=True).encode())
    for name, value in sorted(network.main.state_dict().items()):
        if not name.startswith(inside):
            digest.update(name.encode() + _bytes(value))
    return digest.hexdigest()[:16]


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().numpy().tobytes()
