"""What a network says of labelled images that it did not see: for honest confidences, and for `suspicion` of labels by
networks that could not learn them by heart.

The labelled images are dealt into folds; each fold is asked of a network trained on the others. No label is lost for
training, as the network that is kept is trained on all.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lplgrad_backend.lplgrad.network import Looked, Network
from lplgrad_backend.lplgrad.objective import main_loss
from lplgrad_backend.lplgrad.recipe import Recipe
from lplgrad_backend.lplgrad.training import fit, look_at

FOLDS = 4
COLDEST, HOTTEST = 0.05, 20.0
FINEST = 1e-4


@dataclass(frozen=True)
class Unseen:
    """What is said of labelled images by networks that did not see them.

    Attributes:
        logits: [N, C].
        losses: [N], the main loss by these logits.
        predicted: [N], what the loss-prediction module expected.
    """

    logits: Tensor
    losses: Tensor
    predicted: Tensor


def cross_fit(
    network: Network, images: Tensor | Looked, targets: Tensor, recipe: Recipe, *, seed: int, device: torch.device,
    folds: int = FOLDS,
) -> Unseen:  # fmt: skip
    """Train copies of an untrained `network`, which itself is left as it is; costs about `folds` trainings.

    Args:
        images, targets: as of `fit`, at least two.
        folds: 2 or more; at most one for each image.

    Raises:
        TrainingError: as of `fit`.
    """
    parts: list[tuple[Tensor, Unseen]] = []
    for number, held in enumerate(deal(targets, min(folds, len(targets)), seed)):
        others = torch.ones(len(targets), dtype=torch.bool)
        others[held] = False
        trained = copy.deepcopy(network)
        for _ in fit(trained, _rows(images, others), targets[others], recipe, seed=seed + number, device=device):
            pass
        parts.append((held, _unseen(trained, _rows(images, held), targets[held])))
    back = torch.cat([held for held, _ in parts]).argsort()
    columns = [
        torch.cat([getattr(part, name) for _, part in parts])[back] for name in ("logits", "losses", "predicted")
    ]
    return Unseen(*columns)


def deal(targets: Tensor, folds: int, seed: int) -> tuple[Tensor, ...]:
    """Positions of each fold; every class is spread over the folds as evenly as it can be."""
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    dealt = shuffled[targets[shuffled].argmax(1).argsort(stable=True)]
    return tuple(dealt[start::folds].sort().values for start in range(folds))


def _rows(images: Tensor | Looked, chosen: Tensor) -> Tensor | Looked:
    if isinstance(images, Tensor):
        return images[chosen]
    pooled = tuple(level[chosen] for level in images.pooled)
    return replace(images, logits=images.logits[chosen], features=images.features[chosen], pooled=pooled)


def _unseen(network: Network, images: Tensor | Looked, targets: Tensor) -> Unseen:
    looked = look_at(network, images) if isinstance(images, Tensor) else images
    with torch.no_grad():
        logits = looked.logits if isinstance(images, Tensor) else network.head(looked.features)
        predicted = network.loss_prediction(looked.pooled)
    logits = logits.float().cpu()
    return Unseen(logits, main_loss(logits, targets.cpu(), network.architecture.multiple), predicted.float().cpu())


def temperature(unseen: Unseen, targets: Tensor, multiple: bool) -> float:
    """The T in [0.05, 20] that makes the main loss of logits / T smallest: probabilities at T are as sure as they are right
    (Guo et al., arXiv 1706.04599). The loss is convex in 1 / T, so a golden-section search finds it. 1 without images."""
    if len(targets) == 0:
        return 1.0
    logits = unseen.logits.double()

    def loss(inverse: float) -> float:
        return float(main_loss(logits * inverse, targets.double().cpu(), multiple).mean())

    ratio = (math.sqrt(5) - 1) / 2
    low, high = 1 / HOTTEST, 1 / COLDEST
    while high - low > FINEST * high:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return 2 / (low + high)
