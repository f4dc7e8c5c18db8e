"""Look-alikes apart in a queue: while an image waits for its label, those that look like it wait too.

The queue is gone through from its front, and each place gets the first image that is not like one of the last `GAP` places.
Whoever labels takes a round's images from a stretch shorter than that; then the queue is made anew, and knows their labels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NEAR = 0.95  # cosine of the features, seen from the pool's mean, from which on images are look-alikes
SAME = 0.99  # from which on they are as good as one picture
GAP = 50
AHEAD = 1000
ROWS = 512

Places = NDArray[np.int64]


def directions(features: Tensor, centre: Tensor) -> Tensor:
    """Features [N, D] seen from `centre` [D], of length 1: float32. One at the centre is 0 and so like nothing."""
    return torch.nn.functional.normalize((features - centre).float(), dim=1)


def spread(
    seen: Tensor, fixed: NDArray[np.bool_] | None = None, *, gap: int = GAP, ahead: int = AHEAD, near: float = NEAR
) -> Tensor:
    """An order of a queue in which look-alikes are at least `gap` places apart, as far as `ahead` images offer others.

    Args:
        seen: directions [N, D], in the queue's order.
        fixed: bool [N], which never wait: they keep their order, and others keep away from them. Not the last `gap` of the
            queue: nothing could wait until one of these was far enough.
        gap: at least 1, where it changes nothing.
        ahead: how many places an image may move forward.

    Returns:
        int64 [N]: the place in the old queue of each of the new one.
    """
    count = len(seen)
    stays = np.zeros(count, dtype=bool) if fixed is None else fixed & (np.arange(count) < count - gap)
    alike, same = _look_alikes(seen, ahead + gap, near)
    left, free, free_of_same = np.ones(count, dtype=bool), np.zeros(count, np.int64), np.zeros(count, np.int64)
    order = np.empty(count, dtype=np.int64)
    first = 0
    for place in range(count):
        for coming in range(place + 2 * gap - 1 if place else 0, min(place + 2 * gap, count)):
            if stays[coming]:  # it comes a little earlier where others before it wait, hence twice
                free[alike[coming]] = np.maximum(free[alike[coming]], coming + gap)
                free_of_same[same[coming]] = np.maximum(free_of_same[same[coming]], coming + gap)
        while not left[first]:
            first += 1
        window = slice(first, first + ahead)
        may = left[window] & (stays[window] | (free[window] <= place))
        taken = first + int(
            may.argmax() if may.any() else _next_turn(left[window], free_of_same[window] - place, free[window])
        )
        order[place], left[taken] = taken, False
        free[alike[taken]] = np.maximum(free[alike[taken]], place + gap)
        free_of_same[same[taken]] = np.maximum(free_of_same[same[taken]], place + gap)
    return torch.from_numpy(order)


def _next_turn(left: NDArray[np.bool_], until_same: Places, until_alike: Places) -> int:
    """Of all that wait, one whose same picture is far; of those, the one that is free next. A young network sees so many as
    look-alikes that they cannot all be apart; those that are one picture can."""
    waits = np.lexsort((until_alike, np.maximum(until_same, 0), ~left))
    return int(waits[0])


def _look_alikes(seen: Tensor, reach: int, near: float) -> tuple[list[Places], list[Places]]:
    """For each place the others at most `reach` away whose image looks like its own; and of these, the same pictures."""
    alike: list[Places] = []
    same: list[Places] = []
    for start in range(0, len(seen), ROWS):
        low, end = max(0, start - reach), start + ROWS
        block = (seen[start:end] @ seen[low : end + reach].T).cpu().numpy()
        for at, row in enumerate(block, start):
            others = np.flatnonzero(row > near)
            others = others[(others != at - low) & (np.abs(others + low - at) <= reach)]
            alike.append(low + others)
            same.append(low + others[row[others] > SAME])
    return alike, same
