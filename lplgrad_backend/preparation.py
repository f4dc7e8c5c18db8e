"""What a round begins with, here and in a simulation: the device, the network with its weights, and the recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from lplgrad_backend.errors import ImageError, NotLearnable, SettingsError
from lplgrad_backend.images import Images
from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.lplgrad.recipe import Recipe, choose
from lplgrad_backend.lplgrad.training import freeze
from lplgrad_backend.pretrained import SMALL_SIDE, load_into, resolve
from lplgrad_backend.rounds import Order
from lplgrad_backend.settings import Settings

SIZES_LOOKED_AT = 64
SIDE_PRETRAINED, SIDE_FROM_SCRATCH = 224, 96


@dataclass(frozen=True)
class Start:
    """What training starts from, here and in a simulation.

    Attributes:
        network: with pretrained weights where there are some, frozen as the recipe says.
        recipe, reason: how to train it, and why so.
        pretrained: whether there are such weights.
        said: what a person should know about that.
    """

    network: Network
    recipe: Recipe
    reason: str
    pretrained: bool
    said: list[str]


def start_of(
    settings: Settings, longest: int, classes: int, multiple: bool, labelled: int, device: torch.device
) -> Start:
    """A new network and its recipe.

    Args:
        longest: the images' longest side, in pixels.
        labelled: how many labelled images there are.
    """
    found = resolve(settings.weights, settings.pixels, settings.backbone, longest, settings.model_dir / "pretrained")
    has_weights = found.state is not None
    architecture = Architecture(
        backbone=settings.backbone,
        classes=classes,
        multiple=multiple,
        side=settings.image_size or choose_side(longest, has_weights),
        small_stem=longest <= SMALL_SIDE and not has_weights,
        pixel_mean=found.mean,
        pixel_std=found.std,
        options=settings.backbone_options,
    )
    torch.manual_seed(settings.seed)
    network = Network(architecture)
    said = [found.warning, load_into(network.backbone, found.state) if found.state is not None else None]
    linear = network.head_is_linear
    recipe, reason = choose(settings.preset, has_weights, labelled, device, architecture.side, linear_head=linear)
    freeze(network, recipe.trained)
    return Start(network, recipe, reason, has_weights, [sentence for sentence in said if sentence])


def typical_side(order: Order, images: Images) -> int:
    """Median longest side, in pixels, of some of the labelled images and of the pool.

    Raises:
        NotLearnable: none of those looked at can be read.
    """
    tasks = [(example.task_id, example.uri) for example in order.examples]
    tasks += [(entry.task, entry.uri) for entry in order.pool[:SIZES_LOOKED_AT]]
    sides = []
    for task, uri in tasks:
        try:
            sides.append(max(images.size(uri, task_id=task)))
        except ImageError:
            continue
        if len(sides) == SIZES_LOOKED_AT:
            break
    if not sides:
        raise NotLearnable("None of the images looked at can be read; the status names the first reasons.")
    return int(np.median(sides))


def choose_side(longest: int, pretrained: bool) -> int:
    """The side that images are resized to: their own for small ones (a multiple of 16), else what the weights were
    trained on, else what two cores can train from scratch."""
    if pretrained:
        return SIDE_PRETRAINED
    return min(SIDE_FROM_SCRATCH, 16 * math.ceil(longest / 16)) if longest <= SMALL_SIDE else SIDE_FROM_SCRATCH


def device_of(settings: Settings) -> torch.device:
    """What a round trains on.

    Raises:
        SettingsError: this machine lacks what is set.
    """
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(settings.device)
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError("LPLGRAD_DEVICE", settings.device, "auto, or a device that this machine has") from error
    return device
