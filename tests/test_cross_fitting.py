"""Asking networks that did not see an image: every image once, and honest temperatures."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lplgrad_backend.lplgrad.cross_fitting import Unseen, cross_fit, deal, temperature
from lplgrad_backend.lplgrad.network import Architecture, Looked, Network
from lplgrad_backend.lplgrad.objective import main_loss
from lplgrad_backend.lplgrad.recipe import HEAD

CPU = torch.device("cpu")
BRIEF = replace(HEAD, epochs=1, steps=60)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=30), st.integers(2, 4), st.integers(0, 99))
def test_folds_take_every_image_once_and_every_class_evenly(labels: list[int], folds: int, seed: int) -> None:
    targets = torch.eye(3)[torch.tensor(labels)]
    dealt = deal(targets, min(folds, len(labels)), seed)
    assert sorted(torch.cat(dealt).tolist()) == list(range(len(labels)))
    counts = torch.stack([targets[fold].sum(0) for fold in dealt])
    assert (counts.amax(0) - counts.amin(0)).max() <= 1


def stored(labels: Tensor, network: Network) -> Looked:
    """Features that tell the class, and levels of noise."""
    random = torch.Generator().manual_seed(0)
    width = network.head.get_parameter("weight").shape[1]
    features = 3 * torch.eye(width)[labels] + 0.01 * torch.randn(len(labels), width, generator=random)
    pooled = tuple(torch.randn(len(labels), level.channels, generator=random) for level in network.levels)
    return Looked(torch.zeros(len(labels), 3), features, pooled)


def test_a_label_that_is_wrong_is_not_believed_by_networks_that_did_not_see_it() -> None:
    torch.manual_seed(0)
    network = Network(Architecture("shufflenet_v2_x0_5", 3, False, 16, True)).eval()
    before = [one.clone() for one in network.parameters()]
    labels = torch.arange(24) % 3
    looked, given_labels = stored(labels, network), labels.clone()
    given_labels[5] = (labels[5] + 1) % 3
    unseen = cross_fit(network, looked, torch.eye(3)[given_labels], BRIEF, seed=0, device=CPU)
    assert torch.equal(unseen.logits.argmax(1), labels)
    assert int(unseen.losses.argmax()) == 5
    assert unseen.predicted.shape == (24,)
    assert all(torch.equal(one, old) for one, old in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize("multiple", [False, True])
@settings(max_examples=25)
@given(seed=st.integers(0, 99), scale=st.floats(0.2, 5))
def test_the_temperature_is_the_best_of_a_fine_grid(multiple: bool, seed: int, scale: float) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(12, 3, generator=random)
    targets = torch.eye(3)[torch.randint(0, 3, (12,), generator=random)]
    found = temperature(Unseen(logits, torch.zeros(12), torch.zeros(12)), targets, multiple)

    def loss(at: float) -> float:
        return float(main_loss(logits.double() / at, targets.double(), multiple).mean())

    grid = [math.exp(step / 40 * math.log(20)) for step in range(-40, 41)]
    assert 0.05 - 1e-3 <= found <= 20 + 1e-3
    assert loss(found) <= min(loss(at) for at in grid) + 1e-3


def test_doubled_logits_need_twice_the_temperature() -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 3, generator=random)
    drawn = torch.multinomial(torch.softmax(logits, 1), 1, generator=random).flatten()
    found = [temperature(Unseen(times * logits, *logits.T[:2]), torch.eye(3)[drawn], False) for times in (1, 2)]
    assert found[1] == pytest.approx(2 * found[0], rel=1e-3) and found[0] == pytest.approx(1, abs=0.3)


def test_without_images_the_temperature_is_one() -> None:
    assert temperature(Unseen(torch.zeros(0, 3), torch.zeros(0), torch.zeros(0)), torch.zeros(0, 3), False) == 1.0
