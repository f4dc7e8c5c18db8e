"""Gradient norms and memory: how images lie in it, how many fit, how many threads read the network at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import CLASSES, NETWORKS, build, pictures
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from lplgrad_backend.lplgrad.gradnorm import GradientNorms, SlowGradientNorms, gradient_norms

SIMPLE = "residual"


def assert_exact(found: Tensor, oracle: Tensor) -> None:
    torch.testing.assert_close(found, oracle, rtol=1e-3, atol=1e-6 * oracle.abs().max().item())


# Layout


class Viewed(nn.Module):
    """Asks for a view that only channels before places allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 49, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(images).view(-1, 4 * 49))
        return logits


@pytest.mark.filterwarnings(f"error::{SlowGradientNorms.__module__}.{SlowGradientNorms.__name__}")
def test_a_network_that_cannot_have_channels_last_goes_without() -> None:
    network, images = build(Viewed), pictures(3)
    assert_exact(gradient_norms(network, images), reference.gradient_norms(network, images))


def test_how_images_lie_in_memory_changes_nothing() -> None:
    network, images = build(NETWORKS[SIMPLE]), pictures(3)
    scorer, turned = GradientNorms(network), images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(scorer.measure(turned).tensors, scorer.measure(images).tensors, rtol=1e-4, atol=1e-7)


# Memory and threads


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 2**21), st.integers(1, 9))
def test_the_budget_changes_nothing(budget: int, count: int) -> None:
    network, images = build(NETWORKS["dense"]), pictures(count)
    whole = gradient_norms(network, images, memory_budget=2**40)
    torch.testing.assert_close(gradient_norms(network, images, memory_budget=budget), whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["residual", "relu", "layer norm over channels"])
def test_nothing_of_the_images_is_kept_from_call_to_call(name: str) -> None:
    network, seen = build(NETWORKS[name]), list[StorageWeakRef]()

    def note(module: nn.Module, inputs: object, features: Tensor) -> None:
        seen.append(StorageWeakRef(features.untyped_storage()))

    for module in network.modules():
        module.register_forward_hook(note)
    scorer = GradientNorms(network)
    scorer.measure(pictures(3))
    assert len(seen) > 10
    assert all(one.expired() for one in seen)


@pytest.mark.parametrize("name", ["residual", "two residuals", "layer norm over channels"])
def test_what_is_kept_at_once_fits_the_budget(name: str) -> None:
    network, budget = build(NETWORKS[name]), 2**17
    scorer, images = GradientNorms(network, memory_budget=budget), pictures(40)
    scorer.measure(images)
    kept: dict[int, Tensor] = {}
    weights = {one.data_ptr() for one in network.parameters()} | {one.data_ptr() for one in network.buffers()}
    chunks: list[int] = []

    def note(saved: Tensor) -> Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved
        return saved

    def ended(module: nn.Module, inputs: object, logits: object) -> None:
        chunks.append(sum(one.untyped_storage().nbytes() for at, one in kept.items() if at not in weights))
        kept.clear()

    with network.register_forward_hook(ended), torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        scorer.measure(images)
    assert len(chunks) > 1
    assert budget / 4 < max(chunks) <= budget


class Counting(nn.Module):
    """Notes how many images come at once, and runs out of memory above a number of them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.network, self.most, self.seen = build(NETWORKS[SIMPLE]), most, list[int]()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("no memory for so many")
        logits: Tensor = self.network(images)
        return logits


def test_the_batch_is_cut_to_the_budget() -> None:
    network = Counting(most=100)
    scorer = GradientNorms(network)
    scorer.measure(pictures(1))
    [plan] = scorer.plans.values()
    assert plan is not None
    network.seen.clear()
    limited = GradientNorms(network, memory_budget=3 * plan.bytes_per_image)
    limited.measure(pictures(8))
    assert network.seen == [2, 2, 3, 3, 2]  # after a look at two, and two that are weighed


def test_out_of_memory_halves_the_chunk_and_goes_on() -> None:
    network = Counting(most=3)
    found = gradient_norms(network, pictures(11))
    torch.testing.assert_close(found, gradient_norms(network.network, pictures(11)), rtol=1e-4, atol=1e-7)
    assert network.seen[2:] == [11, 6, 3, 3, 3, 2]
    with pytest.raises(torch.OutOfMemoryError):
        gradient_norms(Counting(most=0), pictures(2))


def test_several_threads_may_measure_at_once() -> None:
    network = build(NETWORKS["two residuals"])
    batches = [pictures(3, seed=seed) for seed in range(12)]
    scorer = GradientNorms(network)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda images: scorer.measure(images).norms, batches))
    for images, norms in zip(batches, found, strict=True):
        torch.testing.assert_close(norms, gradient_norms(network, images))
