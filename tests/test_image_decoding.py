"""Bytes to pixels: every format and mode, and nothing but ImageUnreadable from bytes that are no image."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from lplgrad_backend.errors import ImageUnreadable
from lplgrad_backend.image_decoding import MOST_SCANS, Decoder

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
LOSSLESS = ("PNG", "WEBP", "TIFF")
ORIENTATION = 0x0112
DECODER = Decoder(1_000_000)

# EXIF orientation -> what makes the stored rows and columns upright (EXIF 2.32, figure of tag 0x0112).
UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **({"lossless": True} if form == "WEBP" else {}), **options)
    return file.getvalue()


def colours(height: int, width: int) -> NDArray[np.uint8]:
    """A picture [H, W, 3] in which every pixel differs from its neighbours and mirrors."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 20, columns * 20, (rows * width + columns) % 256], -1).astype(np.uint8)


def pixels(content: bytes, side: int = 8) -> NDArray[np.uint8]:
    found = DECODER.decode(content, side, "a")
    assert found.shape == (side, side, 3)
    assert found.dtype == np.uint8
    return found


def colour(content: bytes) -> list[int]:
    """The one colour of an image that has only one."""
    found = pixels(content, 4)
    assert (found == found[0, 0]).all()
    return [int(value) for value in found[0, 0]]


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, with hardly any data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


class TestFormats:
    @pytest.mark.parametrize("form", FORMATS)
    def test_each_gives_its_colour_and_size(self, form: str) -> None:
        content = encoded(Image.new("RGB", (30, 20), (250, 100, 10)), form)
        assert np.abs(np.array(colour(content)) - (250, 100, 10)).max() <= 3
        assert DECODER.size(content, "a") == (30, 20)

    @pytest.mark.parametrize("form", LOSSLESS)
    def test_at_its_own_size_an_image_stays_as_it_is(self, form: str) -> None:
        np.testing.assert_array_equal(pixels(encoded(Image.fromarray(colours(8, 8)), form)), colours(8, 8))

    @pytest.mark.parametrize("form", ["PPM", "ICO", "TGA", "PDF", "AVIF", "JPEG2000", "ICNS", "SGI"])
    def test_other_formats_are_not_tried(self, form: str) -> None:
        with pytest.raises(ImageUnreadable):
            pixels(encoded(Image.new("RGB", (16, 16)), form))

    @pytest.mark.parametrize("form", ["JPEG", *LOSSLESS])
    @pytest.mark.parametrize("orientation", UPRIGHT)
    def test_every_orientation_comes_out_upright(self, form: str, orientation: int) -> None:
        stored, exif = np.kron(colours(2, 3), np.ones((16, 16, 1), np.uint8)), Image.Exif()
        exif[ORIENTATION] = orientation
        content = encoded(Image.fromarray(stored), form, exif=exif)
        upright = UPRIGHT[orientation](stored)
        assert DECODER.size(content, "a") == (upright.shape[1], upright.shape[0])
        expected = np.array(Image.fromarray(upright).resize((8, 8), Image.Resampling.BILINEAR))
        assert np.abs(pixels(content).astype(int) - expected).max() <= (12 if form == "JPEG" else 1)

    def test_an_orientation_that_is_none_counts_as_upright(self) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = 77
        content = encoded(Image.fromarray(colours(8, 8)), "PNG", exif=exif)
        np.testing.assert_array_equal(pixels(content), colours(8, 8))

    @pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_of_an_animation_the_first_frame_is_taken(self, form: str) -> None:
        frames = [Image.new("RGB", (8, 8), name) for name in ("red", "lime", "blue")]
        content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        assert colour(content) == [255, 0, 0]

    def test_a_photo_of_several_pictures_is_a_photo(self) -> None:
        frames = [Image.new("RGB", (32, 32), name) for name in ("red", "blue")]
        assert colour(encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]))[0] > 250


