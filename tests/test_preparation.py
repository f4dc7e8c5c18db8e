"""What a round begins with."""

from __future__ import annotations

import pytest

from lplgrad_backend.preparation import choose_side


@pytest.mark.parametrize(
    ("longest", "pretrained", "side"),
    [(8, False, 16), (16, False, 16), (17, False, 32), (64, False, 64), (65, False, 96), (4000, False, 96),
     (64, True, 224), (4000, True, 224)],
)  # fmt: skip
def test_the_side_of_images(longest: int, pretrained: bool, side: int) -> None:
    assert choose_side(longest, pretrained) == side
