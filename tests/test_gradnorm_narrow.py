"""Weight gradients of narrow convolutions, of any geometry, against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from convolution_problems import Problem, agree, oracle, problem
from hypothesis import given
from hypothesis import strategies as st

from lplgrad_backend.lplgrad.gradnorm.narrow import MOST_INPUTS, WIDEST, is_narrow, weight_gradients
from lplgrad_backend.lplgrad.gradnorm.products import Window

PLAIN = Window((1, 1), (1, 1), (1, 1), 1)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def last(given: Problem) -> Problem:
    x, g, weight, window = given
    layout = torch.channels_last
    return x.contiguous(memory_format=layout), g.contiguous(memory_format=layout), weight, window


@given(
    images=st.integers(1, 3), inputs=st.integers(0, MOST_INPUTS), outputs=st.integers(1, 45),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, WIDEST)), stride=pairs, dilation=pairs,
    padding=st.tuples(st.integers(0, 4), st.integers(0, 8)), size=st.tuples(st.integers(10, 16), st.integers(31, 36)),
)  # fmt: skip
def test_any_geometry_agrees_with_autograd(
    images: int, inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int],
    padding: tuple[int, int], size: tuple[int, int],
) -> None:  # fmt: skip
    """No inputs stand for a depthwise convolution."""
    channels = (inputs, outputs) if inputs else (1, 1)
    window = Window(stride, padding, dilation, 1 if inputs else outputs)
    x, g, weight, window = last(problem(images, channels, size, kernel, window))
    assert is_narrow(x, g, weight, window)
    agree(weight_gradients(x, g, weight, window), oracle(x, g, weight, window))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (5, 1)])
def test_kernels_larger_than_the_image(size: tuple[int, int]) -> None:
    x, g, weight, window = last(problem(2, (1, 1), size, (5, 5), Window((1, 1), (2, 2), (1, 1), 19)))
    agree(weight_gradients(x, g, weight, window), oracle(x, g, weight, window))


class TestWhatIsNarrow:
    @pytest.mark.parametrize(
        ("channels", "groups", "expected"),
        [
            ((1, 1), 20, True), ((MOST_INPUTS, 64), 1, True), ((MOST_INPUTS + 1, 64), 1, False), ((1, 2), 10, False),
            ((2, 2), 10, False),
        ],
    )  # fmt: skip
    def test_depthwise_and_of_few_colours(self, channels: tuple[int, int], groups: int, expected: bool) -> None:
        x, g, weight, window = last(problem(2, channels, (8, 8), (3, 3), Window((1, 1), (1, 1), (1, 1), groups)))
        assert is_narrow(x, g, weight, window) is expected

    def test_only_what_routines_can_read(self) -> None:
        x, g, weight, window = last(problem(2, (3, 8), (8, 8), (3, 3), PLAIN))
        assert is_narrow(x, g, weight, window)
        assert not is_narrow(x.contiguous(), g, weight, window)
        assert not is_narrow(x.double(), g.double(), weight.double(), window)
        assert not is_narrow(x, g, problem(2, (3, 8), (8, 16), (3, WIDEST + 1), PLAIN)[2], window)
