"""Squeeze and excitation, and what only looks like it, against the oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from small_networks import CLASSES, build, pictures
from torch import Tensor, nn

from lplgrad_backend.lplgrad.gradnorm import GradientNorms, gradient_norms, squeeze
from tests import reference

CHANNELS = 6


class Gated(nn.Module):
    """Features, what becomes of them and the numbers made of their mean, a head.

    Args:
        gate: (features, their mean, a number for each channel made of it) -> features.
    """

    def __init__(self, gate: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.features, self.after = nn.Conv2d(3, CHANNELS, 3), nn.Conv2d(CHANNELS, CHANNELS, 3)
        self.down, self.up = nn.Conv2d(CHANNELS, 3, 1), nn.Conv2d(3, CHANNELS, 1)
        self.head, self.gate = nn.Linear(CHANNELS, CLASSES), gate

    def forward(self, images: Tensor) -> Tensor:
        x = F.hardswish(self.features(images))
        mean = F.adaptive_avg_pool2d(x, 1)
        found = self.gate(x, mean, torch.sigmoid(self.up(F.silu(self.down(mean)))))
        logits: Tensor = self.head(self.after(found).mean((2, 3)))
        return logits


def overwritten(x: Tensor, mean: Tensor, s: Tensor) -> Tensor:
    return s * x.mul_(0.5)


GATES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "s x": lambda x, mean, s: s * x,
    "x s": lambda x, mean, s: torch.mul(x, s),
    "and x goes on": lambda x, mean, s: s * x + x,
    "the mean goes on": lambda x, mean, s: s * x + mean,
    "by the mean itself": lambda x, mean, s: x * mean,
    "twice": lambda x, mean, s: s * x + (1 - s) * x.square(),
    "two gates": lambda x, mean, s: s * x - s.square() * x,
    "gated and squeezed again": lambda x, mean, s: F.adaptive_avg_pool2d(s * x, 1) * (s * x),
    "by what is made of something else": lambda x, mean, s: x * F.adaptive_avg_pool2d(x.square(), (1, 1)),
    "by what is made of another mean": lambda x, mean, s: x * x.mean((2, 3), keepdim=True) + mean,
    "overwritten before": overwritten,
    "left unused": lambda x, mean, s: (x + s, s * x)[0],
    "the product alone unused": lambda x, mean, s: (x, s * x)[0],
    "only squeezed": lambda x, mean, s: x + s,
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("count", [1, 3])
def test_it_is_exact_whatever_is_gated(name: str, count: int) -> None:
    network, images = build(lambda: Gated(GATES[name])), pictures(count)
    found = gradient_norms(network, images, per_tensor=True)
    oracle = reference.gradient_norms(network, images, per_tensor=True)
    torch.testing.assert_close(found, oracle, rtol=1e-3, atol=1e-6 * float(oracle.max()))


def test_each_way_back_has_its_own() -> None:
    network, images = build(lambda: Gated(GATES["s x"])), pictures(3)
    ladder = GradientNorms(network, temperatures=(1.0, 3.0)).measure(images).ladder
    for temperature, norms in zip((1.0, 3.0), ladder, strict=True):
        torch.testing.assert_close(norms, reference.gradient_norms(network, images, temperature=temperature))


def test_torchvisions_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[torch.Size] = []
    leave = squeeze.Squeeze.leave
    monkeypatch.setattr(squeeze.Squeeze, "leave", lambda self, g, s: (left.append(g.shape), leave(self, g, s))[1])
    network = build(lambda: torchvision.models.mobilenet_v3_small(weights=None))
    gates = [one for one in network.modules() if isinstance(one, torchvision.ops.SqueezeExcitation)]
    gradient_norms(network, pictures(2, side=64))
    assert len(left) == len(gates) == 9


def test_what_is_not_on_the_way_is_left_alone() -> None:
    x = torch.rand(2, CHANNELS, 4, 4)
    assert not squeeze.is_squeeze(F.adaptive_avg_pool2d, (x, 1))
    x.requires_grad_()
    assert squeeze.is_squeeze(F.adaptive_avg_pool2d, (x, 1))
    assert not squeeze.is_squeeze(F.adaptive_avg_pool2d, (x, 2))
    assert not squeeze.is_squeeze(F.adaptive_avg_pool2d, (x[0], 1))
    assert not squeeze.is_squeeze(F.adaptive_max_pool2d, (x, 1))