class TestModes:
    def test_grey(self) -> None:
        assert colour(encoded(Image.new("L", (8, 8), 77), "PNG")) == [77, 77, 77]
        assert colour(encoded(Image.new("1", (8, 8), 1), "PNG")) == [255, 255, 255]

    def test_black_and_white_is_mixed_to_grey(self) -> None:
        board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("1")
        assert 120 < pixels(encoded(board, "PNG"), 8).mean() < 135

    @pytest.mark.parametrize("form", ["JPEG", "TIFF"])
    def test_cmyk(self, form: str) -> None:
        red, green, blue = colour(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), form))
        assert red > 250 and green < 5 and blue < 5

    @pytest.mark.parametrize(("value", "expected"), [(0, 0), (0x8000, 128), (0xFFFF, 255)])
    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_16_bits_keep_their_scale(self, form: str, value: int, expected: int) -> None:
        grey = Image.fromarray(np.full((8, 8), value, np.uint16))
        assert colour(encoded(grey, form)) == [expected] * 3

    @pytest.mark.parametrize("kind", [np.int32, np.float32])
    def test_values_without_a_scale_are_stretched(self, kind: type) -> None:
        values = np.repeat(np.linspace(-3000, 7000, 8).astype(kind)[None], 8, 0)
        np.testing.assert_allclose(
            pixels(encoded(Image.fromarray(values), "TIFF"))[0, :, 1], np.linspace(0, 255, 8), atol=1
        )
        assert colour(encoded(Image.fromarray(np.full((8, 8), 5, kind)), "TIFF")) == [0, 0, 0]

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_no_numbers_are_refused(self, value: float) -> None:
        values = np.ones((8, 8), np.float32)
        values[3, 3] = value
        with pytest.raises(ImageUnreadable, match="not numbers"):
            pixels(encoded(Image.fromarray(values), "TIFF"))

    @pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
    def test_alpha_lies_over_white(self, form: str) -> None:
        assert colour(encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), form)) == [255, 255, 255]
        assert colour(encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 255)), form)) == [255, 0, 0]
        red, green, blue = colour(encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), form))
        assert red == 255 and green == blue and 126 <= green <= 128

    def test_what_cannot_be_seen_does_not_bleed_into_its_surroundings(self) -> None:
        hidden = np.zeros((64, 64, 4), np.uint8)
        hidden[:, ::2] = (255, 0, 0, 255)
        hidden[:, 1::2] = (0, 255, 0, 0)
        found = pixels(encoded(Image.fromarray(hidden), "PNG"), 4).astype(int)
        assert (found[..., 0] == 255).all()
        assert (np.abs(found[..., 1] - found[..., 2]) <= 1).all()

    def test_grey_with_alpha(self) -> None:
        assert colour(encoded(Image.new("LA", (8, 8), (0, 128)), "PNG"))[0] in (126, 127, 128)

    @pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "TIFF"])
    def test_palettes(self, form: str) -> None:
        image = Image.new("RGB", (8, 8), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)
        assert colour(encoded(image, form)) == [10, 200, 30]

    @pytest.mark.parametrize("form", ["PNG", "GIF"])
    def test_palettes_with_a_transparent_colour(self, form: str) -> None:
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 255, 0, 0])
        assert colour(encoded(image, form, transparency=1)) == [255, 255, 255]
        assert colour(encoded(image, form, transparency=0)) == [255, 0, 0]

    def test_a_palette_with_degrees_of_transparency(self) -> None:
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 255, 0, 0])
        red, green, blue = colour(encoded(image, "PNG", transparency=b"\xff\x80"))
        assert red == 255 and green == blue and 126 <= green <= 128

    def test_a_transparent_colour_without_a_palette(self) -> None:
        content = encoded(Image.new("RGB", (8, 8), (9, 9, 9)), "PNG", transparency=(9, 9, 9))
        assert colour(content) == [255, 255, 255]


