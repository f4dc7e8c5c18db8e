"""Where a training stands after an epoch, so that another process goes on from there as if it had been this one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

NETWORK, OPTIMISER, RANDOM, SCALE = "network.", "optimiser.", "random", "scale"
LOWEST, LOSS = "lowest.", "loss"


@dataclass(frozen=True)
class Checkpoint:
    """After `epoch` epochs and `steps` steps.

    Attributes:
        tensors: on the processor: the network's state, the optimiser's, that of the random generator, and how losses are
            scaled in mixed precision.
    """

    epoch: int
    steps: int
    tensors: Mapping[str, Tensor]


class Keeper(Protocol):
    """Keeps a training's checkpoint; how often is its own affair."""

    def recall(self) -> Checkpoint | None:
        """Where to go on from; None: from the beginning."""

    def keep(self, checkpoint: Callable[[], Checkpoint]) -> None:
        """Is told after each epoch but the last."""


class NoKeeper:
    """Every training begins at the beginning."""

    def recall(self) -> Checkpoint | None:
        """See `Keeper`."""
        return None

    def keep(self, checkpoint: Callable[[], Checkpoint]) -> None:
        """See `Keeper`."""


NO_KEEPER = NoKeeper()


class Lowest:
    """The weights of the epoch with the lowest loss, where they are wanted: `Recipe.kept`."""

    def __init__(self, wanted: bool) -> None:
        self._wanted, self._loss, self._state = wanted, math.inf, dict[str, Tensor]()

    def see(self, loss: float, network: nn.Module) -> None:
        """An epoch has ended."""
        if self._wanted and loss < self._loss:
            self._loss = loss
            self._state = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def restore(self, network: nn.Module) -> None:
        """The training has ended."""
        if self._state:
            network.load_state_dict(self._state)

    def tensors(self) -> dict[str, Tensor]:
        """For `Checkpoint`."""
        found = {LOWEST + name: value.cpu() for name, value in self._state.items()}
        return found | ({LOSS: torch.tensor(self._loss, dtype=torch.float64)} if found else {})

    def recall(self, tensors: Mapping[str, Tensor]) -> None:
        """What `tensors` gave."""
        self._loss = float(tensors.get(LOSS, math.inf))
        self._state = {name.removeprefix(LOWEST): value for name, value in tensors.items() if name.startswith(LOWEST)}


def tensors_of(
    network: nn.Module, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler, random: torch.Generator
) -> dict[str, Tensor]:
    """For `Checkpoint`. They share no memory with the training."""
    found = {NETWORK + name: value for name, value in network.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        found |= {f"{OPTIMISER}{number}.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    found[RANDOM] = random.get_state()
    if scaler.is_enabled():
        scaled = scaler.state_dict()
        found[SCALE] = torch.tensor([scaled["scale"], scaled["_growth_tracker"]], dtype=torch.float64)
    return {name: value.detach().cpu().clone() for name, value in found.items()}


def restore(
    tensors: Mapping[str, Tensor],
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    random: torch.Generator,
) -> None:
    """Bring all of them to where `tensors_of` found them."""
    state = {name.removeprefix(NETWORK): value for name, value in tensors.items() if name.startswith(NETWORK)}
    network.load_state_dict(state)
    moved: dict[int, dict[str, Tensor]] = {}
    for name in (one for one in tensors if one.startswith(OPTIMISER)):
        number, _, key = name.removeprefix(OPTIMISER).partition(".")
        moved.setdefault(int(number), {})[key] = tensors[name].clone()
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moved})
    random.set_state(tensors[RANDOM])
    if scaler.is_enabled():
        scale, tracker = tensors[SCALE].tolist()
        known: dict[str, Any] = scaler.state_dict()
        scaler.load_state_dict({**known, "scale": scale, "_growth_tracker": int(tracker)})
