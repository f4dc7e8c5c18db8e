"""What the rules report: for every tensor and image, the squared norm of the entropy's gradient."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Key: TypeAlias = str | int
"""A parameter tensor by its name, or the n-th call's result when it was computed from parameters alone."""


@dataclass(frozen=True)
class Target:
    """A tensor whose gradient is wanted where it meets the images.

    Attributes:
        alone: this use is the tensor's only one, so its squared norm may be taken at once. Otherwise the gradients of
            all uses are added first.
    """

    key: Key
    alone: bool


class Tally:
    """Squared norms [N] of tensors used once, and gradients [N, ...] of the others."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.squares: dict[Key, Tensor] = {}
        self.gradients: dict[Key, Tensor] = {}

    def add(self, target: Target | None, gradient: Tensor) -> None:
        """Per-image gradients [N, ...] of one use."""
        if target is None:
            return
        gradient = gradient.to(at_least_single(gradient))
        if target.alone:
            self.squares[target.key] = squared_norms(gradient)
        elif target.key in self.gradients:
            self.gradients[target.key] = self.gradients[target.key] + gradient
        else:
            self.gradients[target.key] = gradient

    def add_squares(self, target: Target, squares: Tensor) -> None:
        """Squared norms [N] of a tensor used once."""
        self.squares[target.key] = squares

    def clear(self) -> None:
        """Forgets everything, for another backward pass through the same sites."""
        self.squares.clear()
        self.gradients.clear()

    def table(self, names: Iterable[str], scales: Tensor) -> Tensor:
        """Norms of these parameters, times the images' scales [N]: float64 [N, T]. 0 where no gradient arrived."""
        names = list(names)
        if not names:
            return scales.new_zeros(len(scales), 0)
        squares = self.squares | {key: squared_norms(gradient) for key, gradient in self.gradients.items()}
        nothing = torch.zeros(len(scales), device=scales.device)
        columns = torch.stack([squares.get(name, nothing) for name in names], 1)
        # rounding may leave a square just below zero
        return columns.double().clamp_min(0).sqrt() * scales.unsqueeze(1)


def squared_norms(gradient: Tensor) -> Tensor:
    """[N, ...] -> [N], at least float32."""
    flat = gradient.reshape(len(gradient), -1)  # a parameter may be a single number
    lengths: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=at_least_single(flat))
    return lengths.square()


def at_least_single(values: Tensor) -> torch.dtype:
    """Of sums over half-precision values."""
    return torch.promote_types(values.dtype, torch.float32)
