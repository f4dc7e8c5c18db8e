"""How to train: the recipes by name, and which one suits the weights, images and device at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

import torch

MANY_LABELS = 500


@dataclass(frozen=True)
class Recipe:
    """How to train. A run is a function of data, recipe and seed; nothing here depends on the clock.

    Attributes:
        trained: "all" parameters of the main model, its last "stage" (what runs after the last but one feature level, with
            the averages of batch normalisation as they came), or its "head" alone on features computed once.
        epochs: at least this many passes over the labelled images.
        steps: and at least this many batches in all.
        enough: stop early once an epoch's mean main loss is below this (0: never).
        ranking_weight: lambda.
        margin: xi.
        cut_after: share of the training after which the ranking loss no longer reaches the main model, in [0, 1].
        schedule: "one-cycle" (cosine, with a warm-up of a tenth) or "milestones" (a tenth of the rate after `milestones`).
        milestones: shares of the training, in [0, 1].
        shift: pixels are shifted by up to this share of the side.
        flip: half of the images are mirrored.
        balanced: every class is drawn equally often. Without effect where images have several classes.
        kept: which epoch's weights: those of the "last" one, or of the one with the "lowest" mean main loss, which needs no
            label that is not trained on.
        settling: batches from which batch normalisation's averages are taken anew at the end (0: they stay as they
            are). Those of training lag tens of steps behind the weights; after a short run the network they make is
            another one than was trained: 10 digits, 15 % held-out accuracy with them and 35 % with new ones.
    """

    trained: Literal["all", "stage", "head"] = "all"
    epochs: int = 10
    steps: int = 100
    enough: float = 0.0
    batch: int = 32
    optimiser: Literal["sgd", "adamw"] = "sgd"
    rate: float = 0.03
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: Literal["one-cycle", "milestones"] = "one-cycle"
    milestones: tuple[float, ...] = ()
    ranking_weight: float = 0.1
    margin: float = 1.0
    cut_after: float = 0.0
    shift: float = 0.1
    flip: bool = False
    balanced: bool = True
    kept: Literal["last", "lowest"] = "last"
    settling: int = 8

    def as_plain(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


PAPER = Recipe(
    epochs=200, steps=0, batch=128, rate=0.1, schedule="milestones", milestones=(0.8,), ranking_weight=1.0, margin=1.0,
    cut_after=0.6, shift=0.125, flip=True, balanced=False, settling=0,
)  # fmt: skip
FROM_SCRATCH = Recipe(optimiser="adamw", rate=1e-3, weight_decay=0.05, enough=0.02)
HEAD = Recipe(
    trained="head", epochs=30, steps=300, optimiser="adamw", rate=3e-3, weight_decay=1e-2, enough=0.02, shift=0.0
)
FINETUNE = Recipe(trained="stage", optimiser="adamw", rate=1e-3, weight_decay=1e-2, enough=0.02, flip=True, settling=0)
RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {"frozen": HEAD, "finetune": FINETUNE, "scratch": FROM_SCRATCH, "paper": PAPER}
)
"""By the name of their preset. `paper` is as published; in the others the loss-prediction module is trained beside the main
model and never reaches into it, and the last epoch's weights are kept: the rate has fallen to nothing by then, or the loss
is small enough to stop. What the epoch with the lowest loss would do is in benchmarks/recipes.md; no label is held out to
look for another."""


def choose(
    preset: str, weights_at_hand: bool, images: int, device: torch.device, side: int, *, linear_head: bool = True
) -> tuple[Recipe, str]:
    """The recipe that a preset means here, and a sentence that says which and why.

    Args:
        preset: `auto` or a name of `RECIPES`.
        weights_at_hand: whether pretrained weights were loaded into the backbone.
        images: how many labelled ones there are.
        side: of the images as the network sees them, in pixels.
        linear_head: whether the last layer can be trained on stored features (`Network.head_is_linear`).

    Raises:
        KeyError: there is no such preset.
    """
    if preset in ("frozen", "finetune") and not weights_at_hand:
        return FROM_SCRATCH, f"scratch: {preset} was asked for, and there are no pretrained weights."
    if preset == "frozen" and not linear_head:
        return FINETUNE, "finetune: frozen was asked for, and the last layer of this backbone is no linear one."
    if preset != "auto":
        return RECIPES[preset], f"{preset}: as set."
    if not weights_at_hand:
        return FROM_SCRATCH, f"scratch: there are no pretrained weights for images of {side} px."
    if not linear_head:
        return FINETUNE, "finetune: pretrained weights, and a last layer that is no linear one."
    if device.type != "cpu" and images >= MANY_LABELS:
        return FINETUNE, f"finetune: pretrained weights, {images} labelled images and a {device.type} device."
    where = "the processor" if device.type == "cpu" else "few labels"
    return HEAD, f"frozen: pretrained weights, {images} labelled images; the best for {where}."


def rate_factor(recipe: Recipe, progress: float) -> float:
    """What the learning rate is multiplied with after this share of the training."""
    if recipe.schedule == "milestones":
        return float(0.1 ** sum(progress >= milestone for milestone in recipe.milestones))
    warm_up = 0.1
    if progress < warm_up:
        return 0.1 + 0.9 * progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))) + 1e-3


def recipe_from_plain(values: Mapping[str, Any]) -> Recipe:
    """Back from a manifest; what another release knew besides is left out."""
    known = {field.name for field in fields(Recipe)}
    kept = {name: value for name, value in values.items() if name in known}
    return Recipe(**{**kept, "milestones": tuple(values.get("milestones", ()))})
