"""Routines: what is written is what is done, of all images and by any number of threads."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm import assembly
from lplgrad_backend.lplgrad.gradnorm.assembly import Assembly, Numbers, Routine, readable


@functools.cache
def elementwise() -> Routine:
    """z = x y + 1, or 7 where x y is above 0."""
    written = Assembly("elementwise", arrays=3, sizes=1)
    x, y, z = written.arrays
    [channels] = written.sizes
    with written.loop(written.first, written.last) as n:
        for lanes, c in written.channels(channels):
            at = n * channels + c
            product = written.load(x, at, lanes) * written.load(y, at, lanes)
            written.store(product.where_above(0.0, 7.0, product + 1.0), z, at, lanes)
    return Routine(written)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(images=st.integers(1, 4), channels=st.integers(1, 70))
def test_every_channel_of_every_image_is_done_once(images: int, channels: int) -> None:
    x, y, z = numbers(images, channels), numbers(images, channels, seed=1), torch.empty(images, channels)
    elementwise()(images, (x, y, z), (channels,))
    torch.testing.assert_close(z, torch.where(x * y > 0, 7.0, x * y + 1))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("images", [1, 2, 3, 8])
def test_threads_share_the_images(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "WORTH_THREADS", 0)
    x, y, z = numbers(images, 33), numbers(images, 33, seed=1), torch.full((images, 33), torch.nan)
    elementwise()(images, (x, y, z), (33,))
    torch.testing.assert_close(z, torch.where(x * y > 0, 7.0, x * y + 1))


def test_beside_the_image_zeros_are_read_and_nothing_is_written() -> None:
    written = Assembly("beside", arrays=2, sizes=1)
    x, z = written.arrays
    [size] = written.sizes
    with written.loop(-2, size + 2) as place:
        seen = written.load(x, place, 1, place.is_within(size))
        written.store(seen + 1.0, z, place + 2, 1)
        written.store(seen + 2.0, z, place + 8, 1, place.is_within(size))
    x, z = torch.tensor([5.0, 6.0, 7.0]), torch.zeros(12)
    Routine(written)(1, (x, z), (3,))
    assert z.tolist() == [1.0, 1.0, 6.0, 7.0, 8.0, 1.0, 1.0, 0.0, 7.0, 8.0, 9.0, 0.0]


def test_one_number_for_all_lanes_and_totals_that_grow() -> None:
    written = Assembly("totals", arrays=2, sizes=1)
    x, z = written.arrays
    [channels] = written.sizes
    for lanes, c in written.channels(channels):
        total = written.total(lanes)
        with written.loop(0, 3) as i:
            total.add(written.spread(x, i, lanes))
        written.add(total.value, z, c, lanes)
    z = torch.arange(37.0)
    Routine(written)(1, (torch.tensor([1.0, 2.0, 4.0]), z), (37,))
    assert z.equal(torch.arange(37.0) + 7)


def test_whole_numbers_compute_as_pythons_do() -> None:
    written = Assembly("whole", arrays=1, sizes=2)
    [found] = written.arrays
    a, b = written.sizes
    answers = (a + b, a - b, a * b + 3, a.rounded_down(8), a.least(b), b.least(a))
    one = Numbers(written.code, assembly._constant(1.0, assembly.SINGLE))
    for answer in answers:
        written.add(one, found, answer, 1)
    a_number, b_number = 21, 10
    counts = torch.zeros(300)
    Routine(written)(1, (counts,), (a_number, b_number))
    wanted = torch.zeros(300)
    for place in (31, 11, 213, 16, 10, 10):
        wanted[place] += 1
    assert counts.equal(wanted)


def test_what_routines_can_read() -> None:
    features = numbers(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert readable(features)
    assert not readable(features.contiguous())
    assert not readable(features.double())
    assert not readable(features, features.to("meta"))
    assert not readable(features[:, :, ::2])
