"""Whether a round's network did clearly worse than the published one: a paired test on images that neither trained on.

From HELD_OUT_FROM labels on, one labelled image in ONE_IN is held out of training: chosen by a digest of its address, so
the same image is held out in every round. Below that nothing is held out and nothing held back: a tenth of few labels
would cost more accuracy than the test could protect, for it needs five images lost and none won to say anything.

Compared are images that both rounds held out, with the labels they have now. Images that people labelled since the
published round stay out: they were asked for because its network was unsure of them, so it would look worse on them than
it is. The held-out images were chosen by the queues too and are harder than the pool, but alike for both networks.

The test is McNemar's, exact and one-sided: if both networks were equally good, each image that only one of them names
would be either's with probability one half. At LEVEL = 0.05 at most one round in twenty that is as good as the published
one is held back; the price is the old queue for one more round, since the next round is compared anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

from lplgrad_backend.labeling import Example, Labeling

HELD_OUT_FROM = 200
ONE_IN = 10
FEWEST_OF_A_CLASS = 10
LEVEL = 0.05

Named = Mapping[str, Sequence[str]]  # held-out image's key -> classes that a network names


@dataclass(frozen=True)
class Comparison:
    """Two networks on the same images.

    Attributes:
        images: how many were compared.
        before, after: how many the published and the new network name right.
        lost, won: right only before, right only after.
    """

    images: int
    before: int
    after: int
    lost: int
    won: int

    @property
    def probability(self) -> float:
        """That two equally good networks differ this much or more in favour of the published one."""
        return exact_mcnemar(self.lost, self.won)

    @property
    def clearly_worse(self) -> bool:
        """Whether that is too unlikely to be chance."""
        return self.probability < LEVEL

    def sentence(self, published: str) -> str:
        """What was found, for a person."""
        return (
            f"of {self.images} labelled images that neither trained on it names {self.after} right, {published} "
            f"{self.before} (p = {self.probability:.2g}). More labels make the next round; LPLGRAD_ALWAYS_PUBLISH=true "
            "publishes every round."
        )


def exact_mcnemar(lost: int, won: int) -> float:
    """P(X >= lost) for X of the binomial distribution with lost + won trials of one half."""
    trials = lost + won
    return float(sum(comb(trials, at) for at in range(lost, trials + 1)) / 2**trials)


def split(
    labeling: Labeling, examples: Sequence[Example], labels: Mapping[str, int]
) -> tuple[list[Example], list[Example]]:
    """Examples to train on, and those held out. A class with few labels gives none away.

    Args:
        labels: labelled images per class.
    """
    if len(examples) < HELD_OUT_FROM:
        return list(examples), []
    scarce = {name for name in labeling.classes if labels.get(name, 0) < FEWEST_OF_A_CLASS}
    held_out = [one for one in examples if _is_drawn(one.uri) and not right_classes(labeling, one) & scarce]
    chosen = {one.task_id for one in held_out}
    return [one for one in examples if one.task_id not in chosen], held_out


def image_key(uri: str) -> str:
    """A short name of an image address, the same in every round."""
    return hashlib.sha256(uri.encode(errors="surrogatepass")).hexdigest()[:16]


def _is_drawn(uri: str) -> bool:
    return int(image_key(uri), 16) % ONE_IN == 0


def right_classes(labeling: Labeling, example: Example) -> set[str]:
    """What people chose: the classes that at least half of them chose, or for one class per image the most chosen."""
    least = 0.5 if labeling.multiple else max(example.target)
    return {name for name, share in zip(labeling.classes, example.target, strict=True) if share >= least > 0}


def is_right(labeling: Labeling, example: Example, named: Sequence[str]) -> bool:
    """Whether a network names an image as people do; where they disagree evenly, as any of them does."""
    right = right_classes(labeling, example)
    return set(named) == right if labeling.multiple else bool(set(named) & right)


def share_right(labeling: Labeling, held_out: Sequence[Example], named: Named) -> float | None:
    """Accuracy on the held-out images that the network looked at; None without any."""
    looked = [one for one in held_out if image_key(one.uri) in named]
    right = sum(is_right(labeling, one, named[image_key(one.uri)]) for one in looked)
    return right / len(looked) if looked else None


def compare(labeling: Labeling, held_out: Sequence[Example], before: Named, after: Named) -> Comparison:
    """The published network (`before`) and the new one on the held-out images of both."""
    pairs = [
        tuple(is_right(labeling, one, named[image_key(one.uri)]) for named in (before, after))
        for one in held_out
        if image_key(one.uri) in before and image_key(one.uri) in after
    ]
    return Comparison(
        images=len(pairs),
        before=sum(old for old, _ in pairs),
        after=sum(new for _, new in pairs),
        lost=sum(old and not new for old, new in pairs),
        won=sum(new and not old for old, new in pairs),
    )
