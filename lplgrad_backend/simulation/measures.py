"""How right a network is about images that it did not learn: two numbers in [0, 1], a plain and an even one.

One class per image: accuracy, and its mean over classes. Several: mean average precision (for each class the precision
at every image that shows it, when images are sorted by what the network says of that class; mean over classes), and the
mean over classes of how often the answers yes and no are right, each counted by itself, at a probability of one half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lplgrad_backend.errors import NotLearnable

Truth = NDArray[np.bool_]
Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class Measures:
    """What the two numbers are called."""

    plain: str
    even: str


ONE_CLASS = Measures("accuracy", "balanced accuracy")
SEVERAL_CLASSES = Measures("mean average precision", "balanced accuracy over classes")


def measures_of(multiple: bool) -> Measures:
    """Which two are taken where an image has one class, or several."""
    return SEVERAL_CLASSES if multiple else ONE_CLASS


def measured(logits: Numbers, truth: Truth, multiple: bool) -> tuple[float, float]:
    """Both numbers, of logits [N, C] and which classes the images show [N, C].

    Raises:
        NotLearnable: there is no class that some of these images show and others do not.
    """
    if not multiple:
        right = logits.argmax(1) == truth.argmax(1)
        return float(right.mean()), float(np.mean([right[of].mean() for of in truth.T if of.any()]))
    told = [at for at, of in enumerate(truth.T) if of.any() and not of.all()]
    if not told:
        raise NotLearnable(
            f"Of the {len(truth)} held-out images, none tells a class from another: every class is shown by all or none."
        )
    precisions = [average_precision(logits[:, at], truth[:, at]) for at in told]
    answers = [_even(logits[:, at] > 0, truth[:, at]) for at in told]
    return float(np.mean(precisions)), float(np.mean(answers))


def average_precision(scores: Numbers, truth: Truth) -> float:
    """Mean precision [N] -> [0, 1] over the images that show a class, highest score first; images of the same score stand
    in one place. At least one shows it."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    found = truth[order].cumsum()[ends]
    return float((np.diff(found, prepend=0) * found / (ends + 1)).sum() / truth.sum())


def _even(said: Truth, truth: Truth) -> float:
    return float(said[truth].mean() + (~said[~truth]).mean()) / 2
