"""One round's querying phase: whole queues, random shares, and orders that are refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known_pool import alike_pool, random_pool

from lplgrad_backend.lplgrad.acquisition import STRATEGIES, Queue, scores
from lplgrad_backend.lplgrad.cold_start import cold_queue
from lplgrad_backend.lplgrad.ordering import (
    SAFE,
    TYPICALITY,
    Acquisition,
    headed,
    interleaved,
    order_cold,
    order_pool,
    random_slots,
    spearman,
)
from lplgrad_backend.lplgrad.worth import entropy

values = st.lists(st.integers(-3, 3), min_size=2, max_size=9)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_every_image_stands_once_in_a_queue_whose_worth_never_rises(strategy: str, share: float) -> None:
    ordered = order_pool(random_pool(80), Acquisition(strategy, random_share=share), seed=1)
    assert sorted(ordered.queue.positions.tolist()) == list(range(80))
    assert (ordered.queue.worth.diff() <= 0).all()
    assert int(ordered.random.sum()) == pytest.approx(80 * share, abs=1)


def test_scores_ascend_along_the_queue() -> None:
    ordered = order_pool(random_pool(80), Acquisition(random_share=0.1), seed=1)
    assert (scores(ordered.queue.worth, 1.0).diff() >= 0).all()


@pytest.mark.parametrize("budget", [0, 1, 10, 200])
def test_a_budget_takes_the_head(budget: int) -> None:
    how, pool = Acquisition(random_share=0.0), random_pool(80)
    head, whole = order_pool(pool, how, 0, budget), order_pool(pool, how, 0)
    assert torch.equal(head.queue.positions, whole.queue.positions[:budget])


def test_without_coverage_the_order_is_the_papers() -> None:
    pool = random_pool(40)
    ordered = order_pool(pool, Acquisition(sharpness=None, strict=True), 0)
    assert ordered.ordered_by == "lplgrad"
    assert ordered.queue.worth.tolist() == sorted(pool.norms.tolist(), reverse=True)
    assert torch.equal(ordered.norms, pool.norms)


@pytest.mark.parametrize("count", [0, 1])
def test_small_pools(count: int) -> None:
    assert len(order_pool(random_pool(count), Acquisition(), 0).queue.positions) == count


# The random share


@given(count=st.integers(0, 60), share=st.floats(0, 0.95), seed=st.integers(0, 99))
def test_about_as_much_of_every_prefix_is_random(count: int, share: float, seed: int) -> None:
    slots = random_slots(count, share, seed)
    for end in range(count + 1):
        assert abs(int(slots[:end].sum()) - share * end) <= 1 + 1e-9


@given(count=st.integers(1, 30), share=st.floats(0, 0.95), seed=st.integers(0, 99))
def test_drawn_images_stand_at_their_places_and_the_others_keep_their_order(
    count: int, share: float, seed: int
) -> None:
    queue = Queue(torch.arange(count), torch.arange(count, 0, -1).double())
    slots = random_slots(count, share, seed)
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: int(slots.sum())]
    mixed = interleaved(queue, drawn, slots)
    assert torch.equal(mixed.positions[slots], drawn)
    assert mixed.positions[~slots].tolist() == sorted(set(range(count)) - set(drawn.tolist()))
    assert (mixed.worth.diff() <= 0).all()


def test_the_random_share_is_a_uniform_sample_of_the_pool() -> None:
    pool, times = random_pool(20), torch.zeros(20)
    for seed in range(400):
        ordered = order_pool(pool, Acquisition("entropy", random_share=0.5), seed, 10)
        times[ordered.queue.positions[ordered.random]] += 1
    assert times.sum() == pytest.approx(2000, abs=250)
    assert float(times.max() / times.mean()) < 1.4 and float(times.min() / times.mean()) > 0.6


def test_orders_made_with_one_seed_may_draw_differently() -> None:
    pool = random_pool(40)
    drawn = [
        set(ordered.queue.positions[ordered.random].tolist())
        for ordered in (order_pool(pool, Acquisition(random_share=0.3, draw=draw), 0) for draw in (0, 1, 1))
    ]
    assert drawn[0] != drawn[1] == drawn[2]


@pytest.mark.parametrize("strategy", ["badge", "coreset"])
@pytest.mark.parametrize("budget", [0, 3, 12, 60])
def test_what_is_slow_orders_the_head_and_margin_the_rest(strategy: str, budget: int) -> None:
    pool = random_pool(60)
    exact, queue = STRATEGIES[strategy](pool, 12, 1), headed(STRATEGIES[strategy], 12)(pool, budget, 1)
    assert queue.positions[:12].tolist() == exact.positions[:budget].tolist()
    rest = [at for at in STRATEGIES["margin"](pool, 60, 1).positions.tolist() if at not in exact.positions.tolist()]
    assert queue.positions[12:].tolist() == rest[: max(0, budget - 12)]
    assert len(queue.worth) == len(queue.positions) == budget
    assert (queue.worth.diff() <= 0).all()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_cold_pool_is_ordered_by_what_its_images_look_like(share: float) -> None:
    pool = random_pool(40)
    ordered = order_cold(pool, Acquisition(random_share=share), 2)
    wanted = cold_queue(pool.features, pool.labelled_features, 2).positions.tolist()
    drawn = set(ordered.queue.positions[ordered.random].tolist())
    assert ordered.ordered_by == TYPICALITY and (len(drawn) > 0) == (share > 0)
    assert ordered.queue.positions[~ordered.random].tolist() == [at for at in wanted if at not in drawn]
    assert (ordered.queue.worth.diff() <= 0).all()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        order_pool(random_pool(3), Acquisition(random_share=share), 0)


# Look-alikes


@pytest.mark.parametrize("strategy", ["lplgrad-coverage", "badge", "margin", "coreset"])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_look_alikes_are_apart_also_behind_the_covered_head(strategy: str, share: float) -> None:
    """1,200 images of which each is there twice; coverage goes through 1,000 of them one by one."""
    pool = random_pool(600)[torch.arange(1200) % 600]
    how = Acquisition(strategy, strict=True, apart=30, random_share=share)
    ordered = order_pool(pool, how, 0)
    place = ordered.queue.positions.argsort()
    assert sorted(ordered.queue.positions.tolist()) == list(range(1200))
    gaps, earlier = (place[:600] - place[600:]).abs(), torch.minimum(place[:600], place[600:])
    drawn = torch.zeros(1200, dtype=torch.bool)
    drawn[ordered.queue.positions[ordered.random]] = True
    both = drawn[:600] & drawn[600:]  # chance may draw an image twice
    assert int(gaps[~both & (earlier < 1100)].min()) >= 30  # at the end there are no others
    assert (ordered.queue.worth.diff() <= 0).all()
    assert int(drawn.sum()) == pytest.approx(1200 * share, abs=1)


# Health


def test_a_score_that_runs_against_uncertainty_is_replaced_unless_strict() -> None:
    pool = random_pool(80)
    against = replace(pool, norms=10 - entropy(pool))
    ordered = order_pool(against, Acquisition("lplgrad"), 0)
    assert ordered.health.correlation == pytest.approx(-1)
    assert ordered.ordered_by == SAFE and "uncertainty" in str(ordered.health.sentence)
    assert torch.equal(ordered.queue.positions, STRATEGIES[SAFE](against, 80, 0).positions)
    assert order_pool(against, Acquisition("lplgrad", strict=True), 0).ordered_by == "lplgrad"


def test_one_picture_again_and_again_is_noticed() -> None:
    pool = random_pool(60)[torch.arange(60).repeat_interleave(4)]
    ordered = order_pool(pool, Acquisition("entropy"), 0)
    assert ordered.health.duplicates > 0.5 and "near-duplicates" in str(ordered.health.sentence)


def test_one_class_again_and_again_is_noticed() -> None:
    pool = random_pool(400)
    norms = entropy(pool) + 10.0 * (pool.logits.argmax(1) == 0)
    ordered = order_pool(
        replace(pool, norms=norms, features=torch.eye(400), labelled_features=torch.zeros(0, 400)),
        Acquisition("lplgrad"),
        0,
    )
    assert ordered.health.head_classes == (50, 0, 0, 0) and "one class" in str(ordered.health.sentence)


def test_a_pool_without_differences_is_healthy_enough() -> None:
    health = order_pool(alike_pool(9), Acquisition(), 0).health
    assert math.isnan(health.correlation)


@given(values, values)
def test_spearman_is_pearson_of_mean_ranks(first: list[int], second: list[int]) -> None:
    pairs = list(zip(first, second, strict=False))
    a, b = ([float(pair[at]) for pair in pairs] for at in (0, 1))
    ranks = [[sum(x < y for x in column) + (sum(x == y for x in column) - 1) / 2 for y in column] for column in (a, b)]
    found = spearman(torch.tensor(a), torch.tensor(b))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(found)
        return
    means = [sum(column) / len(column) for column in ranks]
    dots = [[sum((x - m) * (y - n) for x, y in zip(p, q, strict=True)) for q, n in zip(ranks, means, strict=True)]
            for p, m in zip(ranks, means, strict=True)]  # fmt: skip
    assert found == pytest.approx(dots[0][1] / math.sqrt(dots[0][0] * dots[1][1]), abs=1e-9)
