"""The slow ways: exact for any network that treats images one by one when they come one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lplgrad_backend.lplgrad.gradnorm.entropy import entropy_gradient
from lplgrad_backend.lplgrad.gradnorm.replay import unit_seeds
from lplgrad_backend.lplgrad.gradnorm.tally import squared_norms

Answer = tuple[Tensor, Tensor]
"""Logits [N, C] and float64 norms [temperatures, N, T]."""

MAPPED_IMAGES = 8


def mapped(model: nn.Module, images: Tensor, parameters: Mapping[str, Tensor], multiple: bool, ladder: tuple[float, ...]) -> Answer:  # fmt: skip  # noqa: E501
    """torch.func.vmap of a backward pass. Raises RuntimeError or ValueError where the network cannot be mapped."""
    wanted = {name: one.detach() for name, one in parameters.items()}

    def logits_of(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(model, weights, (image.unsqueeze(0),))
        return logits.squeeze(0)

    def gradients_of(image: Tensor, seed: Tensor) -> dict[str, Tensor]:
        pull = torch.func.vjp(lambda weights: logits_of(weights, image), wanted)[1]
        gradients: dict[str, Tensor] = pull(seed)[0]
        return gradients

    def norms_of(part: Tensor, seeds: Tensor) -> Tensor:
        gradients = torch.func.vmap(gradients_of)(part, seeds)
        return torch.stack([squared_norms(gradients[name]).double().sqrt() for name in parameters], 1)

    with torch.no_grad():
        logits = torch.cat([model(image) for image in images.split(1)])
    levels = []
    for temperature in ladder:
        seeds, scales = unit_seeds(entropy_gradient(logits, multiple, temperature))
        parts = zip(images.split(MAPPED_IMAGES), seeds.to(logits).split(MAPPED_IMAGES), strict=True)
        levels.append(torch.cat([norms_of(part, seed) for part, seed in parts]) * scales.unsqueeze(1))
    return logits, torch.stack(levels)


def looped(model: nn.Module, images: Tensor, parameters: Mapping[str, Tensor], multiple: bool, ladder: tuple[float, ...]) -> Answer:  # fmt: skip  # noqa: E501
    """One forward and backward pass for each image."""
    answers = [_one(model, image, list(parameters.values()), multiple, ladder) for image in images.split(1)]
    return torch.cat([logits for logits, _ in answers]), torch.stack([norms for _, norms in answers], 1)


def _one(model: nn.Module, image: Tensor, parameters: list[Tensor], multiple: bool, ladder: tuple[float, ...]) -> Answer:  # fmt: skip  # noqa: E501
    with torch.enable_grad():
        logits = model(image)
    levels = []
    for temperature in ladder:
        seeds, scales = unit_seeds(entropy_gradient(logits, multiple, temperature))
        found: Sequence[Tensor | None] = [None] * len(parameters)
        if logits.requires_grad:
            found = torch.autograd.grad(logits, parameters, seeds.to(logits), retain_graph=True, allow_unused=True)
        norms = [logits.new_zeros(()) if one is None else squared_norms(one[None]).sqrt()[0] for one in found]
        levels.append(torch.stack(norms).double() * scales)
    return logits.detach(), torch.stack(levels)
