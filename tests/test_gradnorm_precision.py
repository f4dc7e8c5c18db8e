"""Gradient norms with half-precision activations: near the exact ones, for every kind of layer."""

from __future__ import annotations

import pytest
import reference
import torch
from small_networks import NETWORKS, Builder, build, pictures

from lplgrad_backend.lplgrad.gradnorm import GradientNorms, gradient_norms


@pytest.mark.parametrize("builder", NETWORKS.values(), ids=NETWORKS)
def test_bfloat16_is_near(builder: Builder) -> None:
    network, images = build(builder), pictures(4)
    found = gradient_norms(network, images, activations=torch.bfloat16)
    oracle = reference.gradient_norms(network, images)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, oracle, rtol=0.1, atol=0.02 * oracle.max().item())
    assert not torch.equal(found, gradient_norms(network, images))


@pytest.mark.parametrize("frozen", ["head", "layers.0", "layers"])
def test_frozen_parts_may_be_half_as_precise(frozen: str) -> None:
    network, images = build(NETWORKS["residual"]), pictures(4)
    for name, one in network.named_parameters():
        one.requires_grad_(not name.startswith(frozen))
    found = gradient_norms(network, images, activations=torch.bfloat16)
    oracle = reference.gradient_norms(network, images)
    torch.testing.assert_close(found, oracle, rtol=0.1, atol=0.02 * oracle.max().item())


def test_logits_are_as_precise_as_the_images() -> None:
    measurement = GradientNorms(build(NETWORKS["residual"]), activations=torch.bfloat16).measure(pictures(2))
    assert measurement.logits.dtype == torch.float32
