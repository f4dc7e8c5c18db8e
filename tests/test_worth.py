"""What an image is worth by itself, against definitions that enumerate every outcome."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known_pool import KnownPool, random_pool
from torch import Tensor

from lplgrad_backend.lplgrad import worth


def outcomes(logits: Tensor, multiple: bool) -> list[float]:
    """Probabilities of all that an image may show, likeliest first: a class, or a set of classes."""
    values = logits.double().tolist()
    if not multiple:
        total = sum(math.exp(value) for value in values)
        return sorted((math.exp(value) / total for value in values), reverse=True)
    on = [1 / (1 + math.exp(-value)) for value in values]
    subsets = itertools.product([False, True], repeat=len(on))
    return sorted(
        (math.prod(p if shown else 1 - p for p, shown in zip(on, subset, strict=True)) for subset in subsets), reverse=True
    )  # fmt: skip


ORACLES: dict[str, tuple[Callable[[KnownPool], Tensor], Callable[[list[float]], float]]] = {
    "entropy": (worth.entropy, lambda p: -sum(one * math.log(one) for one in p)),
    "margin": (worth.margin, lambda p: 1 - (p[0] - p[1])),
    "least-confidence": (worth.least_confidence, lambda p: 1 - p[0]),
}


@pytest.mark.parametrize("multiple", [False, True], ids=["one class", "many classes"])
@pytest.mark.parametrize("measure", ORACLES)
@given(rows=st.lists(st.lists(st.floats(-8, 8), min_size=3, max_size=3), min_size=1, max_size=5))
def test_worth_by_enumerating_all_outcomes(measure: str, multiple: bool, rows: list[list[float]]) -> None:
    pool = replace(random_pool(len(rows), multiple=multiple), logits=torch.tensor(rows, dtype=torch.float64))
    fast, slow = ORACLES[measure]
    wanted = [slow(outcomes(row, multiple)) for row in pool.logits]
    assert fast(pool).tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("multiple", [False, True], ids=["one class", "many classes"])
def test_the_last_layers_norm_is_that_of_autograd(multiple: bool) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 4).double()
    features = torch.randn(6, 5, dtype=torch.float64)
    wanted = []
    for row in features:
        z = head(row)
        p = torch.sigmoid(z) if multiple else torch.softmax(z, 0)
        entropy = -(p * p.log()).sum() - ((1 - p) * (1 - p).log()).sum() * multiple
        wanted.append(sum(float(one.norm()) for one in torch.autograd.grad(entropy, list(head.parameters()))))
    pool = replace(random_pool(6, multiple=multiple), logits=head(features), features=features)
    assert worth.head_gradient_norm(pool).tolist() == pytest.approx(wanted, rel=1e-9)


def slow_rarity(p: list[float], counts: list[int]) -> float:
    """Expected rarity of the class that an image shows: of one with as many labels as the mean it is 1."""
    mean = sum(count + 1 for count in counts) / len(counts)
    return sum(one * math.sqrt(mean / (count + 1)) for one, count in zip(p, counts, strict=True)) / sum(p)


@pytest.mark.parametrize("multiple", [False, True], ids=["one class", "many classes"])
class TestRarity:
    @given(counts=st.lists(st.integers(0, 500), min_size=4, max_size=4))
    def test_is_the_mean_over_the_classes_that_are_likely(self, multiple: bool, counts: list[int]) -> None:
        pool = replace(random_pool(7, multiple=multiple), labelled_counts=torch.tensor(counts))
        p = (torch.sigmoid(pool.logits) if multiple else torch.softmax(pool.logits, 1)).double()
        wanted = [slow_rarity(row, counts) for row in p.tolist()]
        assert worth.rarity(pool).tolist() == pytest.approx(wanted, rel=1e-5)

    @given(count=st.integers(0, 500))
    def test_is_one_while_labels_are_even(self, multiple: bool, count: int) -> None:
        pool = replace(random_pool(7, multiple=multiple), labelled_counts=torch.full((4,), count))
        assert worth.rarity(pool).tolist() == pytest.approx([1.0] * 7, rel=1e-9)
        wanted = worth.undecided_norm(pool).tolist()
        assert worth.undecided_and_rare_norm(pool).tolist() == pytest.approx(wanted, rel=1e-9)

    def test_a_class_with_fewer_labels_is_worth_more(self, multiple: bool) -> None:
        pool = replace(random_pool(4, multiple=multiple), logits=9.0 * torch.eye(4) - 6.0)
        found = worth.rarity(replace(pool, labelled_counts=torch.tensor([40, 10, 3, 0])))
        assert (found.diff() > 0).all() and found[0] < 1 < found[3]

    def test_logits_that_rule_every_class_out_give_a_number(self, multiple: bool) -> None:
        pool = replace(random_pool(2, multiple=multiple), logits=torch.full((2, 4), -1e4))
        assert torch.isfinite(worth.rarity(pool)).all()
