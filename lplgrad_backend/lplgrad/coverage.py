"""Covering a pool: which images, with their look-alikes, still have the most gradient norm uncovered.

    x_i        an image's features, centred on the pool and of length 1       w_i    what an image is worth by itself
    k_ij       exp(s (x_i . x_j - 1)), how well i covers j; s: sharpness      c_j    the largest k_ij over all i taken so far
    G_i        sum over clients j of w_j max(0, k_ij - c_j), and a trifle of w_i

Taking the largest G_i again and again maximises a monotone submodular function: no order of as many images covers more
than e / (e - 1) times as much (Nemhauser, Wolsey and Fisher, 1978), and G never rises along the order. Since a G_i only
falls, one measured earlier bounds today's, and few have to be measured anew (Minoux, 1978). The narrower the kernel, the
more an image covers itself alone, until the order is that of w.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lplgrad_backend.lplgrad.diversity import Chosen
from lplgrad_backend.lplgrad.spreading import directions

CLIENTS = 600
HEAD = 1000
MEASURED_ANEW = 16
TRIFLE = 1e-3  # of its own worth that an image keeps when all its look-alikes are covered: then the order is that of w


def cover(features: Tensor, weights: Tensor, labelled: Tensor, sharpness: float, budget: int) -> Chosen:
    """Take the image that newly covers most, again and again; behind the first 1,000 go the others as they stand then.

    Args:
        features: [N, D], N >= 1, in an order without meaning: the first 600 are the clients.
        weights: w >= 0, [N].
        labelled: [L, D], features of images that are taken already.
        sharpness: s > 0.
        budget: 1 to N.

    Returns:
        positions int64 [budget] and gains float64 [budget].
    """
    order = _Cover.of(features, weights, labelled, sharpness)
    taken, gains = [], []
    for _ in range(min(budget, HEAD)):
        at = order.best()
        taken.append(at)
        gains.append(float(order.bounds[at]))
        order.take(at)
    rest = order.remaining()[: budget - len(taken)]
    positions = torch.cat([torch.tensor(taken), rest])
    worth = torch.cat([torch.tensor(gains, dtype=torch.float64), order.bounds[rest]])
    return positions, worth.cummin(0).values  # measured in batches of other sizes, equal gains may differ in rounding


def alike(points: Tensor, others: Tensor, centre: Tensor) -> Tensor:
    """Cosines between the rows of [N, D] and [M, D], seen from `centre` [D]: float32 [N, M]. A row at the centre is like
    nothing."""
    return directions(points, centre) @ directions(others, centre).T


@dataclass
class _Cover:
    """What is covered so far. `bounds` [N] float64 are at least the gains; those measured since the last take are them."""

    kernel: Tensor  # [N, M] float32
    covered: Tensor  # [M] float32
    weights: Tensor  # [M] float32
    own: Tensor  # [N] float64
    bounds: Tensor  # [N] float64
    fresh: Tensor  # [N] bool
    taken: Tensor  # [N] bool

    @classmethod
    def of(cls, features: Tensor, weights: Tensor, labelled: Tensor, sharpness: float) -> _Cover:
        centre, clients = features.mean(0), features[:CLIENTS]
        kernel = torch.exp(sharpness * (alike(features, clients, centre) - 1)).cpu()
        covered = torch.zeros(len(clients))
        if len(labelled):
            covered = torch.exp(sharpness * (alike(labelled, clients, centre).amax(0) - 1)).cpu()
        unit = weights.detach().double().cpu() / weights.max().clamp(min=1e-300).cpu().double()
        start = cls(
            kernel, covered, unit[:CLIENTS].float(), TRIFLE * unit, torch.zeros_like(unit),
            torch.ones(len(unit), dtype=torch.bool), torch.zeros(len(unit), dtype=torch.bool),
        )  # fmt: skip
        start.measure(torch.arange(len(unit)))
        return start

    def measure(self, positions: Tensor) -> None:
        """Set the bounds at these positions to the gains."""
        uncovered = (self.kernel[positions] - self.covered).clamp_(min=0)
        self.bounds[positions] = (uncovered @ self.weights).double() + self.own[positions]
        self.fresh[positions] = True

    def best(self) -> int:
        """The image with the largest gain; of equal ones the first."""
        while not self.fresh[at := int(self.bounds.argmax())]:
            largest = self.bounds.topk(min(MEASURED_ANEW, len(self.bounds))).indices
            self.measure(torch.cat([torch.tensor([at]), largest[~self.taken[largest]]]))
        return at

    def take(self, at: int) -> None:
        self.covered = torch.maximum(self.covered, self.kernel[at])
        self.bounds[at], self.taken[at] = -1.0, True
        self.fresh.zero_()

    def remaining(self) -> Tensor:
        """All that are not taken, largest gain first."""
        left = (~self.taken).nonzero().flatten()
        self.measure(left)
        return left[self.bounds[left].argsort(descending=True, stable=True)]
