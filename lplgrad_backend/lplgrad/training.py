"""Joint training of the main model and the loss-prediction module (LPLgrad, arXiv 2411.15217, training phase).

    L = mean_i l_i + lambda * mean over pairs of max(0, -sign(l_i - l_j) (a_i - a_j) + xi)

l is the main model's loss of an image and counts as data in the second term; a is the predicted loss; pairs are the first
half of a batch with the second half reversed (Yoo and Kweon, arXiv 1905.03677, equation 2; the middle image of an odd
batch has no partner). After `cut_after` of the training the second term no longer reaches the main model.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from lplgrad_backend.errors import TrainingError
from lplgrad_backend.lplgrad.batches import augment, draw, expected_draws
from lplgrad_backend.lplgrad.checkpoint import NO_KEEPER, Checkpoint, Keeper, Lowest, restore, tensors_of
from lplgrad_backend.lplgrad.network import Looked, Network
from lplgrad_backend.lplgrad.objective import agreement, full, main_loss, ranking_loss
from lplgrad_backend.lplgrad.quick_convolutions import QuickConvolutions, arranged
from lplgrad_backend.lplgrad.recipe import Recipe, rate_factor
from lplgrad_backend.lplgrad.team import ALONE, Team


@dataclass(frozen=True)
class EpochRecord:
    """One epoch's news. `loss` and `ranking_loss` are means over its batches, `accuracy` is on the augmented images."""

    epoch: int
    epochs: int
    loss: float
    ranking_loss: float
    accuracy: float
    seconds: float


def fit(
    network: Network,
    images: Tensor | Looked,
    targets: Tensor,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    team: Team = ALONE,
    keeper: Keeper = NO_KEEPER,
) -> Iterator[EpochRecord]:
    """Train `network` in place and yield a record per epoch; abandon the iterator to stop. It ends in eval mode, with those
    parameters frozen that the recipe does not train. It starts from the weights that it has: a new network's are a fresh
    start, those of the version before a warm one.

    Args:
        images: uint8 [N, 3, S, S], N >= 1, or for a recipe that trains the head alone what `look_at` said of them.
        targets: [N, C] in [0, 1].
        seed: of everything random here.
        team: who trains this network; all with the same arguments, and images that are pixels.
        keeper: keeps where the training stands; from what it recalls of one with the same arguments this one goes on, and
            ends as that would have.

    Raises:
        TrainingError: no images, or the loss is not finite.
    """
    if len(targets) == 0:
        raise TrainingError("There is no labelled image to train on.")
    network.to(device)
    source = _source(network, images, recipe, team)
    random = torch.Generator().manual_seed(seed)
    try:
        yield from _epochs(network, source, targets, recipe, random, device, team.rank, keeper)
        source.settle(network, targets, random, device)
    finally:
        network.eval()


def freeze(network: Network, trained: str) -> None:
    """Let only those parameters move, and count in gradient norms, that a recipe trains (`Recipe.trained`)."""
    network.requires_grad_(trained == "all")
    network.head.requires_grad_(True)
    if trained == "stage":
        for parameter in network.last_stage():
            parameter.requires_grad_(True)


def _source(network: Network, images: Tensor | Looked, recipe: Recipe, team: Team) -> _Pixels | _Features:
    if isinstance(images, Tensor):
        return _Pixels(images, recipe, team) if recipe.trained != "head" else _Features(look_at(network, images))
    if recipe.trained != "head":
        raise TrainingError(f"Stored features can train the head alone, not the {recipe.trained!r} of a network.")
    return _Features(images)


class _Pixels:
    """Batches of augmented images through the whole network."""

    def __init__(self, images: Tensor, recipe: Recipe, team: Team) -> None:
        self._images, self._recipe, self._team = images, recipe, team

    def parameters(self, network: Network) -> list[nn.Parameter]:
        freeze(network, self._recipe.trained)
        network.loss_prediction.requires_grad_(True)
        network.train(self._recipe.trained == "all")
        return [parameter for parameter in network.parameters() if parameter.requires_grad]

    def look(self, network: Network, chosen: Tensor, random: torch.Generator, device: torch.device) -> Looked:
        with QuickConvolutions():
            return self._team.look(network, self._augmented(chosen, random, device))

    def settle(self, network: Network, targets: Tensor, random: torch.Generator, device: torch.device) -> None:
        """Take batch normalisation's averages anew, from images as training drew them (`Recipe.settling`)."""
        recipe = self._recipe
        expected = expected_draws(targets, recipe.balanced and not network.architecture.multiple)
        drawn = itertools.chain.from_iterable(draw(expected, recipe.batch, random) for _ in range(recipe.settling))
        chosen = itertools.islice(drawn, recipe.settling)
        batches = (self._team.part(self._augmented(one, random, device)) for one in chosen)
        if recipe.settling and recipe.trained == "all":
            with _own_randomness(device, random, self._team.rank), QuickConvolutions():
                update_bn(batches, network)

    def _augmented(self, chosen: Tensor, random: torch.Generator, device: torch.device) -> Tensor:
        images = self._images[chosen].to(device, non_blocking=True).float() / 255
        return arranged(augment(images, round(self._recipe.shift * images.shape[-1]), self._recipe.flip, random))


class _Features:
    """Batches of what the frozen part of the network says, computed once."""

    def __init__(self, looked: Looked) -> None:
        self._features, self._pooled = looked.features, looked.pooled

    def parameters(self, network: Network) -> list[nn.Parameter]:
        freeze(network, "head")
        network.loss_prediction.requires_grad_(True)
        network.eval()
        return [parameter for parameter in network.parameters() if parameter.requires_grad]

    def look(self, network: Network, chosen: Tensor, random: torch.Generator, device: torch.device) -> Looked:
        features = self._features[chosen]
        return Looked(network.head(features), features, tuple(level[chosen] for level in self._pooled))

    def settle(self, network: Network, targets: Tensor, random: torch.Generator, device: torch.device) -> None:
        """Nothing: the frozen part keeps the averages that its weights came with."""


