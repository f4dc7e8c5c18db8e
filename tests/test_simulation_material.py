"""How a seed divides what can be labelled, and what is labelled first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated import BUDGET, blobs

from lplgrad_backend.errors import NotLearnable
from lplgrad_backend.simulation.material import Budget, begun_typically, divide


def test_a_quarter_is_held_out_where_the_data_do_not_say() -> None:
    first, again = (divide(blobs(held_out=False), BUDGET, 3) for _ in range(2))
    assert len(first.held_out) == round(90 / 4)
    assert not set(first.held_out) & {*first.first, *first.pool}
    assert first.held_out.tolist() == again.held_out.tolist()
    assert first.held_out.tolist() != divide(blobs(held_out=False), BUDGET, 4).held_out.tolist()


def test_rare_classes_and_copies_change_the_pool_alone() -> None:
    material = replace(blobs(300), rare=0.1, copies=3)
    division = divide(material, Budget(6, 6, 18), 0)
    everything = np.concatenate([division.first, division.pool])
    _, times = np.unique(everything, return_counts=True)
    assert set(times) == {3}
    counts = np.bincount(material.labels[everything])
    assert counts[1] <= 0.12 * max(counts)
    assert len(division.held_out) == 30


def test_rare_classes_are_as_rare_in_a_pool_that_is_cut() -> None:
    division = divide(replace(blobs(2000), rare=0.1), Budget(6, 6, 18, pool=200), 0)
    everything = np.concatenate([division.first, division.pool])
    assert 120 < len(everything) < 200
    counts = np.bincount(blobs(2000).labels[everything])
    assert 0.05 * max(counts) <= counts[1] <= 0.15 * max(counts)


def test_too_small_a_pool_is_said() -> None:
    with pytest.raises(NotLearnable, match="--budget"):
        divide(blobs(), Budget(10, 10, 100), 0)


def test_the_cold_start_goes_on_until_there_are_two_classes() -> None:
    material = blobs()
    alike = torch.zeros(60, 4)
    alike[:, 0] = torch.arange(60) * 1e-3
    division = divide(material, BUDGET, 0)
    one_class = replace(material, targets=np.eye(3, dtype=bool)[np.zeros(90, dtype=int)])
    one_class.targets[division.pool[-1]] = [False, True, False]
    found = begun_typically(division, one_class, alike, 2, 0)
    assert one_class.targets[found.first].any(0).sum() == 2
    assert len(found.first) + len(found.pool) == 60
