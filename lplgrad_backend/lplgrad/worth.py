"""What an image of a pool is worth by itself, by measures of uncertainty.

    z, p      logits and class probabilities of an image       f      features, what its last layer sees
    H, d      entropy of p; d = dH/dz                          g      gradient norm: sum over tensors t of ||dH/dt||
    n_c       one more than the labelled images of class c     n      the mean of n_c over the classes

Where an image may have any number of classes, its outcomes are the sets of classes, each class decided on its own: H sums
the entropies of C sigmoids, and the likeliest outcome says of each class what is likelier. So one definition serves both.
All are float64 [N].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from lplgrad_backend.errors import NonFiniteScore
from lplgrad_backend.lplgrad.gradnorm.entropy import TEMPERATURES, entropy_gradient
from lplgrad_backend.lplgrad.pool import Pool


def entropy(pool: Pool) -> Tensor:
    """H, in nats."""
    likely, unlikely = logarithms(pool)
    return -(likely.exp() * likely + unlikely.exp() * unlikely).sum(1)


def margin(pool: Pool) -> Tensor:
    """1 - (p_1 - p_2), of the two likeliest outcomes."""
    first, second = _likeliest(pool)
    return -torch.expm1(first) + second.exp()


def least_confidence(pool: Pool) -> Tensor:
    """1 - p_1, of the likeliest outcome."""
    return -torch.expm1(_likeliest(pool)[0])


def predicted_loss(pool: Pool) -> Tensor:
    """What the loss-prediction module expects (Yoo and Kweon, arXiv 1905.03677)."""
    return finite(pool.predicted_losses, "the predicted losses")


def gradient_norm(pool: Pool) -> Tensor:
    """g, exactly (LPLgrad, arXiv 2411.15217, querying phase)."""
    return finite(pool.gradient_norms(torch.arange(len(pool))), "the gradient norms")


def largest_gradient_norm(pool: Pool) -> Tensor:
    """The largest exact g over a ladder of temperatures: at a tie the entropy's gradient vanishes, at a lower temperature
    a near tie is none. Each is the gradient of an entropy with respect to logits / T, so that temperatures compare."""
    ladder = pool.norm_ladder(torch.arange(len(pool)))  # [T, N]
    return finite(ladder.T, "the gradient norms").amax(1)


def tie_repaired_norm(pool: Pool) -> Tensor:
    """The last layer's part of it without the features' length, which favours outliers: the largest T ||d(T)||."""
    logits = finite(pool.logits, "the logits")
    steps = [
        temperature * _lengths(entropy_gradient(logits, pool.multiple, temperature)) for temperature in TEMPERATURES
    ]
    return torch.stack(steps).amax(0)


def undecided_norm(pool: Pool) -> Tensor:
    """sqrt(q (1 - (p_1 - p_2))), q the tie-repaired norm."""
    return (tie_repaired_norm(pool) * margin(pool)).sqrt()


def rarity(pool: Pool) -> Tensor:
    """sum over c of p_c sqrt(n / n_c), by the sum of p_c: above 1 for an image that is likely of a class with few labels,
    and 1 for all while the labels are even."""
    likely = logarithms(pool)[0].exp()
    labels = pool.labelled_counts.double() + 1
    rare = (labels.mean() / labels).sqrt()
    return (likely @ rare) / likely.sum(1).clamp(min=torch.finfo(torch.float64).tiny)


def undecided_and_rare_norm(pool: Pool) -> Tensor:
    """What coverage covers: an undecided image's norm, more of it where its likely classes have few labels."""
    return undecided_norm(pool) * rarity(pool)


def head_gradient_norm(pool: Pool) -> Tensor:
    """The last layer's part of g: ||d|| (||f|| + 1), exact for a linear layer with a bias."""
    return entropy_gradient_norm(pool) * (_lengths(finite(pool.features, "the features")) + 1)


def entropy_gradient_norm(pool: Pool) -> Tensor:
    return _lengths(entropy_gradient(finite(pool.logits, "the logits"), pool.multiple))


def _lengths(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths


def logarithms(pool: Pool) -> tuple[Tensor, Tensor]:
    """log p [N, C], and log(1 - p) [N, C] where that is an outcome of its own, else a column of log 1."""
    logits = finite(pool.logits, "the logits")
    if pool.multiple:
        return F.logsigmoid(logits), F.logsigmoid(-logits)
    return torch.log_softmax(logits, 1), logits.new_zeros(len(logits), 1)


def _likeliest(pool: Pool) -> tuple[Tensor, Tensor]:
    """Logarithms of the probabilities of the two likeliest outcomes, [N] each."""
    likely, unlikely = logarithms(pool)
    if not pool.multiple:
        first, second = likely.topk(2, dim=1).values.unbind(1)
        return first, second
    first = torch.maximum(likely, unlikely).sum(1)
    return first, first - (likely - unlikely).abs().amin(1)  # the second decides the least sure class otherwise


def finite(values: Tensor, where: str) -> Tensor:
    """float64; an image about which something is not finite is an error."""
    exact = values.detach().double()
    bad = ~torch.isfinite(exact).reshape(len(exact), -1).all(1) if len(exact) else exact.new_zeros(0, dtype=torch.bool)
    if bad.any():
        raise NonFiniteScore(bad.nonzero().flatten().tolist(), where)
    return exact


WORTH: Mapping[str, Callable[[Pool], Tensor]] = MappingProxyType(
    {
        "lplgrad": gradient_norm,
        "lplgrad-ladder": largest_gradient_norm,
        "lplgrad-coverage": undecided_and_rare_norm,
        "lplgrad-head": head_gradient_norm,
        "entropy": entropy,
        "margin": margin,
        "least-confidence": least_confidence,
        "predicted-loss": predicted_loss,
    }
)
"""What an image is worth by itself, for the strategies that start from it."""
