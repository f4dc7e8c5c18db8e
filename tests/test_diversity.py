"""Points far apart: against a loop over plain lists, and a draw whose chances are counted."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lplgrad_backend.lplgrad.diversity import drawn_apart, farthest_first


def points(count: int, seed: int, width: int = 3) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slow_farthest_first(rows: list[list[float]], centres: list[list[float]], budget: int) -> list[int]:
    taken: list[int] = []
    if not centres:
        mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        taken.append(min(range(len(rows)), key=lambda at: math.dist(rows[at], mean)))
    while len(taken) < budget:
        known = centres + [rows[at] for at in taken]
        left = [at for at in range(len(rows)) if at not in taken]
        taken.append(max(left, key=lambda at: min(math.dist(rows[at], one) for one in known)))
    return taken


@given(count=st.integers(1, 15), centres=st.integers(0, 4), seed=st.integers(0, 99), data=st.data())
def test_farthest_first_is_the_obvious_loop(count: int, centres: int, seed: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, count))
    pool, known = points(count, seed), points(centres, seed + 100)
    taken, gaps = farthest_first(pool, known, budget)
    assert taken.tolist() == slow_farthest_first(pool.tolist(), known.tolist(), budget)
    assert (gaps.diff() <= 0).all()


def test_each_gap_is_the_distance_to_all_before() -> None:
    pool = points(12, 0)
    taken, gaps = farthest_first(pool, points(2, 1), 12)
    before = points(2, 1).tolist()
    for at, gap in zip(taken.tolist(), gaps.tolist(), strict=True):
        assert gap == pytest.approx(min(math.dist(pool[at].tolist(), one) for one in before))
        before.append(pool[at].tolist())


def test_the_second_is_drawn_by_its_squared_distance() -> None:
    left, right = points(5, 2, width=2), points(5, 3, width=4)
    products = [torch.outer(a, b).flatten() for a, b in zip(left, right, strict=True)]
    first = max(range(5), key=lambda at: float(products[at].norm()))
    squares = [float((one - products[first]).square().sum()) for one in products]
    random, counts = torch.Generator().manual_seed(0), [0] * 5
    for _ in range(4000):
        taken, _ = drawn_apart(left, right, 2, random)
        assert taken[0] == first
        counts[int(taken[1])] += 1
    assert counts[first] == 0
    # four standard deviations of a share of 4,000 draws are at most 0.032
    assert [count / 4000 for count in counts] == pytest.approx([one / sum(squares) for one in squares], abs=0.032)


@given(count=st.integers(1, 12), seed=st.integers(0, 50))
def test_a_draw_takes_each_once_and_gaps_never_rise(count: int, seed: int) -> None:
    taken, gaps = drawn_apart(points(count, seed), points(count, seed + 1), count, torch.Generator().manual_seed(seed))
    assert sorted(taken.tolist()) == list(range(count))
    assert (gaps.diff() <= 0).all() and torch.isfinite(gaps).all()


def test_points_at_one_place_are_drawn_alike_often() -> None:
    same, random = torch.ones(4, 2, dtype=torch.float64), torch.Generator().manual_seed(0)
    seconds = [int(drawn_apart(same, same, 2, random)[0][1]) for _ in range(3000)]
    assert sorted(set(seconds)) == [1, 2, 3]
    assert all(seconds.count(at) / 3000 == pytest.approx(1 / 3, abs=0.035) for at in (1, 2, 3))
