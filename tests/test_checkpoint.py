"""Where a training stands, taken from one network and given to another."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lplgrad_backend.lplgrad.checkpoint import NO_KEEPER, restore, tensors_of

OPTIMISERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "sgd without momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
}
SCALER = torch.amp.GradScaler(enabled=False)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def steps(model: nn.Module, optimiser: torch.optim.Optimizer, random: torch.Generator, count: int) -> list[Tensor]:
    for _ in range(count):
        optimiser.zero_grad()
        model(torch.randn(5, 3, generator=random)).square().mean().backward()
        optimiser.step()
    return [value.clone() for value in model.state_dict().values()]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_another_network_goes_on_as_the_first_does(name: str) -> None:
    first, random = network(), torch.Generator().manual_seed(1)
    optimiser = OPTIMISERS[name](first.parameters())
    steps(first, optimiser, random, 3)
    taken = tensors_of(first, optimiser, SCALER, random)
    kept = copy.deepcopy(taken)
    wanted = steps(first, optimiser, random, 4)
    assert all(torch.equal(value, kept[key]) for key, value in taken.items())  # and is no view of the training
    second, other = network(), torch.Generator().manual_seed(99)
    its = OPTIMISERS[name](second.parameters())
    restore(taken, second, its, SCALER, other)
    found = steps(second, its, other, 4)
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


def test_without_a_memory_a_training_begins_at_the_beginning() -> None:
    NO_KEEPER.keep(lambda: pytest.fail("nobody asked where it stands"))
    assert NO_KEEPER.recall() is None