class TestScaling:
    def test_fine_patterns_become_their_mean(self) -> None:
        board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
        found = pixels(encoded(Image.fromarray(board), "PNG"), 16).astype(int)
        assert np.abs(found - 127).max() <= 1

    def test_the_whole_image_is_squeezed_into_the_square(self) -> None:
        wide = np.zeros((16, 64, 3), np.uint8)
        wide[:, :16] = (255, 0, 0)
        wide[:, -16:] = (0, 0, 255)
        found = pixels(encoded(Image.fromarray(wide), "PNG"), 16)
        assert found[:, 0].tolist() == [[255, 0, 0]] * 16
        assert found[:, -1].tolist() == [[0, 0, 255]] * 16

    @pytest.mark.parametrize("side", [16, 100, 224])
    def test_the_quick_way_of_jpeg_gives_what_the_long_way_gives(self, side: int) -> None:
        smooth = Image.fromarray(colours(12, 9)).resize((900, 1200), Image.Resampling.BICUBIC)
        content = encoded(smooth, "JPEG", quality=95)
        slow = Image.open(io.BytesIO(content)).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        assert np.abs(pixels_of_large(content, side).astype(int) - np.array(slow)).mean() < 1.5

    def test_one_pixel_is_enough(self) -> None:
        assert colour(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")) == [1, 2, 3]
        assert colour(encoded(Image.new("RGB", (1, 3000), (1, 2, 3)), "PNG")) == [1, 2, 3]


def pixels_of_large(content: bytes, side: int) -> NDArray[np.uint8]:
    return Decoder(2_000_000).decode(content, side, "a")


class TestRefused:
    @pytest.mark.parametrize(
        ("content", "word"),
        [
            (b"", "empty"),
            (b"hello", "not a JPEG"),
            (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
            (b"<html></html>", "web page"),
            (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
            (b'  <?xml version="1.0"?><svg/>', "SVG"),
            (b"%PDF-1.7 ...", "PDF"),
            (b"PK\x03\x04" + bytes(30) + b"PK\x05\x06" + bytes(18), "ZIP"),
            (b"#!/bin/sh\n", "not a JPEG"),
        ],
    )
    def test_what_is_no_image(self, content: bytes, word: str) -> None:
        for read in (lambda: pixels(content), lambda: DECODER.size(content, "a")):
            with pytest.raises(ImageUnreadable, match=word):
                read()

    @pytest.mark.parametrize(
        "behind",
        [
            b"<script>alert(1)</script>",
            b"<?PHP system('id');",
            b"PK\x05\x06" + bytes(18),
            b"PK\x05\x06" + bytes(16) + b"\2\0!!",
        ],
    )
    @pytest.mark.parametrize("form", FORMATS)
    def test_what_is_an_image_and_something_else(self, form: str, behind: bytes) -> None:
        content = encoded(Image.new("RGB", (16, 16)), form)
        pixels(content)
        with pytest.raises(ImageUnreadable, match=r"web page|ZIP"):
            pixels(content + behind)

    def test_a_script_in_a_comment(self) -> None:
        with pytest.raises(ImageUnreadable, match="web page"):
            pixels(encoded(Image.new("RGB", (16, 16)), "GIF", comment=b"<script src=x>"))

    def test_what_only_lies_behind_an_image_does_no_harm(self) -> None:
        pixels(encoded(Image.new("RGB", (16, 16)), "JPEG") + b"a film of two seconds" * 50)

    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
    def test_what_was_cut_off(self, form: str, part: float) -> None:
        content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), form)
        with pytest.raises(ImageUnreadable, match="a: its bytes are"):
            pixels(content[: int(part * len(content))])

    @pytest.mark.parametrize(
        ("width", "height"), [(1001, 1000), (9500, 9500), (60_000, 60_000), (2**31 - 1, 2**31 - 1)]
    )
    def test_bombs(self, width: int, height: int) -> None:
        for read in (lambda: pixels(png_header(width, height)), lambda: DECODER.size(png_header(width, height), "a")):
            with pytest.raises(ImageUnreadable, match="pixels"):
                read()

    def test_a_jpeg_that_paints_itself_over_and_over(self) -> None:
        content = encoded(Image.fromarray(colours(64, 64)), "JPEG", progressive=True)
        pixels(content)
        last = content[content.rfind(b"\xff\xda") : -2]
        with pytest.raises(ImageUnreadable, match="scans"):
            pixels(content[:-2] + last * MOST_SCANS + content[-2:])

    @pytest.mark.parametrize("form", FORMATS)
    def test_what_takes_too_long(self, form: str) -> None:
        content = encoded(Image.new("RGB", (16, 16)), form)
        with pytest.raises(ImageUnreadable, match="too long"):
            Decoder(seconds=-1).decode(content, 8, "a")

    def test_the_message_names_the_image_and_no_password(self) -> None:
        with pytest.raises(ImageUnreadable) as caught:
            DECODER.decode(b"x", 8, "https://me:secret@h.test/a.png?signature=secret")
        assert str(caught.value).startswith("Image https://h.test/a.png: ")


SAMPLES = [
    encoded(Image.fromarray(colours(24, 24)).convert(mode), form)
    for mode, form in [
        ("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "JPEG"), ("RGB", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"),
        ("P", "GIF"), ("RGB", "BMP"), ("P", "BMP"), ("RGB", "TIFF"), ("F", "TIFF"), ("1", "TIFF"),
    ]
]  # fmt: skip
STARTS = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\x10\0\0\0WEBPVP8 ", b"BM", b"II*\0", b"MM\0*"]


def reads(content: bytes) -> None:
    """Both ways to look at bytes end with an image or with ImageUnreadable."""
    for read in (lambda: pixels(content), lambda: DECODER.size(content, "a")):
        try:
            read()
        except ImageUnreadable as error:
            assert error.reason.endswith("."), error.reason


def mutated(sample: bytes, data: st.DataObject) -> bytes:
    content = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    return bytes(content)


class TestAnyBytes:
    @given(start=st.sampled_from(STARTS), rest=st.binary(max_size=300))
    def test_made_up(self, start: bytes, rest: bytes) -> None:
        reads(start + rest)

    @given(sample=st.sampled_from(SAMPLES), data=st.data())
    def test_mutated(self, sample: bytes, data: st.DataObject) -> None:
        reads(mutated(sample, data))

    @pytest.mark.filterwarnings("ignore")
    @given(sample=st.sampled_from(SAMPLES), data=st.data())
    def test_mutated_where_warnings_are_no_errors(self, sample: bytes, data: st.DataObject) -> None:
        reads(mutated(sample, data))
