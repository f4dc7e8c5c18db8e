"""Gradient norms of torchvision's classifiers against the float64 loop, at the smallest images that each can take.

benchmarks/gradient_norms.py does the same at full size, trained by some steps, and says what it costs.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import reference
import torch
import torchvision
from small_networks import pictures, unsettle
from torch import Tensor, nn

from lplgrad_backend.lplgrad.gradnorm import SlowGradientNorms, gradient_norms

CLASSES = 5
MODELS = (
    "alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet",
    "inception_v3", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x1_0",
    "mnasnet1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t",
    "swin_v2_t", "maxvit_t",
)  # fmt: skip
SIDES = {"alexnet": 64, "inception_v3": 75, "swin_v2_t": 64, "maxvit_t": 224}
UNRESOLVED = 1e-12
"""Norms below this come of logits that float32 cannot tell from equal ones, as a new ViT's are, whose head is zero."""


def build(name: str) -> nn.Module:
    options: dict[str, Any] = {"num_classes": CLASSES}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    if name == "vit_b_16":
        options["image_size"] = SIDES.get(name, 32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchvision.models.get_model(name, weights=None, **options).eval()


def sharpen(network: nn.Module, images: Tensor, gap: float) -> None:
    """Make the likeliest class of an average image `gap` more likely than the second, in logits."""
    last = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    with torch.no_grad():
        if not last.weight.any():
            last.weight.copy_(torch.randn(last.weight.shape, generator=torch.Generator().manual_seed(0)))
        first, second = network(images).topk(2, dim=1).values.unbind(1)
        factor = gap / float((first - second).mean().clamp(min=1e-12))
        last.weight.mul_(factor)
        if last.bias is not None:
            last.bias.mul_(factor)


def check(network: nn.Module, images: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowGradientNorms)
        found = gradient_norms(network, images)
    oracle = reference.gradient_norms(network, images)
    torch.testing.assert_close(found, oracle, rtol=1e-3, atol=max(1e-6 * oracle.max().item(), UNRESOLVED))


@pytest.mark.parametrize("name", MODELS)
class TestModels:
    def test_untrained(self, name: str) -> None:
        check(build(name), pictures(2, SIDES.get(name, 32)))

    def test_undecided_and_channels_last(self, name: str) -> None:
        network, images = unsettle(build(name)), pictures(2, SIDES.get(name, 32))
        sharpen(network, images, gap=0.2)
        layout = torch.channels_last
        check(network.to(memory_format=layout), images.contiguous(memory_format=layout))  # type: ignore[call-overload]

    def test_confident(self, name: str) -> None:
        network, images = unsettle(build(name), seed=1), pictures(2, SIDES.get(name, 32))
        sharpen(network, images, gap=9.0)
        check(network, images)
