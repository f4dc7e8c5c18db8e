"""What the rules report: for every tensor and image, the squared norm of the entropy's gradient."""

from __future__ import annotations

from collections import defaultdict
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
    """Squared norms [N] of tensors used once, vectors [N, C] that have such a norm, and gradients [N, ...] of the others."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.squares: dict[Key, Tensor] = {}
        self.vectors: dict[Key, Tensor] = {}
        self.gradients: dict[Key, Tensor] = {}

    def add(self, target: Target | None, gradient: Tensor) -> None:
        """Per-image gradients [N, ...] of one use, or anything as long."""
        if target is None:
            return
        if target.alone and gradient.dim() == 2:
            self.vectors[target.key] = gradient
        elif target.alone:
            self.squares[target.key] = squared_norms(gradient)
        else:
            gradient = gradient.to(at_least_single(gradient))
            known = self.gradients.get(target.key)
            self.gradients[target.key] = gradient if known is None else known + gradient

    def add_squares(self, target: Target, squares: Tensor) -> None:
        """Squared norms [N] of a tensor used once."""
        self.squares[target.key] = squares

    def clear(self) -> None:
        """Forgets everything, for another backward pass through the same sites."""
        self.squares.clear()
        self.vectors.clear()
        self.gradients.clear()

    def table(self, names: Iterable[str], scales: Tensor) -> Tensor:
        """Norms of these parameters, times the images' scales [N]: float64 [N, T]. 0 where no gradient arrived."""
        names = list(names)
        if not names:
            return scales.new_zeros(len(scales), 0)
        squares = self.squares | self._squares_of_vectors()
        squares |= {key: squared_norms(gradient) for key, gradient in self.gradients.items()}
        nothing = torch.zeros(len(scales), device=scales.device)
        columns = torch.stack([squares.get(name, nothing) for name in names], 1)
        # rounding may leave a square just below zero
        return columns.double().clamp_min(0).sqrt() * scales.unsqueeze(1)

    def _squares_of_vectors(self) -> dict[Key, Tensor]:
        """Of all of one size together: alone each would take as long as its call does."""
        alike = defaultdict[tuple[int, torch.dtype], list[Key]](list)
        for key, vector in self.vectors.items():
            alike[vector.shape[1], vector.dtype].append(key)
        found: dict[Key, Tensor] = {}
        for keys in alike.values():
            together = torch.stack([self.vectors[key] for key in keys])  # [K, N, C]
            squares = squared_norms(together.flatten(0, 1)).view(len(keys), -1)
            found.update(zip(keys, squares.unbind(), strict=True))
        return found


def squared_norms(gradient: Tensor) -> Tensor:
    """[N, ...] -> [N], at least float32."""
    flat = gradient.reshape(len(gradient), -1)  # a parameter may be a single number
    lengths: Tensor = torch.linalg.vector_norm(flat, dim=1, dtype=at_least_single(flat))
    return lengths.square()


def at_least_single(values: Tensor) -> torch.dtype:
    """Of sums over half-precision values."""
    return torch.promote_types(values.dtype, torch.float32)
