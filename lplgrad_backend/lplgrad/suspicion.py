"""Labels that look wrong: images whose loss is far above what the loss-prediction module expects of them.

The module is trained to order losses, not to state them (`objective.ranking_loss`), so its predictions are first brought
to the losses' own scale by a straight line through all labelled images; what remains is compared with its own spread.
"""

from __future__ import annotations

import torch
from torch import Tensor

NORMAL = 1.4826  # median absolute deviation -> standard deviation of a normal distribution
DEVIATIONS = 3.0
FEWEST = 8  # images from which a spread can be told


def excess_losses(losses: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """How far each image's loss is above what is expected of it, and that expectation.

    Args:
        losses: [N] main loss of each labelled image, nats.
        predicted: [N] what the loss-prediction module says of it, on its own scale.

    Returns:
        Excess [N] in robust standard deviations of all excesses (0 where fewer than `FEWEST` images or no spread), and
        the expected loss [N] in nats, never negative.
    """
    losses, predicted = losses.double(), predicted.double()
    expected = _line(losses, predicted).clamp(min=0.0)
    rest = losses - expected
    centre = rest.median() if len(rest) else rest.sum()
    spread = NORMAL * (rest - centre).abs().median() if len(rest) >= FEWEST else torch.zeros(())
    if float(spread) <= 0.0:
        return torch.zeros_like(rest), expected
    return (rest - centre) / spread, expected


def _line(losses: Tensor, predicted: Tensor) -> Tensor:
    """The least-squares line of losses over predictions, at each prediction; their mean where it would fall."""
    if len(losses) == 0:
        return losses
    centred = predicted - predicted.mean()
    power = (centred**2).sum()
    slope = (centred * losses).sum() / power if float(power) > 0 else torch.zeros(())
    return losses.mean() + slope.clamp(min=0.0) * centred


def suspected(excess: Tensor, contradicted: Tensor) -> list[int]:
    """Positions of the images whose label looks wrong, the most suspect first.

    Args:
        excess: [N] from `excess_losses`.
        contradicted: [N] bool, whether the model itself would choose another label.
    """
    order = excess.argsort(descending=True, stable=True).tolist()
    return [at for at in order if bool(contradicted[at]) and float(excess[at]) > DEVIATIONS]
