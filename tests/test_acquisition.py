"""Scores keep the order of any norms; each strategy orders any pool, and as its formula says."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from known_pool import alike_pool, random_pool
from torch import Tensor

from lplgrad_backend.errors import NonFiniteScore
from lplgrad_backend.lplgrad.acquisition import STRATEGIES, Queue, Strategy, scores

NORMS = st.lists(st.floats(0, allow_nan=False, allow_infinity=False), min_size=1, max_size=30)
SCALES = st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False)
LARGEST, SMALLEST = 1.7976931348623157e308, 5e-324
DRAWN = {"random", "badge"}  # a draw goes by position


def scored(norms: list[float], scale: float) -> list[float]:
    found: list[float] = scores(torch.tensor(norms, dtype=torch.float64), scale).tolist()
    return found


class TestScores:
    @given(NORMS, SCALES)
    @example([0.0, SMALLEST, 1.0, 1e300, 1.1e300, LARGEST], 1.0)
    @example([0.0, 1.0, math.nextafter(1.0, 2), LARGEST], LARGEST)
    @example([0.0, SMALLEST, 1e-323, 1.0, LARGEST], SMALLEST)
    @example([-0.0, 0.0], 1.0)
    def test_fall_strictly_where_norms_differ_and_lie_inside(self, norms: list[float], scale: float) -> None:
        found = scored(norms, scale)
        for (g, a), (h, b) in itertools.product(zip(norms, found, strict=True), repeat=2):
            assert (a > b) == (g < h)
        assert all(0 < score < 1 for score in found)

    @given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=10), st.floats(1e-6, 1e6))
    def test_are_s_over_s_plus_g(self, norms: list[float], scale: float) -> None:
        assert scored(norms, scale) == pytest.approx([scale / (scale + g) for g in norms], rel=1e-12)

    def test_the_scale_itself_gets_a_half(self) -> None:
        assert scored([0.3], 0.3) == [0.5]

    def test_many_that_round_to_one_number_stay_apart(self) -> None:
        for norms in (torch.linspace(0, 1e-17, 5000), torch.linspace(1e307, 1.7e308, 5000, dtype=torch.float64)):
            found = scores(norms.double(), 1.0)
            assert (found.diff() < 0).all()
            assert found.min() > 0 and found.max() < 1
            assert found.min() >= torch.finfo(torch.float64).tiny, "some databases refuse subnormal numbers"

    def test_none_of_none(self) -> None:
        found = scores(torch.zeros(0), 1.0)
        assert found.dtype == torch.float64 and len(found) == 0

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_norm_that_is_no_number_is_named_by_its_position(self, bad: float) -> None:
        with pytest.raises(NonFiniteScore) as caught:
            scored([1.0, bad, 2.0, bad], 1.0)
        assert caught.value.indices == [1, 3]

    def test_a_negative_norm_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"-0\.5"):
            scored([1.0, -0.5], 1.0)

    @pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
    def test_a_scale_that_scales_nothing_is_refused(self, scale: float) -> None:
        with pytest.raises(ValueError, match="scale"):
            scored([1.0], scale)


@pytest.fixture(params=sorted(STRATEGIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def strategy(name: str) -> Strategy:
    return STRATEGIES[name]


def same(first: Queue, second: Queue) -> bool:
    return torch.equal(first.positions, second.positions) and torch.equal(first.worth, second.worth)


@pytest.mark.parametrize("multiple", [False, True], ids=["one class", "many classes"])
class TestEveryStrategy:
    def test_orders_a_whole_pool(self, strategy: Strategy, multiple: bool) -> None:
        queue = strategy(random_pool(40, multiple=multiple), 40, 0)
        assert sorted(queue.positions.tolist()) == list(range(40))
        assert (queue.positions.dtype, queue.worth.dtype) == (torch.int64, torch.float64)
        assert torch.isfinite(queue.worth).all()
        assert (queue.worth.diff() <= 0).all()

    @pytest.mark.parametrize("budget", [0, 1, 7, 40, 41])
    def test_a_budget_takes_the_head_of_that_order(self, strategy: Strategy, multiple: bool, budget: int) -> None:
        pool = random_pool(40, multiple=multiple)
        head, whole = strategy(pool, budget, 3), strategy(pool, 40, 3)
        assert same(head, Queue(whole.positions[:budget], whole.worth[:budget]))

    def test_a_seed_makes_it_repeatable(self, strategy: Strategy, multiple: bool) -> None:
        for pool in (random_pool(30, multiple=multiple), alike_pool(30, multiple=multiple)):
            assert same(strategy(pool, 10, 5), strategy(pool, 10, 5))

    def test_ties_are_broken_by_the_seed_and_not_by_position(self, strategy: Strategy, multiple: bool) -> None:
        queues = [strategy(alike_pool(30, multiple=multiple), 30, seed) for seed in range(3)]
        orders = {tuple(queue.positions.tolist()) for queue in queues}
        assert len(orders) == 3 and tuple(range(30)) not in orders
        assert all(sorted(order) == list(range(30)) for order in orders)

    def test_permuting_the_pool_permutes_the_order(self, name: str, strategy: Strategy, multiple: bool) -> None:
        pool = random_pool(30, multiple=multiple)
        permutation = torch.randperm(30, generator=torch.Generator().manual_seed(9))
        plain, permuted = strategy(pool, 30, 0), strategy(pool[permutation], 30, 0)
        assert torch.equal(permutation[permuted.positions], plain.positions) == (name not in DRAWN)

    def test_one_image_and_none(self, strategy: Strategy, multiple: bool) -> None:
        assert strategy(random_pool(1, multiple=multiple), 5, 0).positions.tolist() == [0]
        assert strategy(random_pool(0, multiple=multiple), 5, 0).positions.tolist() == []

    def test_nothing_labelled_yet(self, strategy: Strategy, multiple: bool) -> None:
        assert len(strategy(random_pool(9, multiple=multiple, labelled=0), 9, 0).positions) == 9

    def test_saturated_logits(self, strategy: Strategy, multiple: bool) -> None:
        pool = random_pool(12, multiple=multiple)
        queue = strategy(replace(pool, logits=pool.logits * 1e4), 12, 0)
        assert torch.isfinite(queue.worth).all()

    def test_a_negative_budget_is_refused(self, strategy: Strategy, multiple: bool) -> None:
        with pytest.raises(ValueError, match="-1"):
            strategy(random_pool(3, multiple=multiple), -1, 0)

    def test_what_is_not_finite_is_named(self, name: str, strategy: Strategy, multiple: bool) -> None:
        pool = random_pool(5, multiple=multiple)
        broken = {key: getattr(pool, key).clone() for key in ("logits", "features", "predicted_losses", "norms")}
        for values in broken.values():
            values[3] = math.nan
        if name == "random":
            return
        with pytest.raises(NonFiniteScore) as caught:
            strategy(replace(pool, **broken), 5, 0)
        assert caught.value.indices == [3]


class TestLPLgrad:
    def test_goes_by_the_exact_norm(self) -> None:
        pool = random_pool(20)
        queue = STRATEGIES["lplgrad"](pool, 20, 0)
        assert queue.worth.tolist() == sorted(pool.norms.tolist(), reverse=True)
        assert torch.equal(pool.norms[queue.positions], queue.worth)

    def test_its_worth_is_what_is_published(self) -> None:
        queue = STRATEGIES["lplgrad"](random_pool(20), 20, 0)
        assert (scores(queue.worth, 0.5).diff() > 0).all()


class TestScreening:
    @given(count=st.integers(1, 40), seed=st.integers(0, 99))
    def test_measures_only_the_front_and_orders_it_exactly(self, count: int, seed: int) -> None:
        pool = random_pool(count, seed=seed)
        rough = [slow_rough(row) for row in pool.logits]
        front = sorted(range(count), key=lambda at: -rough[at])[: math.ceil(0.3 * count)]
        queue = STRATEGIES["lplgrad-screened"](pool, count, 0)
        assert sorted(pool.asked) == sorted(front)
        positions = queue.positions.tolist()
        assert positions[: len(front)] == sorted(front, key=lambda at: -float(pool.norms[at]))
        assert positions[len(front) :] == sorted(set(range(count)) - set(front), key=lambda at: -rough[at])

    def test_finds_the_exact_head_when_the_cheap_score_is_near(self) -> None:
        pool = random_pool(100)
        rough = torch.tensor([slow_rough(row) for row in pool.logits], dtype=torch.float64)
        near = replace(pool, norms=rough * (1 + 0.2 * pool.norms))
        exact, cheap = (STRATEGIES[name](near, 10, 0) for name in ("lplgrad", "lplgrad-screened"))
        assert same(exact, cheap)


def slow_rough(logits: Tensor) -> float:
    p = torch.softmax(logits.double(), 0).tolist()
    entropy = -sum(one * math.log(one) for one in p)
    return math.sqrt(sum((one * (math.log(one) + entropy)) ** 2 for one in p))


class TestDiversity:
    def test_coreset_keeps_away_from_what_is_labelled(self) -> None:
        pool = replace(
            random_pool(3), features=torch.tensor([[0.0], [10.0], [4.0]]), labelled_features=torch.tensor([[9.0]])
        )
        queue = STRATEGIES["coreset"](pool, 3, 0)
        assert queue.positions.tolist() == [0, 2, 1]
        assert queue.worth.tolist() == [9.0, 4.0, 1.0]

    @pytest.mark.parametrize("multiple", [False, True], ids=["one class", "many classes"])
    def test_badge_starts_with_the_longest_gradient(self, multiple: bool) -> None:
        pool = random_pool(30, multiple=multiple)
        squares = []
        for logits, features in zip(pool.logits.double(), pool.features.double(), strict=True):
            p = torch.sigmoid(logits) if multiple else torch.softmax(logits, 0)
            label = (p > 0.5).double() if multiple else torch.nn.functional.one_hot(p.argmax(), 4)
            squares.append(float(torch.outer(p - label, features).square().sum()))
        queue = STRATEGIES["badge"](pool, 1, 0)
        assert queue.positions.tolist() == [squares.index(max(squares))]
        assert queue.worth.tolist() == pytest.approx([max(squares)], rel=1e-9)

    def test_badge_takes_a_picture_once_before_it_takes_it_again(self) -> None:
        thrice = random_pool(10)[torch.arange(10).repeat(3)]
        assert len(set((STRATEGIES["badge"](thrice, 10, 0).positions % 10).tolist())) == 10
        assert len(set((STRATEGIES["coreset"](thrice, 10, 0).positions % 10).tolist())) == 10
