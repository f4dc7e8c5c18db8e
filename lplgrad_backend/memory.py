"""When memory runs out in a round: how that is told, and the same work in smaller batches."""

from __future__ import annotations

from dataclasses import replace

import torch

from lplgrad_backend.lplgrad.recipe import Recipe
from lplgrad_backend.scoring import BATCH

ALLOCATION_FAILED = ("can't allocate memory", "could not create a memory", "bad_alloc", "can't start new thread")


def in_batches(recipe: Recipe, share: int) -> Recipe:
    """The recipe with batches so many times smaller, of two images at least; as it is with 1."""
    return recipe if share == 1 else replace(recipe, batch=max(2, recipe.batch // share))


def scoring_batch(share: int) -> int:
    """How many images are measured at once."""
    return max(1, BATCH // share)


def memory_warning(share: int) -> list[str]:
    """What a person should know of smaller batches."""
    return [] if share == 1 else [f"Memory ran out, so this round's batches are {share} times smaller than usual."]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; PyTorch says so of the processor's in a RuntimeError's text alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATION_FAILED)
