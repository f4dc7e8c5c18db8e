"""What strategies may ask of a pool of unlabelled images, and a network's answers: measured when first asked, in closed form
from stored features, or given beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from lplgrad_backend.errors import NonFiniteScore
from lplgrad_backend.lplgrad.gradnorm import GradientNorms
from lplgrad_backend.lplgrad.gradnorm.entropy import TEMPERATURES, entropy_gradient
from lplgrad_backend.lplgrad.network import Looked, Network
from lplgrad_backend.lplgrad.training import look_at

BATCH = 64


class Pool(Protocol):
    """N unlabelled images and L labelled ones, C classes, features of D numbers. All tensors are on one device."""

    def __len__(self) -> int:
        """N."""

    @property
    def multiple(self) -> bool:
        """Any number of classes per image (a sigmoid each) instead of one (softmax)."""

    @property
    def logits(self) -> Tensor:
        """[N, C]."""

    @property
    def features(self) -> Tensor:
        """[N, D], what the last layer sees."""

    @property
    def labelled_features(self) -> Tensor:
        """[L, D], those of the images that have a label."""

    @property
    def labelled_counts(self) -> Tensor:
        """[C], how many of these show each class."""

    @property
    def predicted_losses(self) -> Tensor:
        """[N], what the loss-prediction module expects."""

    def gradient_norms(self, positions: Tensor) -> Tensor:
        """Exact gradient norms, float64 [K], of the images at these positions, int64 [K]."""

    def norm_ladder(self, positions: Tensor) -> Tensor:
        """Exact gradient norms at each of `TEMPERATURES`, times that temperature: float64 [5, K]; the first row is
        `gradient_norms`."""


class NetworkPool:
    """A pool as a trained network sees it. One forward pass serves all cheap strategies; exact norms cost about three.

    Args:
        network: in eval mode; norms count the parameters that are not frozen.
        images: uint8 [N, 3, S, S].
        labelled: uint8 [L, 3, S, S].
        counts: [C], how many of these show each class.
    """

    def __init__(self, network: Network, images: Tensor, labelled: Tensor, counts: Tensor) -> None:
        self._network, self._images, self._labelled, self._counts = network, images, labelled, counts
        self._gradient_norms = GradientNorms(network.main, multiple=self.multiple)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def multiple(self) -> bool:
        """As of `Pool`."""
        return self._network.architecture.multiple

    @property
    def logits(self) -> Tensor:
        """As of `Pool`."""
        return self._looked.logits

    @property
    def features(self) -> Tensor:
        """As of `Pool`."""
        return self._looked.features

    @cached_property
    def labelled_features(self) -> Tensor:
        """As of `Pool`."""
        return look_at(self._network, self._labelled, BATCH).features

    @property
    def labelled_counts(self) -> Tensor:
        """As of `Pool`."""
        return self._counts.to(self.logits.device)

    @cached_property
    def predicted_losses(self) -> Tensor:
        """As of `Pool`."""
        with torch.no_grad():
            predicted: Tensor = self._network.loss_prediction(self._looked.pooled)
        return predicted

    def gradient_norms(self, positions: Tensor) -> Tensor:
        """As of `Pool`.

        Raises:
            NonFiniteScore: naming positions in the pool.
        """
        return torch.cat([self._ladder(self._gradient_norms, part)[0] for part in positions.split(BATCH)])

    def norm_ladder(self, positions: Tensor) -> Tensor:
        """As of `Pool`; five backward passes instead of one.

        Raises:
            NonFiniteScore: naming positions in the pool.
        """
        several = GradientNorms(self._network.main, multiple=self.multiple, temperatures=TEMPERATURES)
        return torch.cat([self._ladder(several, part) for part in positions.split(BATCH)], 1)

    def _ladder(self, norms: GradientNorms, positions: Tensor) -> Tensor:
        device = next(self._network.parameters()).device
        try:
            ladder = norms.measure(self._images[positions].to(device).float() / 255).ladder
            return ladder * ladder.new_tensor(norms.temperatures).unsqueeze(1)
        except NonFiniteScore as error:
            raise NonFiniteScore(positions[error.indices].tolist(), error.where) from error

    @cached_property
    def _looked(self) -> Looked:
        return look_at(self._network, self._images, BATCH)


class FeaturePool:
    """A pool of which the frozen part of a network was told once: only its linear head is trained, so exact norms have a
    closed form, ||d|| (||f|| + 1), and a round costs a matrix product.

    Args:
        network: with a linear head (`Network.head_is_linear`).
        stored: of the pool, as `look_at` gives it; its logits are not read, for the head may have been trained since.
        labelled: of the labelled images.
        counts: [C], how many of these show each class.
    """

    def __init__(self, network: Network, stored: Looked, labelled: Looked, counts: Tensor) -> None:
        self._network, self._stored, self._labelled, self._counts = network, stored, labelled, counts

    def __len__(self) -> int:
        return len(self._stored.features)

    @property
    def multiple(self) -> bool:
        """As of `Pool`."""
        return self._network.architecture.multiple

    @cached_property
    def logits(self) -> Tensor:
        """As of `Pool`."""
        with torch.no_grad():
            logits: Tensor = self._network.head(self._stored.features)
        return logits

    @property
    def features(self) -> Tensor:
        """As of `Pool`."""
        return self._stored.features

    @property
    def labelled_features(self) -> Tensor:
        """As of `Pool`."""
        return self._labelled.features

    @property
    def labelled_counts(self) -> Tensor:
        """As of `Pool`."""
        return self._counts.to(self.logits.device)

    @cached_property
    def predicted_losses(self) -> Tensor:
        """As of `Pool`."""
        with torch.no_grad():
            predicted: Tensor = self._network.loss_prediction(self._stored.pooled)
        return predicted

    def gradient_norms(self, positions: Tensor) -> Tensor:
        """As of `Pool`."""
        return self.norm_ladder(positions)[0]

    def norm_ladder(self, positions: Tensor) -> Tensor:
        """As of `Pool`."""
        features, logits = self.features[positions].double(), self.logits[positions]
        weights = [parameter for parameter in self._network.head.parameters() if parameter.requires_grad]
        lengths = sum(features.norm(dim=1) if one.dim() > 1 else torch.ones(()).double() for one in weights)
        steps = [T * entropy_gradient(logits, self.multiple, T).norm(dim=1) * lengths for T in TEMPERATURES]
        return torch.stack(steps)


@dataclass(frozen=True)
class Answers:
    """What a network says of N images, for a pool whose images are not kept.

    Attributes:
        logits, features, predicted_losses: as of `Pool`.
        ladder: as of `Pool.norm_ladder` for all images; [1, N], at temperature 1 alone, serves every strategy but
            `lplgrad-ladder`.
    """

    logits: Tensor
    features: Tensor
    predicted_losses: Tensor
    ladder: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """Those of several batches, at least one, as one."""
        return cls(
            torch.cat([part.logits for part in parts]),
            torch.cat([part.features for part in parts]),
            torch.cat([part.predicted_losses for part in parts]),
            torch.cat([part.ladder for part in parts], 1),
        )

    def on_processor(self) -> Answers:
        """The same, in the processor's memory."""
        return Answers(self.logits.cpu(), self.features.cpu(), self.predicted_losses.cpu(), self.ladder.cpu())

    def each(self) -> Iterator[Answers]:
        """One image after the other, copied, so that keeping one does not keep the batch."""
        for n in range(len(self.logits)):
            one = slice(n, n + 1)
            parts = (self.logits[one], self.features[one], self.predicted_losses[one], self.ladder[:, one])
            yield Answers(*(part.clone() for part in parts))


