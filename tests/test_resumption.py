"""A training that was ended goes on and ends as one that was not, bit by bit; and so does a round when its backend is."""

from __future__ import annotations

import itertools
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chaos_stage import chaos_stage
from torch import Tensor

from lplgrad_backend.labeling import Example
from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.lplgrad.recipe import FINETUNE, FROM_SCRATCH, HEAD, PAPER, Recipe
from lplgrad_backend.lplgrad.training import fit
from lplgrad_backend.resumption import Resumption, key_of

CPU = torch.device("cpu")
EPOCHS = 6
RECIPES = {
    name: replace(recipe, epochs=EPOCHS, steps=0, batch=4, enough=0.0)
    for name, recipe in {"scratch": FROM_SCRATCH, "paper": PAPER, "finetune": FINETUNE, "frozen": HEAD}.items()
}
# a rate so high that the last epoch is not the best one
RECIPES["lowest"] = replace(RECIPES["scratch"], kept="lowest", rate=0.3)
EXAMPLES = [Example(number, f"/{number}.png", ()) for number in range(9)]


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(Architecture("shufflenet_v2_x0_5", 3, False, 8, True))


def pictures() -> Tensor:
    return torch.randint(0, 256, (9, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def targets() -> Tensor:
    return torch.eye(3)[torch.arange(9) % 3]


def key(recipe: Recipe, seed: int = 0) -> str:
    return key_of(network(), EXAMPLES, targets(), recipe, seed, CPU)


def standing_still() -> float:
    """A clock by which a writing takes no time, so that every epoch is kept."""
    return 0.0


def train(model: Network, recipe: Recipe, keeper: Resumption, epochs: int = EPOCHS) -> list[int]:
    """The epochs that were made, at most so many."""
    records = fit(model, pictures(), targets(), recipe, seed=5, device=CPU, keeper=keeper)
    return [record.epoch for record in itertools.islice(records, epochs)]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("ended", [1, 2, EPOCHS])
def test_it_ends_as_if_it_had_not_been_ended(tmp_path: Path, name: str, ended: int) -> None:
    recipe = RECIPES[name]
    wanted, first, second = network(), network(), network()
    for _ in fit(wanted, pictures(), targets(), recipe, seed=5, device=CPU):
        pass
    train(first, recipe, Resumption(tmp_path / "checkpoint", key(recipe), seconds=0, clock=standing_still), ended)
    after = Resumption(tmp_path / "checkpoint", key(recipe), seconds=0, clock=standing_still)
    made = [one.epoch for one in fit(second, pictures(), targets(), recipe, seed=5, device=CPU, keeper=after)]
    # an epoch is kept when the next one is asked for
    assert made == list(range(max(1, ended), EPOCHS + 1))
    for tensor, value in wanted.state_dict().items():
        assert torch.equal(value, second.state_dict()[tensor]), tensor


def test_whatever_else_differs_is_another_training() -> None:
    recipe = RECIPES["scratch"]
    others = [
        key_of(network(1), EXAMPLES, targets(), recipe, 0, CPU),
        key_of(network(), EXAMPLES[:-1], targets(), recipe, 0, CPU),
        key_of(network(), EXAMPLES, 1 - targets(), recipe, 0, CPU),
        key_of(network(), EXAMPLES, targets(), replace(recipe, batch=8), 0, CPU),
        key_of(network(), EXAMPLES, targets(), recipe, 1, CPU),
        key_of(network(), EXAMPLES, targets(), recipe, 0, torch.device("meta")),
    ]
    assert len({key(recipe), *others}) == 7
    assert key(recipe) == key(recipe)


def test_anothers_and_a_damaged_checkpoint_are_left_alone(tmp_path: Path) -> None:
    file, recipe = tmp_path / "checkpoint", RECIPES["scratch"]
    train(network(), recipe, Resumption(file, key(recipe), seconds=0, clock=standing_still), 3)
    assert Resumption(file, key(recipe)).recall() is not None
    assert Resumption(file, key(recipe, seed=1)).recall() is None
    file.write_bytes(file.read_bytes()[:-1])
    assert Resumption(file, key(recipe)).recall() is None
    keeper = Resumption(file, key(recipe), seconds=0, clock=standing_still)
    assert train(network(), recipe, keeper) == list(range(1, EPOCHS + 1))


def test_it_is_written_now_and_then(tmp_path: Path) -> None:
    clock = iter([0.0, 2.0, 4.0, 6.0, 6.0, 8.0, 10.0, 12.0])
    file, recipe = tmp_path / "checkpoint", RECIPES["scratch"]
    keeper = Resumption(file, key(recipe), seconds=5, clock=lambda: next(clock))
    epochs = []
    for record in fit(network(), pictures(), targets(), recipe, seed=5, device=CPU, keeper=keeper):
        found = Resumption(file, key(recipe)).recall()
        epochs.append((record.epoch, found.epoch if found else None))
    assert epochs == [(1, None), (2, None), (3, None), (4, 3), (5, 3), (6, 3)]


def test_it_is_written_more_seldom_where_writing_is_slow(tmp_path: Path) -> None:
    clock = iter([0.0, 5.0, 6.0, 11.0, 25.0, 26.0, 27.0, 28.0])  # a writing of one second is a twentieth of twenty
    file, recipe = tmp_path / "checkpoint", RECIPES["scratch"]
    keeper = Resumption(file, key(recipe), seconds=5, clock=lambda: next(clock))
    kept = []
    for _ in fit(network(), pictures(), targets(), recipe, seed=5, device=CPU, keeper=keeper):
        found = Resumption(file, key(recipe)).recall()
        kept.append(found.epoch if found else None)
    assert kept == [None, 1, 1, 1, 4, 4]


def test_a_disk_that_refuses_ends_no_training() -> None:
    recipe = RECIPES["scratch"]
    keeper = Resumption(Path("/dev/null/checkpoint"), key(recipe), seconds=0, clock=standing_still)
    assert train(network(), recipe, keeper) == list(range(1, EPOCHS + 1))


@pytest.mark.timeout(300)
def test_a_round_goes_on_after_its_backend_was_stopped(tmp_path: Path) -> None:
    with chaos_stage(tmp_path, LPLGRAD_PRESET="paper", LPLGRAD_IMAGE_SIZE="32") as stage:
        stage.label(24)
        checkpoint = stage.store.checkpoint_path(stage.project)
        stage.wait_until(checkpoint.exists, "a checkpoint")
        stage.servers[-1].send_signal(signal.SIGTERM)
        stage.servers[-1].wait(100)
        stage.wait_until(lambda: not stage.processes(), "the end")
        assert stage.status.published is None
        assert stage.store.check() == []
        stage.serve()
        stage.settle()
        assert re.search(r"goes on after epoch [1-9]", stage.last_words(400))
        assert not checkpoint.exists()
        assert stage.store.manifest(stage.project, "v1").metrics["epochs"] == PAPER.epochs
