"""Covering: the lazy order is the greedy one, gains never rise, and a narrow kernel is the order of weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lplgrad_backend.lplgrad.coverage import CLIENTS, HEAD, TRIFLE, alike, cover


def made(count: int, seed: int, labelled: int = 2, width: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=random, dtype=torch.float64)
    weights = torch.rand(count, generator=random, dtype=torch.float64)
    return features, weights, torch.randn(labelled, width, generator=random, dtype=torch.float64)


def gains(features: Tensor, weights: Tensor, labelled: Tensor, sharpness: float, taken: list[int]) -> list[float]:
    """What every image newly covers after `taken`, in loops."""
    centre = [sum(column) / len(features) for column in features.T.tolist()]

    def direction(row: list[float]) -> list[float]:
        moved = [value - middle for value, middle in zip(row, centre, strict=True)]
        length = math.sqrt(sum(value**2 for value in moved))
        return [value / length for value in moved]

    points, before = ([direction(row) for row in rows.tolist()] for rows in (features, labelled))
    before = before + [points[at] for at in taken]
    unit = [weight / max(weights.tolist()) for weight in weights.tolist()]

    def kernel(one: list[float], other: list[float]) -> float:
        return math.exp(sharpness * (sum(a * b for a, b in zip(one, other, strict=True)) - 1))

    found = []
    for at, point in enumerate(points):
        new = sum(
            unit[j] * max(0.0, kernel(point, client) - max((kernel(old, client) for old in before), default=0.0))
            for j, client in enumerate(points[:CLIENTS])
        )
        found.append(new + TRIFLE * unit[at])
    return found


@settings(max_examples=40)
@given(st.integers(2, 10), st.integers(0, 999), st.integers(0, 3), st.sampled_from([0.3, 1.0, 5.0]))
def test_each_image_taken_newly_covers_most(count: int, seed: int, labelled: int, sharpness: float) -> None:
    given_ = made(count, seed, labelled)
    positions, worth = cover(*given_, sharpness, count)
    assert sorted(positions.tolist()) == list(range(count))
    for turn, at in enumerate(positions.tolist()):
        slow = gains(*given_, sharpness, positions[:turn].tolist())
        left = [slow[other] for other in positions[turn:].tolist()]
        assert slow[at] >= max(left) - 1e-5
        assert float(worth[turn]) == pytest.approx(slow[at], abs=1e-5)
    assert (worth.diff() <= 0).all()


def test_a_narrow_kernel_gives_the_order_of_weights() -> None:
    features, _, labelled = made(200, 0, width=64)
    weights = (torch.randperm(200, generator=torch.Generator().manual_seed(1)) + 1).double()
    positions, _ = cover(features, weights, labelled, 1e3, 200)
    assert torch.equal(positions, weights.argsort(descending=True))


def test_a_picture_that_was_taken_comes_last() -> None:
    features, weights, labelled = made(20, 1)
    positions, _ = cover(features.repeat(3, 1), weights.repeat(3), labelled, 1.0, 60)
    assert len(set((positions[:20] % 20).tolist())) == 20


def test_images_worth_nothing_are_ordered_all_the_same() -> None:
    features, _, labelled = made(9, 2)
    assert sorted(cover(features, torch.zeros(9), labelled, 1.0, 9)[0].tolist()) == list(range(9))


def test_an_image_at_the_centre_is_like_nothing() -> None:
    assert alike(torch.ones(1, 3), torch.randn(2, 3), torch.ones(3)).tolist() == [[0.0, 0.0]]


def test_behind_the_head_the_rest_follows_by_what_is_left() -> None:
    features, weights, labelled = made(HEAD + 300, 3, width=8)
    positions, worth = cover(features, weights, labelled, 1.0, HEAD + 300)
    assert len(set(positions.tolist())) == HEAD + 300
    assert (worth.diff() <= 0).all() and (worth > 0).all()
