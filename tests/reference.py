"""Gradient norms the slow and obvious way: float64, one image at a time, autograd through the whole network."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def gradient_norms(
    model: nn.Module, images: Tensor, *, multiple: bool = False, per_tensor: bool = False, temperature: float = 1.0
) -> Tensor:
    """As lplgrad_backend.lplgrad.gradnorm.gradient_norms: float64 [N], or [N, T] if per_tensor."""
    exact = copy.deepcopy(model).double()
    parameters = [one for one in exact.parameters() if one.requires_grad]
    rows = []
    for image in images.double():
        entropy = _entropy(exact(image.unsqueeze(0))[0] / temperature, multiple)
        gradients = torch.autograd.grad(entropy, parameters, allow_unused=True)
        norms = [torch.zeros((), dtype=torch.float64) if one is None else torch.norm(one) for one in gradients]
        rows.append(torch.stack(norms))
    table = torch.stack(rows)
    return table if per_tensor else table.sum(1)


def _entropy(logits: Tensor, multiple: bool) -> Tensor:
    if multiple:
        on, off = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
        return -(on.exp() * on + off.exp() * off).sum()
    logarithms = torch.log_softmax(logits, 0)
    return -(logarithms.exp() * logarithms).sum()
