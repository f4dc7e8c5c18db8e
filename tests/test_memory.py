"""When memory runs out: which errors mean that, and what is made smaller."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lplgrad_backend.lplgrad.recipe import HEAD, PAPER
from lplgrad_backend.memory import in_batches, is_out_of_memory, memory_warning, scoring_batch

TOO_MUCH = 2**60  # bytes, more than any machine has


def test_what_allocators_raise_is_told() -> None:
    with pytest.raises(RuntimeError) as processor:
        torch.empty(TOO_MUCH, dtype=torch.uint8)
    with pytest.raises(MemoryError) as arrays:
        np.empty(TOO_MUCH, np.uint8)
    for error in (processor.value, arrays.value, torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("can't allocate memory"), OSError()])
def test_other_errors_are_others(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_nothing_is_changed_while_there_is_memory() -> None:
    assert in_batches(HEAD, 1) is HEAD
    assert memory_warning(1) == []


def test_batches_are_smaller_and_that_is_said() -> None:
    assert in_batches(PAPER, 4).batch == PAPER.batch // 4
    assert in_batches(HEAD, 64).batch == 2
    assert [scoring_batch(share) for share in (1, 2, 8, 1000)] == [64, 32, 8, 1]
    assert "4 times smaller" in memory_warning(4)[0]
