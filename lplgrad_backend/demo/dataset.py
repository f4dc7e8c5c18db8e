"""Handwritten digits as PNG files: a pool to label and images held out to measure with.

The digits are those of scikit-learn (`sklearn.datasets.load_digits`): 1,797 grey images of 8 x 8 pixels with values
from 0 to 16, a copy of the test set of the UCI collection "Optical Recognition of Handwritten Digits" (E. Alpaydin,
C. Kaynak, 1998).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = tuple(str(digit) for digit in range(10))
LABEL_CONFIG = """<View>
  <Image name="image" value="$image" width="256px"/>
  <Choices name="digit" toName="image" choice="single-radio" showInline="true">
{choices}
  </Choices>
</View>""".format(choices="\n".join(f'    <Choice value="{digit}" hotkey="{digit}"/>' for digit in CLASSES))


@dataclass(frozen=True)
class Digit:
    """One image file and what it shows, one of `CLASSES`."""

    file: Path
    label: str


@dataclass(frozen=True)
class Digits:
    """Two disjoint parts of the digits, each in random order."""

    pool: tuple[Digit, ...]
    held_out: tuple[Digit, ...]

    @property
    def truth(self) -> dict[str, str]:
        """Label of every file name."""
        return {digit.file.name: digit.label for digit in self.pool + self.held_out}


def write_digits(
    folder: Path, *, pool: int = 1000, held_out: int | None = None, side: int = 8, seed: int = 0
) -> Digits:
    """Writes the digits as PNG files whose names tell nothing about what they show.

    Args:
        pool: images to label, at most 1,797.
        held_out: images to measure with; None takes all that the pool leaves.
        side: pixels, a multiple of 8; the images are enlarged without smoothing.
        seed: of the order and so of the division.
    """
    bunch = load_digits()
    order = np.random.default_rng(seed).permutation(len(bunch.images))
    chosen = order if held_out is None else order[: pool + held_out]
    folder.mkdir(parents=True, exist_ok=True)
    digits = [Digit(folder / f"digit-{index:04d}.png", CLASSES[bunch.target[index]]) for index in chosen]
    for digit, index in zip(digits, chosen, strict=True):
        grey = np.round(bunch.images[index] * (255 / 16)).astype(np.uint8)
        Image.fromarray(np.kron(grey, np.ones((side // 8, side // 8), dtype=np.uint8))).save(digit.file)
    return Digits(tuple(digits[:pool]), tuple(digits[pool:]))