class AnsweredPool:
    """A pool of which everything was measured beforehand, batch by batch."""

    def __init__(self, answers: Answers, labelled_features: Tensor, labelled_counts: Tensor, multiple: bool) -> None:
        self.answers, self.multiple = answers, multiple
        self.logits, self.features, self.predicted_losses = answers.logits, answers.features, answers.predicted_losses
        self.labelled_features, self.labelled_counts = labelled_features, labelled_counts

    def __len__(self) -> int:
        return len(self.logits)

    def gradient_norms(self, positions: Tensor) -> Tensor:
        """As of `Pool`."""
        return self.answers.ladder[0, positions]

    def norm_ladder(self, positions: Tensor) -> Tensor:
        """As of `Pool`.

        Raises:
            ValueError: only one temperature was measured.
        """
        if len(self.answers.ladder) != len(TEMPERATURES):
            raise ValueError(
                f"Of this pool {len(self.answers.ladder)} of {len(TEMPERATURES)} temperatures were measured."
            )
        return self.answers.ladder[:, positions]


def answer(network: Network, norms: GradientNorms, images: Tensor) -> Answers:
    """Ask everything about one batch of images, uint8 [N, 3, S, S]; `norms` are of `network.main`.

    Raises:
        NonFiniteScore: naming positions in the batch.
    """
    looked = look_at(network, images)
    device = next(network.parameters()).device
    ladder = norms.measure(images.to(device).float() / 255).ladder
    with torch.no_grad():
        predicted = network.loss_prediction(looked.pooled)
    return Answers(
        looked.logits, looked.features, predicted, ladder * ladder.new_tensor(norms.temperatures).unsqueeze(1)
    )
