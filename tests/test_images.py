"""From addresses to pixels through all of it: Label Studio, the cache, threads and processes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from fake_label_studio import FakeLabelStudio
from PIL import Image

from lplgrad_backend.errors import ImageError, ImageUnavailable, ImageUnreadable
from lplgrad_backend.images import ImageLimits, Images, Lookups
from lplgrad_backend.labelstudio import LabelStudio


def png(colour: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (12, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def fake() -> FakeLabelStudio:
    fake = FakeLabelStudio()
    for number in range(40):
        fake.uploads[f"/data/upload/1/{number}.png"] = png((number, 0, 255 - number))
    return fake


@pytest.fixture
def images(fake: FakeLabelStudio, tmp_path: Path) -> Images:
    client = LabelStudio(fake.url, fake.legacy_token(), session=fake.session())
    return Images(tmp_path / "images", client, ImageLimits())


def test_images_come_in_order_and_a_bad_one_costs_itself_alone(images: Images, fake: FakeLabelStudio) -> None:
    fake.uploads["/data/upload/1/7.png"] = b"<html>"
    items = [(number, f"/data/upload/1/{number}.png") for number in range(41)]
    loaded = list(images.load_many(items, 16))
    for number, one in enumerate(loaded):
        if number in (7, 40):
            assert isinstance(one, ImageError)
        else:
            assert not isinstance(one, ImageError)
            np.testing.assert_array_equal(one, np.full((16, 16, 3), (number, 0, 255 - number), np.uint8))
    assert isinstance(loaded[40], ImageUnavailable)


def test_a_second_round_downloads_nothing(images: Images, fake: FakeLabelStudio, tmp_path: Path) -> None:
    items = [(number, f"/data/upload/1/{number}.png") for number in range(40)]
    first = list(images.load_many(items, 16))
    asked = len(fake.asked)
    client = LabelStudio(fake.url, fake.legacy_token(), session=fake.session())
    again = Images(tmp_path / "images", client, ImageLimits())
    np.testing.assert_array_equal(np.stack(first), np.stack(list(again.load_many(items, 16))))
    assert again.size(items[0][1]) == (12, 8)
    assert len(fake.asked) == asked
    assert (images.lookups, again.lookups) == (Lookups(0, 40), Lookups(40, 0))
    assert again.check() == []


def test_a_page_in_place_of_an_image_is_said(images: Images, fake: FakeLabelStudio) -> None:
    fake.uploads["/data/upload/1/7.png"] = b"<!DOCTYPE html><html><body>Please log in</body></html>"
    with pytest.raises(ImageUnreadable, match=r"^Image /data/upload/1/7\.png: "):
        images.load("/data/upload/1/7.png", 16)
