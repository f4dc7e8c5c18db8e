"""What a round sees of images: pixels that its network learns from, or what the frozen part of that network says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lplgrad_backend.errors import ImageError
from lplgrad_backend.frozen_features import FrozenFeatures
from lplgrad_backend.images import Images
from lplgrad_backend.labeling import Example
from lplgrad_backend.lplgrad.gradnorm.entropy import TEMPERATURES
from lplgrad_backend.lplgrad.network import Looked, Network
from lplgrad_backend.lplgrad.pool import Answers, FeaturePool
from lplgrad_backend.lplgrad.training import look_at
from lplgrad_backend.scoring import BATCH, Measured, Readable, Scorer, as_batch, probabilities_of, readable
from lplgrad_backend.shared_scoring import Sharing

Told = Callable[[int], None]


@dataclass(frozen=True)
class Labelled:
    """Labelled images that can be used.

    Attributes:
        images: uint8 [N, 3, S, S], or what the frozen part of the network said of them.
        targets: [N, C].
        examples: N.
        unreadable: task id -> why its image cannot be used, of the others.
    """

    images: Tensor | Looked
    targets: Tensor
    examples: list[Example]
    unreadable: dict[int, str]

    @property
    def counts(self) -> Tensor:
        """How many of the images show each class, [C]."""
        return (self.targets > 0).sum(0).cpu()


class Sight:
    """Looks at images for one round.

    Args:
        network: that is trained, on its device.
        frozen: what looks for a network of which the head alone is trained; None: its pixels are learned from.
        batch: images measured at once, where it is not `frozen` that looks.
        sharing: with whom the pool is scored; None: alone.
    """

    def __init__(
        self,
        network: Network,
        images: Images,
        frozen: FrozenFeatures | None,
        batch: int = BATCH,
        sharing: Sharing | None = None,
    ) -> None:
        self._network, self._images, self._frozen, self._batch = network, images, frozen, batch
        self._sharing = sharing
        self.looked_at = 0  # images that went through the frozen part; the others' features were kept

    def labelled(self, examples: Sequence[Example], done: Told = lambda count: None) -> Labelled:
        """Labelled images for training or for questions about them."""
        tasks = [(one.task_id, one.uri) for one in examples]
        if self._frozen is None:
            pixels, unreadable = self._pixels(tasks, done)
            images: Tensor | Looked = pixels
        else:
            seen = self._frozen.see(tasks, done)
            images, unreadable = seen.looked, seen.unreadable
            self.looked_at += seen.computed
        used = [one for one in examples if one.task_id not in unreadable]
        targets = torch.tensor([one.target for one in used], dtype=torch.float32)
        return Labelled(images, targets.reshape(len(used), self._network.architecture.classes), used, unreadable)

    def _pixels(self, tasks: Sequence[tuple[int, str]], done: Told) -> tuple[Tensor, dict[int, str]]:
        side = self._network.architecture.side
        found: list[NDArray[np.uint8]] = []
        unreadable = {}
        for count, ((task, _), one) in enumerate(zip(tasks, self._images.load_many(tasks, side), strict=True), 1):
            if isinstance(one, ImageError):
                unreadable[task] = one.reason
            else:
                found.append(one)
            done(count)
        return as_batch(found) if found else torch.zeros(0, 3, side, side, dtype=torch.uint8), unreadable

    def features(self, images: Tensor | Looked) -> Tensor:
        """What the head sees of images, [N, D] on the processor."""
        looked = look_at(self._network, images, self._batch) if isinstance(images, Tensor) else images
        return looked.features.cpu()

    def pool(
        self, tasks: Sequence[tuple[int, str]], ladder: Sequence[float], confidence: float, done: Told
    ) -> Readable:
        """Measure a pool of (task id, address) for ordering, with the network as it is trained now.

        Args:
            ladder: temperatures of the norms that strategies may ask for, the first is 1.
            confidence: by what logits are divided for probabilities.
        """
        if self._frozen is None:
            scorer = Scorer(
                self._network, for_ordering=True, temperatures=ladder, confidence=confidence, batch=self._batch
            )
            if self._sharing is None:
                return readable(tasks, list(scorer.measure(self._images, tasks, done)))
            return readable(tasks, self._sharing.measure(self._images, scorer, tasks, done))
        if self._sharing is None:
            seen = self._frozen.see(tasks, done)
        else:
            seen = self._sharing.see(self._frozen, self._network, tasks, done)
        self.looked_at += seen.computed
        return Readable(
            [tasks[at] for at in seen.used],
            measured_in_closed_form(self._network, seen.looked, ladder, confidence),
            seen.unreadable,
        )


def measured_in_closed_form(
    network: Network, looked: Looked, ladder: Sequence[float], confidence: float
) -> list[Measured]:
    """What `Scorer` measures, of images of which the frozen part of the network was told once."""
    if len(looked.features) == 0:
        return []
    pool = FeaturePool(network, looked, looked, torch.zeros(network.architecture.classes))
    norms = pool.norm_ladder(torch.arange(len(pool)))[[TEMPERATURES.index(one) for one in ladder]]
    answers = Answers(pool.logits, pool.features, pool.predicted_losses, norms).on_processor()
    probabilities = probabilities_of(answers.logits.float() / confidence, pool.multiple).numpy()
    rows = zip(answers.ladder[0].tolist(), probabilities, answers.each(), strict=True)
    return [Measured(norm, row, one) for norm, row, one in rows]
