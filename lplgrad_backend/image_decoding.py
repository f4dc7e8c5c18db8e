"""From bytes to pixels. Only here does Pillow read, and only here are its exceptions translated.

Bytes come from strangers: six formats are tried and no other, the size in the header is looked at before anything is
decoded, and what is an archive, a document or a page besides an image is refused. Memory is bounded by the pixels: the
worst that was found (WebP) takes 20 bytes a pixel, so an image takes 1.8 GB at most, and such large images are decoded one
at a time. Time is bounded by the pixels, the passes over them, and a deadline that holds whenever Pillow asks for bytes.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Resampling, Transpose

from lplgrad_backend.errors import ImageError, ImageUnreadable

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MOST_PIXELS = 89_000_000  # Pillow warns from 89.5 million on, so its warning never speaks of an image that we take
BYTES_PER_PIXEL = 22  # that decoding one image may take at its peak; tests/test_image_bounds.py measures it
LARGE = 16_000_000  # pixels; such images are decoded one at a time, which bounds the memory
MOST_SCANS = 50  # of a progressive JPEG, each of which costs a pass over all pixels; cameras and tools write about 10
GAP = 2.0  # JPEG and large images are reduced cheaply to this many times the side, then properly
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
HEAD, TAIL = 1024, 22 + 2**16  # where readers look for a PDF's header, and for the end of a ZIP archive
PAGES = (b"<script", b"<html", b"<?php")

TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}  # EXIF orientation (EXIF 2.32, tag 0x0112) -> what makes it upright


class Decoder:
    """Decodes images up to a number of pixels. Safe for several threads.

    Args:
        most_pixels: width x height of the largest image, at most `MOST_PIXELS`.
        seconds: that decoding one image may take.

    Both methods raise ImageUnreadable, whatever the bytes are; `uri` names the image in the message.
    """

    def __init__(self, most_pixels: int = MOST_PIXELS, seconds: float = 10.0) -> None:
        self._most_pixels, self._seconds = most_pixels, seconds
        self._large = threading.Lock()

    def size(self, content: bytes, uri: str) -> tuple[int, int]:
        """(width, height) in pixels of the upright image; reads the header alone."""
        with self._opened(content, uri) as (image, _):
            width, height = image.size
            return (height, width) if _orientation(image) >= 5 else (width, height)

    def decode(self, content: bytes, side: int, uri: str) -> NDArray[np.uint8]:
        """The image [side, side, 3] uint8, RGB: upright, alpha over white, the first frame of several.

        The whole image is squeezed into the square, since what is at its border may decide its class. 16-bit values
        keep their scale (65,535 becomes 255); 32-bit and float images, which have none, are stretched from their
        least to their greatest value.
        """
        with self._opened(content, uri) as (image, stream):
            whole = image.width * image.height
            image.draft(None, (round(GAP * side), round(GAP * side)))
            held = whole if "progressive" in image.info else image.width * image.height  # pixels in memory
            with self._large if held > LARGE else nullcontext():
                stream.until = time.monotonic() + self._seconds
                image.load()
                small = _resized(image, side, uri)
            turn = TURNS.get(_orientation(image))
            return np.array(small.transpose(turn) if turn is not None else small, dtype=np.uint8)

    @contextmanager
    def _opened(self, content: bytes, uri: str) -> Iterator[tuple[Image.Image, _Stream]]:
        """The image, not yet decoded, and where it is read from; whatever goes wrong meanwhile is the image's fault."""
        other = _other_nature(content)
        if other:
            raise ImageUnreadable(uri, f"its bytes are {other}.")
        stream = _Stream(content, time.monotonic() + self._seconds)
        try:
            with Image.open(stream, formats=FORMATS) as image:
                if image.width * image.height > self._most_pixels:
                    raise ImageUnreadable(uri, f"{image.width} x {image.height} pixels are more than are decoded.")
                yield image, stream
        except ImageError:
            raise
        except Exception as error:
            raise ImageUnreadable(uri, _reason(error)) from error


class _Stream(io.BytesIO):
    """Bytes that come to an end in time: Pillow asks for them piece by piece, and nothing else can interrupt it."""

    def __init__(self, content: bytes, until: float) -> None:
        super().__init__(content)
        self.until = until

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self.until:
            raise TimeoutError
        return super().read(size)


def _resized(image: Image.Image, side: int, uri: str) -> Image.Image:
    """A loaded image of any mode as RGB of side x side; transparency weighs in before colours are mixed."""
    size = (side, side)
    if image.mode in DEEP:
        return _flattened(image.convert("F").resize(size, Resampling.BILINEAR, reducing_gap=GAP), image.mode, uri)
    if image.has_transparency_data:
        small = image.convert("RGBA").resize(size, Resampling.BILINEAR, reducing_gap=GAP)
        return Image.alpha_composite(Image.new("RGBA", size, "white"), small).convert("RGB")
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return image.resize(size, Resampling.BILINEAR, reducing_gap=GAP).convert("RGB")


def _flattened(image: Image.Image, mode: str, uri: str) -> Image.Image:
    """Values of mode F as RGB; `mode` is what the image came in."""
    values = np.asarray(image)  # [S, S] float32
    if not np.isfinite(values).all():
        raise ImageUnreadable(uri, "some of its values are not numbers.")
    low, high = (0.0, 65535.0) if mode.startswith("I;16") else (float(values.min()), float(values.max()))
    grey = (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
    return Image.fromarray(np.round(grey).astype(np.uint8)).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; a TIFF has turned itself when it was opened."""
    if image.format == "TIFF":
        return 1
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if isinstance(found, int) and found in TURNS else 1


def _other_nature(content: bytes) -> str:
    """What the bytes are, or are besides an image, in words; "" for an image and for what is not known here."""
    head, tail = content[:HEAD], content[-TAIL:]
    if not content:
        return "none: the file is empty"
    if head.lstrip().startswith((b"<svg", b"<?xml")):
        return "XML or SVG. Give a picture of pixels, such as PNG"
    if any(sign in part.lower() for part in (head, tail) for sign in (*PAGES, b"<!doctype")):
        return "a web page, or hold one"
    if b"%PDF-" in head:
        return "a PDF document, or hold one"
    end = tail.rfind(b"PK\5\6")
    if end >= 0 and end + 22 + int.from_bytes(tail[end + 20 : end + 22], "little") == len(tail):
        return "a ZIP archive, or hold one"
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > MOST_SCANS:
        return f"a JPEG with more than {MOST_SCANS} scans"
    return ""


def _reason(error: Exception) -> str:
    """Why an image cannot be decoded, for a person."""
    if isinstance(error, UnidentifiedImageError):
        return "its bytes are not a JPEG, PNG, WebP, GIF, BMP or TIFF image."
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "it has more pixels than are decoded."
    if isinstance(error, TimeoutError):
        return "decoding it takes too long."
    if isinstance(error, MemoryError):
        return "decoding it takes more memory than there is."
    return f"its bytes are damaged or cut off ({str(error)[:100] or type(error).__name__})."


def encode_png(pixels: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    """An image [S, S, 3] uint8 as PNG in the proportions of `size` (width, height), its longer side S."""
    longest = max(size)
    width, height = (max(1, round(len(pixels) * side / longest)) for side in size)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(stream, "PNG")
    return stream.getvalue()
