"""Statistics of simulations, against loops and enumerations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from simulated import a_run

from lplgrad_backend.simulation.statistics import (
    RESAMPLES,
    Interval,
    against,
    compare,
    curves,
    holm,
    interval,
    labels_needed,
    resampled,
    saving,
    saving_sentence,
    sign_flip_p,
)


def test_an_interval_is_that_of_a_loop_over_resamples() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, 12)
    found = interval(values)
    means = sorted(sum(values[at] for at in chosen) / 12 for chosen in resampled(12))
    assert found.mean == pytest.approx(sum(values) / 12)
    assert found.low == pytest.approx(means[round(0.025 * RESAMPLES)], abs=0.01)
    assert found.high == pytest.approx(means[round(0.975 * RESAMPLES)], abs=0.01)


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    inside = [found.low <= 0 <= found.high for found in (interval(random.normal(size=30)) for _ in range(200))]
    assert 0.87 <= np.mean(inside) <= 0.99


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_p_is_that_of_all_signs(shift: float) -> None:
    differences = np.random.default_rng(3).normal(shift, 1.0, 10)
    means = [abs(np.mean(np.array(signs) * differences)) for signs in itertools.product([-1, 1], repeat=10)]
    exact = np.mean(np.array(means) >= abs(differences.mean()) - 1e-15)
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.02)


def test_holm_is_the_smallest_level_at_which_stepping_down_rejects() -> None:
    chances = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": 0.9}
    for name, corrected in holm(chances).items():
        levels = [level / 1000 for level in range(1, 1001) if name in rejected(chances, level / 1000 + 1e-9)]
        assert corrected == pytest.approx(levels[0] if levels else 1.0, abs=0.0011)


def rejected(chances: dict[str, float], level: float) -> set[str]:
    """Holm's procedure as it is written: go up from the smallest p, stop at the first that is too large."""
    found: set[str] = set()
    for at, name in enumerate(sorted(chances, key=lambda name: chances[name])):
        if chances[name] > level / (len(chances) - at):
            break
        found.add(name)
    return found


@pytest.mark.parametrize(
    ("target", "needed"), [(0.5, 10), (0.4, 10), (0.6, 20), (0.65, 25), (0.8, 40), (0.81, float("inf"))]
)
def test_labels_needed_lie_on_straight_lines(target: float, needed: float) -> None:
    labels = np.array([10, 20, 30, 40])
    assert labels_needed(labels, np.array([0.5, 0.6, 0.7, 0.8]), target) == pytest.approx(needed)


def test_strategies_are_compared_on_the_same_seeds() -> None:
    runs = [a_run("random", seed, [0.5, 0.6 + seed / 100]) for seed in range(6)]
    runs += [a_run("best", seed, [0.5, 0.7 + seed / 100]) for seed in range(5)]
    found = curves(runs)
    assert found["random"].seeds == found["best"].seeds == (0, 1, 2, 3, 4)
    compared = compare(found["best"], found["random"])
    assert compared.difference == Interval(pytest.approx(0.05), pytest.approx(0.05), pytest.approx(0.05))
    assert (compared.wins, compared.seeds) == (5, 5)
    assert compare(found["best"], found["random"], balanced=True).difference.mean == pytest.approx(0.025)
    assert against(found, "random")["best"].p == pytest.approx(compared.p)


def test_labels_saved_are_counted_to_random_s_last_accuracy() -> None:
    runs = [a_run("random", seed, [0.5, 0.6, 0.7, 0.8]) for seed in range(6)]
    runs += [a_run("fast", seed, [0.5, 0.8, 0.8, 0.8]) for seed in range(6)]
    runs += [a_run("slow", seed, [0.5, 0.6, 0.7, 0.7]) for seed in range(6)]
    found = curves(runs)
    assert saving(found["fast"], found["random"]).mean == pytest.approx(0.5)
    assert saving(found["slow"], found["random"]).mean == 0
    assert saving_sentence(saving(found["fast"], found["random"])) == "saves 50 % of labels, 95 % interval 50-50 %"
    assert saving_sentence(saving(found["slow"], found["random"])) == "no saving shown"
    assert saving_sentence(Interval(0.23, 0.12, 0.31)) == "saves 23 % of labels, 95 % interval 12-31 %"


def test_a_few_seeds_show_nothing() -> None:
    runs = [a_run(name, seed, [0.5, value]) for seed in range(3) for name, value in (("random", 0.6), ("fast", 0.9))]
    found = curves(runs)
    assert saving_sentence(saving(found["fast"], found["random"])) == "no saving shown"


def test_no_common_seed_is_an_error() -> None:
    with pytest.raises(ValueError, match="seed"):
        curves([a_run("random", 0, [0.5]), a_run("other", 1, [0.5])])
