"""Look-alikes apart: against the definition, and what becomes of many, of none, and of those that stay."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lplgrad_backend.lplgrad.spreading import AHEAD, GAP, NEAR, SAME, directions, spread

kinds = st.lists(st.integers(0, 6), max_size=40)


def looks(numbers: list[int]) -> Tensor:
    """Directions of which those of one number are alike; number 0 is like nothing, itself included."""
    kinds = torch.tensor(numbers, dtype=torch.int64)
    return torch.eye(7)[kinds] * (kinds > 0).unsqueeze(1)


def by_definition(numbers: list[int], gap: int, ahead: int) -> list[int]:
    """Each place gets the first of the next `ahead` that is like none of the last gap - 1; else the one that has been apart
    longest."""
    order: list[int] = []
    left = list(range(len(numbers)))
    while left:
        window = [at for at in left if at < left[0] + ahead]

        def apart(at: int) -> int:
            same = [place for place, other in enumerate(order) if numbers[at] and numbers[other] == numbers[at]]
            return len(order) - same[-1] if same else 10**6

        taken = next((at for at in window if apart(at) >= gap), None)
        taken = max(window, key=lambda at: (apart(at), -at)) if taken is None else taken
        order.append(taken)
        left.remove(taken)
    return order


@given(numbers=kinds, gap=st.integers(1, 6), ahead=st.integers(1, 50))
def test_it_is_as_defined(numbers: list[int], gap: int, ahead: int) -> None:
    assert spread(looks(numbers), gap=gap, ahead=ahead).tolist() == by_definition(numbers, gap, ahead)


@given(numbers=kinds, fixed=st.lists(st.booleans(), min_size=40, max_size=40), gap=st.integers(1, 5))
def test_those_that_stay_keep_their_order_and_nobody_is_lost(numbers: list[int], fixed: list[bool], gap: int) -> None:
    stays = np.array(fixed[: len(numbers)], dtype=bool)
    order = spread(looks(numbers), stays, gap=gap).tolist()
    assert sorted(order) == list(range(len(numbers)))
    staying = [at for at in np.flatnonzero(stays).tolist() if at < len(numbers) - gap]
    assert [at for at in order if at in staying] == staying


@given(st.permutations(range(25)), st.permutations(range(25)), st.sets(st.integers(0, 49), max_size=3))
def test_in_a_short_queue_those_that_stay_bring_no_look_alikes_together(
    firsts: list[int], seconds: list[int], fixed: set[int]
) -> None:
    """25 pictures, each twice, and a gap as long as the queue."""
    queue = [*firsts, *seconds]
    stays = np.isin(np.arange(50), list(fixed))
    order = spread(torch.eye(25)[queue], stays).tolist()
    places: dict[int, list[int]] = {}
    for place, at in enumerate(order):
        places.setdefault(queue[at], []).append(place)
    assert min(second - first for first, second in places.values()) >= 20


def test_others_keep_away_from_one_that_stays_on_both_sides() -> None:
    numbers = [1, 1, 1, *[0] * 20]
    stays = np.zeros(len(numbers), dtype=bool)
    stays[1] = True
    order = spread(looks(numbers), stays, gap=5).tolist()
    places = [order.index(at) for at in range(3)]
    assert places[1] <= 1 and places[0] - places[1] >= 5 and places[2] - places[0] >= 5


@given(st.permutations(range(25)), st.permutations(range(25)))
def test_where_too_many_look_alike_at_least_the_same_pictures_are_apart(firsts: list[int], seconds: list[int]) -> None:
    """25 pictures, each twice, of which a young network sees five times five as look-alikes."""
    queue = torch.tensor([*firsts, *seconds])
    seen = torch.nn.functional.normalize(torch.cat([torch.eye(5)[queue % 5], 0.15 * torch.eye(25)[queue]], 1), dim=1)
    mate = next(at for at in range(1, 25) if firsts[at] % 5 == firsts[0] % 5)
    assert NEAR < seen[0] @ seen[mate] < SAME
    order = spread(seen).tolist()
    places: dict[int, list[int]] = {}
    for place, at in enumerate(order):
        places.setdefault(int(queue[at]), []).append(place)
    assert min(second - first for first, second in places.values()) >= 10


def test_a_queue_without_look_alikes_stays_as_it_is() -> None:
    assert spread(torch.eye(90)).tolist() == list(range(90))
    assert spread(torch.zeros(0, 3)).tolist() == []


def test_one_picture_alone_stays_as_it_is() -> None:
    assert spread(torch.ones(600, 1)).tolist() == list(range(600))


def test_no_image_moves_forward_further_than_allowed() -> None:
    numbers = [1] * 20 + [0] * 2000
    order = spread(looks(numbers)).tolist()
    assert all(at - place <= AHEAD for place, at in enumerate(order))
    assert np.diff([order.index(at) for at in range(20)]).min() >= GAP


@given(st.floats(0.9, 1.0))
def test_alike_begins_above_the_threshold(cosine: float) -> None:
    pair = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5], [0.0, 0.0], [0.0, 0.0]])
    if abs(cosine - NEAR) > 1e-4:
        assert spread(pair, gap=2).tolist() == ([0, 2, 1, 3] if cosine > NEAR else [0, 1, 2, 3])


def test_directions_are_seen_from_the_centre() -> None:
    found = directions(torch.tensor([[3.0, 1.0], [1.0, 1.0], [1.0, 0.0]]), torch.tensor([1.0, 1.0]))
    assert found.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, -1.0]]