def look_at(network: Network, images: Tensor, batch: int = 64) -> Looked:
    """Logits, features and pooled levels of images [N, 3, S, S] uint8 in eval mode, without gradients."""
    network.eval()
    device = next(network.parameters()).device
    with torch.no_grad(), QuickConvolutions():
        parts = [network.look(part.to(device).float() / 255) for part in images.split(batch)]
    pooled = tuple(torch.cat(level) for level in zip(*(part.pooled for part in parts), strict=True))
    return Looked(torch.cat([part.logits for part in parts]), torch.cat([part.features for part in parts]), pooled)


def _epochs(
    network: Network,
    source: _Pixels | _Features,
    targets: Tensor,
    recipe: Recipe,
    random: torch.Generator,
    device: torch.device,
    rank: int,
    keeper: Keeper,
) -> Iterator[EpochRecord]:
    expected = expected_draws(targets, recipe.balanced and not network.architecture.multiple)
    batches = len(draw(expected, recipe.batch, torch.Generator()))
    epochs = max(recipe.epochs, math.ceil(recipe.steps / batches))
    step, best = _Step(network, source.parameters(network), recipe, epochs * batches), Lowest(recipe.kept == "lowest")
    checkpoint = keeper.recall()
    done = step.go_on(checkpoint, random)
    if checkpoint is not None:
        best.recall(checkpoint.tensors)
    for epoch in range(done + 1, epochs + 1):
        started = time.perf_counter()
        sums, drawn = torch.zeros(3, dtype=torch.float64), 0
        with _own_randomness(device, random, rank):
            for chosen in draw(expected, recipe.batch, random):
                with torch.autocast(device.type, enabled=step.mixed):
                    looked = source.look(network, chosen, random, device)
                sums += step.take(looked, targets[chosen].to(device)) * len(chosen)
                drawn += len(chosen)
        loss, ranking, right = (sums / drawn).tolist()
        best.see(loss, network)
        yield EpochRecord(epoch, epochs, loss, ranking, right, time.perf_counter() - started)
        if loss < recipe.enough and epoch >= recipe.epochs:
            break
        if epoch < epochs:
            keeper.keep(functools.partial(step.checkpoint, epoch, random, best))
    best.restore(network)


@contextmanager
def _own_randomness(device: torch.device, random: torch.Generator, rank: int) -> Iterator[None]:
    """Dropout draws from the global generators: seed them from ours, for each process otherwise, and give them back as they
    were."""
    forked = [] if device.type == "cpu" else [device.index or 0]
    with torch.random.fork_rng(devices=forked, device_type=device.type):
        torch.manual_seed(int(torch.randint(2**62, (), generator=random)) + rank)
        yield


class _Step:
    """One optimiser step after the other, along the schedule."""

    def __init__(self, network: Network, parameters: list[nn.Parameter], recipe: Recipe, total: int) -> None:
        self._network, self._recipe, self._total, self._done = network, recipe, total, 0
        self._optimiser = _optimiser(parameters, recipe)
        self.mixed = parameters[0].is_cuda
        self._scaler = torch.amp.GradScaler(enabled=self.mixed)

    def checkpoint(self, epoch: int, random: torch.Generator, best: Lowest) -> Checkpoint:
        """Where the training stands after an epoch."""
        tensors = tensors_of(self._network, self._optimiser, self._scaler, random)
        return Checkpoint(epoch, self._done, tensors | best.tensors())

    def go_on(self, checkpoint: Checkpoint | None, random: torch.Generator) -> int:
        """Take up where another stood; gives the epochs that are done."""
        if checkpoint is None:
            return 0
        restore(checkpoint.tensors, self._network, self._optimiser, self._scaler, random)
        self._done = checkpoint.steps
        return checkpoint.epoch

    def take(self, looked: Looked, targets: Tensor) -> Tensor:
        """Main loss, ranking loss and accuracy of the batch [3]."""
        recipe, network = self._recipe, self._network
        multiple = network.architecture.multiple
        progress = self._done / self._total
        for group in self._optimiser.param_groups:
            group["lr"] = recipe.rate * rate_factor(recipe, progress)
        losses = main_loss(full(looked.logits), targets, multiple)
        levels = [level.detach() for level in looked.pooled] if progress >= recipe.cut_after else list(looked.pooled)
        ranking = ranking_loss(network.loss_prediction([full(level) for level in levels]), losses, recipe.margin)
        # cut off, the module trains at full weight, since that costs the main model nothing
        weight = 1.0 if progress >= recipe.cut_after else recipe.ranking_weight
        loss = losses.mean() + weight * ranking
        if not torch.isfinite(loss):
            raise TrainingError(f"The loss became {loss.item()} at step {self._done + 1}: use a lower learning rate.")
        self._optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._done += 1
        accuracy = agreement(looked.logits, targets, multiple)
        return torch.stack([losses.mean().detach(), ranking.detach(), accuracy]).double().cpu()


def _optimiser(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(parameters, lr=recipe.rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def predicted_losses(network: Network, images: Tensor) -> Tensor:
    """Predicted loss of each image [N]; images uint8 [N, 3, S, S]."""
    with torch.no_grad():
        predicted: Tensor = network.loss_prediction(look_at(network, images).pooled)
    return predicted
