"""Tiles cut and joined, against the products of matrices that they are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm.winograd_tiles import cut, join

matrices = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 9))
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrix_of(rows: int, columns: int, seed: int) -> Tensor:
    """With zeros and ones, but nowhere a row of zeros."""
    found = numbers(rows, columns, seed=seed)
    found[found < -0.5] = 0.0
    found[found > 1.0] = 1.0
    found[:, 0] = 2.0
    return found


@settings(max_examples=30)  # each matrix is compiled
@given(matrices, sizes, st.tuples(st.integers(0, 2), st.integers(0, 2)), st.integers(1, 4), st.integers(1, 19), st.data())
def test_a_cut_tile_is_the_matrix_on_both_sides_of_its_places(
    shape: tuple[int, int, int], size: tuple[int, int], corner: tuple[int, int], side: int, channels: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    matrix, x = matrix_of(*shape), numbers(2, *size, channels)
    down, right = (-(-one // side) for one in size)
    first = data.draw(st.integers(0, down - 1))
    rows = range(first, data.draw(st.integers(first + 1, down)))
    out = torch.empty(len(matrix) ** 2, 2, len(rows) * right, channels)
    cut(matrix, x, corner, side, (rows, right), out)
    reach, (top, left) = matrix.shape[1], corner
    framed = F.pad(x, (0, 0, left, side * right + reach, top, side * down + reach))
    places = framed.unfold(1, reach, side).unfold(2, reach, side)[:, rows.start : rows.stop, :right]
    wanted = torch.einsum("kr,nijcrs,ls->klnijc", matrix.double(), places.double(), matrix.double())
    torch.testing.assert_close(out.double(), wanted.reshape(out.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("biased", [True, False])
@settings(max_examples=30)
@given(matrices, sizes, st.integers(1, 19))
def test_a_joined_tile_is_the_matrix_on_both_sides_of_its_products(
    biased: bool, shape: tuple[int, int, int], size: tuple[int, int], channels: int
) -> None:
    matrix = matrix_of(*shape)
    side, reach = matrix.shape
    down, right = (-(-one // side) for one in size)
    products, bias = numbers(reach**2, 2, down * right, channels), numbers(channels)
    y = torch.full((2, *size, channels), torch.nan)
    for row in range(down):  # each writes its own rows and no others
        part = products[:, :, row * right : (row + 1) * right].contiguous()
        join(matrix, part, bias if biased else None, y, (range(row, row + 1), right))
    tiles = products.view(reach, reach, 2, down, right, channels).double()
    wanted = torch.einsum("rk,klnijc,sl->nirjsc", matrix.double(), tiles, matrix.double())
    wanted = wanted.reshape(2, down * side, right * side, channels)[:, : size[0], : size[1]]
    torch.testing.assert_close(y.double(), wanted + bias.double() if biased else wanted, rtol=1e-4, atol=1e-4)
