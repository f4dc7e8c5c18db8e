"""Decoded images on disk, by content, and what frozen networks said of them: what was read once is not asked for again.

    addresses/ab/<sha256 of the image's key>       which bytes are there, and the image's size
    pixels/cd/<sha256 of the bytes>-<side>         the image as it is used: checksum, then side x side x 3 bytes
    features/cd/<sha256 of the bytes>-<network>    what a network said of it: checksum, then numbers of four bytes

Several addresses of the same bytes share their pixels. Files appear whole, by renaming from the folder itself, so any
number of threads, processes and machines use it. They are not synced: after a power cut some may be empty, which their
checksum says, and such a file counts as not there.

Whatever was used last goes last when the folder grows too large. Use is noted by the files' times, at most once an hour.
The folder is only walked through when this process has written a good part of what was free at the last walk.

Nothing here raises for the disk's sake: an image that cannot be kept is served all the same, and that is logged once.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lplgrad_backend.files import is_leftover, remove_leftover, write_whole

log = logging.getLogger(__name__)
BLOCK = 4096  # bytes; what a file takes at least
FULL, ROOMY = 0.9, 0.75  # of the limit: from here on files are removed, down to here
SHARES = 4  # so many processes may write at once without the limit being exceeded
HOUR = 3600.0
GRACE = 2 * HOUR  # an address outlives its pixels, or they would lie there unused
CHECKSUM = 4  # bytes
ADDRESS = re.compile(r"([0-9a-f]{64}) ([1-9]\d*) ([1-9]\d*) ([0-9a-f]{8})\n")
ADDRESS_NAME, PIXELS_NAME = re.compile(r"[0-9a-f]{64}"), re.compile(r"([0-9a-f]{64})-([1-9]\d*)")
FEATURES_NAME = re.compile(r"([0-9a-f]{64})-([0-9a-f]{16})")


@dataclass(frozen=True)
class Known:
    """What is known of an image without reading it: sha256 of its bytes, width and height in pixels."""

    digest: str
    width: int
    height: int

    @property
    def text(self) -> str:
        """The content of its file."""
        content = f"{self.digest} {self.width} {self.height}"
        return f"{content} {zlib.crc32(content.encode()):08x}\n"

    @classmethod
    def from_text(cls, text: str) -> Known | None:
        """The inverse; None for what is damaged."""
        match = ADDRESS.fullmatch(text)
        known = cls(match[1], int(match[2]), int(match[3])) if match else None
        return known if known is not None and known.text == text else None


class ImageCache:
    """A folder of decoded images. Safe for several threads and processes.

    Args:
        folder: made when something is kept.
        limit_bytes: that its files may take on disk.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self._limit_bytes = folder, limit_bytes
        self._allowance = 0.0  # bytes to write until the folder is walked through again
        self._lock = threading.Lock()
        self._complained = False

    def known(self, key: str) -> Known | None:
        """What was kept about an image under this key."""
        path = self._address(key)
        try:
            known = Known.from_text(path.read_bytes().decode("ascii", "replace"))
        except OSError:
            return None
        if known is None:
            log.warning("%s in the image cache is damaged; its image is read again", path.name)
        else:
            _touch(path)
        return known

    def pixels(self, known: Known, side: int) -> NDArray[np.uint8] | None:
        """The image [side, side, 3] uint8, to be written to freely."""
        path = self._pixels(known.digest, side)
        try:
            content = np.fromfile(path, dtype=np.uint8)
        except OSError:
            return None
        if not _intact(content, 3 * side * side):
            log.warning("%s in the image cache is damaged; its image is read again", path.name)
            return None
        _touch(path)
        return content[CHECKSUM:].reshape(side, side, 3)

    def features(self, known: Known, network: str, count: int) -> NDArray[np.float32] | None:
        """What a network said of the image, [count] float32.

        Args:
            network: 16 hexadecimal digits that stand for it and for the side of its images.
        """
        path = self._features(known.digest, network)
        try:
            content = np.fromfile(path, dtype=np.uint8)
        except OSError:
            return None
        if not _intact(content, 4 * count):
            log.warning("%s in the image cache is damaged; its image is looked at again", path.name)
            return None
        _touch(path)
        return content[CHECKSUM:].view("<f4").astype(np.float32)

    def keep_known(self, key: str, known: Known) -> None:
        """Note which image a key stands for."""
        self._write(self._address(key), known.text.encode())

    def keep_pixels(self, known: Known, pixels: NDArray[np.uint8]) -> None:
        """Keep an image [S, S, 3] uint8. Its key should be kept first: pixels alone are found by nobody."""
        content = pixels.tobytes()
        self._write(self._pixels(known.digest, len(pixels)), zlib.crc32(content).to_bytes(CHECKSUM, "big") + content)

    def keep_features(self, known: Known, network: str, features: NDArray[np.float32]) -> None:
        """Keep what a network said of an image, [count] float32."""
        content = features.astype("<f4").tobytes()
        path = self._features(known.digest, network)
        self._write(path, zlib.crc32(content).to_bytes(CHECKSUM, "big") + content)

    def check(self) -> list[str]:
        """What is wrong, one sentence each; reads every file once (about 5,000 a second)."""
        found, used, kept = [], set(), []
        for path in _files(self.folder):
            name = f"{path.relative_to(self.folder)} in the image cache"
            if path.name.endswith(".tmp"):
                if is_leftover(path):
                    found.append(f"{name} was left by an interrupted writer.")
            elif (kind := path.parent.parent.name) == "pixels" and (match := PIXELS_NAME.fullmatch(path.name)):
                kept.append((name, match[1]))
                if (content := _content(path)) is not None and not _intact(content, 3 * int(match[2]) ** 2):
                    found.append(f"{name} is damaged; its image will be read again.")
            elif kind == "features" and (match := FEATURES_NAME.fullmatch(path.name)):
                kept.append((name, match[1]))
                if (content := _content(path)) is not None and not _intact(content, len(content) - CHECKSUM):
                    found.append(f"{name} is damaged; its image will be looked at again.")
            elif kind == "addresses" and ADDRESS_NAME.fullmatch(path.name):
                if (content := _content(path)) is not None:
                    known = Known.from_text(content.tobytes().decode("ascii", "replace"))
                    used.add(known.digest if known else "")
                    found += [] if known else [f"{name} is damaged; its image will be read again."]
            else:
                found.append(f"{name} is no file of it; remove it.")
        orphans = [f"{name} belongs to no address; it goes when room is needed." for name, at in kept if at not in used]
        return found + orphans

    def _address(self, key: str) -> Path:
        name = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
        return self.folder / "addresses" / name[:2] / name

    def _pixels(self, digest: str, side: int) -> Path:
        return self.folder / "pixels" / digest[:2] / f"{digest}-{side}"

    def _features(self, digest: str, network: str) -> Path:
        return self.folder / "features" / digest[:2] / f"{digest}-{network}"

    def _write(self, path: Path, content: bytes) -> None:
        try:
            try:
                write_whole(path, content, durable=False, through=self.folder)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, content, durable=False, through=self.folder)
            self._make_room(_taken(len(content)))
        except OSError as error:
            if not self._complained:
                log.warning("images cannot be kept below %s: %s. They are read anew each time", self.folder, error)
            self._complained = True

    def _make_room(self, written: int) -> None:
        """Count what was written; when that is enough, look at the folder and remove what was used longest ago."""
        with self._lock:
            self._allowance -= written
            if self._allowance >= 0:
                return
            kept = list(_kept(self.folder))
            total = sum(size for _, size, _ in kept)
            if total > FULL * self._limit_bytes:
                for _, size, path in sorted(kept):
                    if total <= ROOMY * self._limit_bytes:
                        break
                    path.unlink(missing_ok=True)
                    total -= size
            self._allowance = max(0, self._limit_bytes - total) / SHARES


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, if there is one."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def _kept(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """(when it was used last, bytes on disk, path) of each file; removes what interrupted writers left."""
    for path in _files(folder):
        with suppress(FileNotFoundError):  # another process removes too
            stat = path.stat()
            if path.name.endswith(".tmp"):
                remove_leftover(path)
            else:
                grace = GRACE if path.parent.parent.name == "addresses" else 0.0
                yield stat.st_mtime + grace, _taken(stat.st_size), path


def _taken(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _intact(content: NDArray[np.uint8], size: int) -> bool:
    """Whether a file's bytes are a checksum and `size` bytes that it is of."""
    if size < 0 or len(content) != CHECKSUM + size:
        return False
    return int.from_bytes(content[:CHECKSUM].tobytes(), "big") == zlib.crc32(content[CHECKSUM:].data)


def _content(path: Path) -> NDArray[np.uint8] | None:
    """A file's bytes; None when it is gone meanwhile."""
    try:
        return np.fromfile(path, dtype=np.uint8)
    except FileNotFoundError:
        return None


def _age(path: Path) -> float:
    """Seconds since a file was written; 0 when it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _touch(path: Path) -> None:
    """Note that a file was used."""
    with suppress(OSError):  # a disk that is read-only, or another process that removed it
        if _age(path) > HOUR:
            os.utime(path)
