"""A pool whose images are numbers, for tests of strategies."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class KnownPool:
    """All that a strategy may ask, given beforehand; `asked` keeps the positions whose exact norm was wanted."""

    logits: Tensor
    features: Tensor
    labelled_features: Tensor
    labelled_counts: Tensor
    predicted_losses: Tensor
    norms: Tensor
    multiple: bool = False
    asked: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.logits)

    def gradient_norms(self, positions: Tensor) -> Tensor:
        self.asked.extend(positions.tolist())
        return self.norms[positions]

    def norm_ladder(self, positions: Tensor) -> Tensor:
        return self.gradient_norms(positions) * torch.linspace(1, 2, 5, dtype=torch.float64).unsqueeze(1)

    def __getitem__(self, positions: Tensor) -> KnownPool:
        """The images at these positions, in this order."""
        chosen = {name: getattr(self, name)[positions] for name in ("logits", "features", "predicted_losses", "norms")}
        return replace(self, **chosen, asked=[])


def random_pool(count: int, *, multiple: bool = False, seed: int = 0, classes: int = 4, labelled: int = 3) -> KnownPool:
    """`count` images, all different."""
    random = torch.Generator().manual_seed(seed)
    return KnownPool(
        logits=3 * torch.randn(count, classes, generator=random),
        features=torch.randn(count, 5, generator=random),
        labelled_features=torch.randn(labelled, 5, generator=random),
        labelled_counts=torch.bincount(torch.arange(labelled) % classes, minlength=classes),
        predicted_losses=torch.randn(count, generator=random),
        norms=torch.rand(count, dtype=torch.float64, generator=random),
        multiple=multiple,
    )


def alike_pool(count: int, *, multiple: bool = False) -> KnownPool:
    """`count` images that nothing tells apart."""
    return KnownPool(
        logits=torch.ones(count, 4),
        features=torch.ones(count, 5),
        labelled_features=torch.zeros(0, 5),
        labelled_counts=torch.zeros(4),
        predicted_losses=torch.ones(count),
        norms=torch.zeros(count, dtype=torch.float64),
        multiple=multiple,
    )
