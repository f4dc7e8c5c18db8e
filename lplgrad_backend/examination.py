"""What networks say to labelled images that they did not learn: which classes they name, how sure they may be of them, and
whose label looks wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lplgrad_backend.comparison import image_key
from lplgrad_backend.history import SUSPECTS_KEPT, Suspect
from lplgrad_backend.labeling import Example, Labeling
from lplgrad_backend.lplgrad.cross_fitting import Unseen, temperature
from lplgrad_backend.lplgrad.network import Looked, Network
from lplgrad_backend.lplgrad.objective import main_loss
from lplgrad_backend.lplgrad.suspicion import excess_losses, suspected
from lplgrad_backend.lplgrad.training import look_at

FEWEST_FOR_CONFIDENCE = 20
CAUTION = 50  # images that say "1" before any was asked


@dataclass(frozen=True)
class Confidence:
    """By what logits are divided before they are shown as probabilities, and what that was fitted on, in words."""

    temperature: float
    origin: str


def opinion(network: Network, images: Tensor | Looked, targets: Tensor) -> Unseen:
    """What a trained network says of labelled images: uint8 [N, 3, S, S], or what its frozen part said of them.

    Args:
        targets: [N, C].
    """
    if len(targets) == 0:
        return Unseen(targets, torch.zeros(0), torch.zeros(0))
    looked = look_at(network, images) if isinstance(images, Tensor) else images
    with torch.no_grad():
        logits = looked.logits if isinstance(images, Tensor) else network.head(looked.features)
        predicted = network.loss_prediction(looked.pooled)
    logits = logits.float().cpu()
    return Unseen(logits, main_loss(logits, targets, network.architecture.multiple), predicted.float().cpu())


def named_classes(examples: Sequence[Example], said: Unseen, labeling: Labeling) -> Mapping[str, list[str]]:
    """Key of each image -> the classes that are named."""
    chosen = _said(said.logits, labeling.multiple).tolist()
    return {
        image_key(one.uri): [name for name, shown in zip(labeling.classes, row, strict=True) if shown]
        for one, row in zip(examples, chosen, strict=True)
    }


def confidence(said: Unseen, targets: Tensor, multiple: bool, where: str) -> Confidence:
    """How sure probabilities may be, by images that were not learned.

    With few images the logarithm of the temperature is drawn towards 0, as if 50 more had said 1: twenty images that were
    all named rightly do not make a network certain.

    Args:
        where: what these images are, such as "held-out images".
    """
    count = len(targets)
    if count < FEWEST_FOR_CONFIDENCE:
        return Confidence(1.0, f"not fitted: {count} {where}, {FEWEST_FOR_CONFIDENCE} are needed")
    found = temperature(said, targets, multiple)
    return Confidence(found ** (count / (count + CAUTION)), f"{count} {where}")


def find_suspects(said: Unseen, targets: Tensor, examples: Sequence[Example], labeling: Labeling) -> list[Suspect]:
    """Labelled images whose label [N, C] looks wrong by what is said of them, the most suspect first."""
    excess, expected = excess_losses(said.losses, said.predicted)
    multiple = labeling.multiple
    shown = _said(said.logits, multiple)
    chosen = targets >= 0.5 if multiple else targets == targets.amax(1, keepdim=True)
    # both may name several classes; only those that share none of one question contradict each other
    contradicted = (shown != chosen).any(1) if multiple else ~(shown & chosen).any(1)
    return [
        Suspect(
            task=examples[at].task_id,
            uri=examples[at].uri,
            label=_names(labeling, chosen[at]),
            predicted=_names(labeling, shown[at]),
            loss=float(said.losses[at]),
            expected=float(expected[at]),
            excess=float(excess[at]),
        )
        for at in suspected(excess, contradicted)[:SUSPECTS_KEPT]
    ]


def _said(logits: Tensor, multiple: bool) -> Tensor:
    return logits > 0 if multiple else logits == logits.amax(1, keepdim=True)


def _names(labeling: Labeling, held: Tensor) -> str:
    return ", ".join(name for name, holds in zip(labeling.classes, held.tolist(), strict=True) if holds)
