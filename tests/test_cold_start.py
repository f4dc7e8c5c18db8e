"""Before the first model: typical images first, each of another kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lplgrad_backend.lplgrad.cold_start import cold_queue, is_cold, simple_features, typicality


def clusters(sizes: list[int], seed: int = 0, width: int = 16) -> tuple[Tensor, Tensor]:
    """Points around far centres, and of which cluster each is."""
    random = torch.Generator().manual_seed(seed)
    kinds = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return 4 * torch.eye(width)[kinds] + 0.3 * torch.randn(len(kinds), width, generator=random), kinds


@pytest.mark.parametrize("seed", range(5))
def test_every_kind_comes_before_any_comes_twice(seed: int) -> None:
    features, kinds = clusters([60, 40, 30, 25], seed)
    queue = cold_queue(features, features[:0], seed)
    assert len(set(kinds[queue.positions[:4]].tolist())) == 4
    assert sorted(queue.positions.tolist()) == list(range(155))
    assert (queue.worth.diff() <= 0).all()


def test_what_is_labelled_is_not_asked_first() -> None:
    features, kinds = clusters([60, 40, 30, 25])
    queue = cold_queue(features, features[:3], 0, budget=3)
    assert 0 not in kinds[queue.positions].tolist()


def test_an_odd_one_is_not_typical() -> None:
    features, _ = clusters([60, 40])
    odd = torch.cat([features, 3 * torch.randn(1, 16, generator=torch.Generator().manual_seed(1))])
    assert int(typicality(odd).argmin()) == 100


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images(count: int) -> None:
    assert len(cold_queue(torch.randn(count, 3), torch.zeros(0, 3), 0).positions) == count


def test_ties_go_by_the_seed() -> None:
    orders = {tuple(cold_queue(torch.ones(20, 3), torch.zeros(0, 3), seed).positions.tolist()) for seed in range(3)}
    assert len(orders) == 3


@pytest.mark.parametrize(
    ("labels", "cold"), [([0, 0], True), ([9, 0], True), ([2, 2], True), ([3, 3], False), ([5, 1], False)]
)
def test_cold_is_a_few_labels_a_class(labels: list[int], cold: bool) -> None:
    assert is_cold(torch.tensor(labels)) == cold


def test_simple_features_see_colour_place_and_edges() -> None:
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    images[1, 0] = 255  # red
    images[2, :, :8] = 255  # bright above
    images[3, :, :, ::2] = 255  # stripes
    features = simple_features(images)
    assert features.shape == (4, 320) and len(simple_features(images[:0])) == 0
    cells = features.view(4, 5, 8, 8)
    assert cells[1, 0].min() == 1 and cells[1, 1:3].max() == 0
    assert cells[2, :3, :4].min() == 1 and cells[2, :3, 4:].max() == 0
    assert cells[3, 3, :, :-1].min() > 3 and cells[3, 4].max() == 0
