"""From addresses in tasks to pixels: where an image is (image_source.py), its bytes decoded (image_decoding.py), and
kept decoded on disk (image_cache.py), so that a second round downloads nothing.

An address stands for the bytes that were there first, as long as they are kept.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lplgrad_backend.errors import ImageError
from lplgrad_backend.image_cache import ImageCache, Known
from lplgrad_backend.image_decoding import MOST_PIXELS, Decoder
from lplgrad_backend.image_source import ImageSource, Place
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.public_web import PublicWeb

Pixels = NDArray[np.uint8]  # [S, S, 3], RGB


@dataclass(frozen=True)
class ImageLimits:
    """What one image, and all of them, may take.

    Attributes:
        allow_private: read http(s) addresses of the local network, too.
        cache_bytes: disk for decoded images.
        image_bytes: of one image as it is downloaded.
        image_pixels: width x height of one image.
        seconds: for downloading one image from another host than Label Studio's.
        threads: images downloaded and decoded at once.
        ahead: images that are loaded before they are taken.
        remembered_bytes: memory for images that were measured and not loaded yet.
    """

    allow_private: bool = False
    cache_bytes: int = 10 * 2**30
    image_bytes: int = 50 * 2**20
    image_pixels: int = MOST_PIXELS
    seconds: float = 30.0
    threads: int = 8
    ahead: int = 32
    remembered_bytes: int = 64 * 2**20


@dataclass(frozen=True)
class Lookups:
    """Images loaded that the cache had, and that it had not."""

    hits: int = 0
    misses: int = 0


class Images:
    """Loads images. Safe for several threads; several processes may use one folder.

    Args:
        folder: of the cache; made when something is kept.
        label_studio: its client; None reads only http(s) addresses.
        limits: what images may take.
    """

    def __init__(self, folder: Path, label_studio: LabelStudio | None, limits: ImageLimits) -> None:
        self._limits = limits
        web = PublicWeb(allow_private=limits.allow_private, seconds=limits.seconds)
        self._source = ImageSource(label_studio, web, limits.image_bytes)
        self._decoder = Decoder(limits.image_pixels)
        self._cache = ImageCache(folder, limits.cache_bytes)
        self._measured = _Recent(limits.remembered_bytes)
        self._lookups, self._counting = Lookups(), threading.Lock()

    @property
    def lookups(self) -> Lookups:
        """How often the cache had what was loaded, so far."""
        return self._lookups

    def size(self, uri: str, task_id: int | None = None) -> tuple[int, int]:
        """(width, height) in pixels of the upright image.

        Raises:
            ImageError: it cannot be used.
        """
        place = self._source.place(uri, task_id)
        known = self._cache.known(place.key)
        if known is None:
            content, known = self._read(place, uri)
            self._measured.put(place.key, content)
        return known.width, known.height

    def load(self, uri: str, side: int, task_id: int | None = None) -> Pixels:
        """The image [side, side, 3] uint8, see `Decoder.decode`.

        Raises:
            ImageError: it cannot be used.
        """
        place = self._source.place(uri, task_id)
        kept = self._kept(place, side)
        return self._fresh(place, uri, side) if kept is None else kept

    def load_many(self, items: Iterable[tuple[int, str]], side: int) -> Iterator[Pixels | ImageError]:
        """The images of (task id, address) pairs in order; one that cannot be used gives its error.

        What is in the cache is taken from there at once; the rest is loaded by threads, a bounded number ahead.
        """
        coming: deque[Pixels | ImageError | Future[Pixels]] = deque()
        pool = ThreadPoolExecutor(self._limits.threads, thread_name_prefix="images")
        try:
            for task, uri in items:
                coming.append(self._begin(pool, task, uri, side))
                if len(coming) > self._limits.ahead:
                    yield _arrived(coming.popleft())
            while coming:
                yield _arrived(coming.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def kept(self, uri: str, side: int, task_id: int | None = None) -> tuple[Pixels, tuple[int, int]] | None:
        """The image [side, side, 3] uint8 and the (width, height) it had, if it is in the cache; it is not fetched."""
        known = self._known(uri, task_id)
        pixels = None if known is None else self._cache.pixels(known, side)
        return None if known is None or pixels is None else (pixels, (known.width, known.height))

    def features(self, uri: str, task_id: int, network: str, count: int) -> NDArray[np.float32] | None:
        """What a network said of an image, [count] float32, if that and its bytes' sha256 are in the cache.

        Args:
            network: see `ImageCache.features`.
        """
        known = self._known(uri, task_id)
        return None if known is None else self._cache.features(known, network, count)

    def keep_features(self, uri: str, task_id: int, network: str, features: NDArray[np.float32]) -> None:
        """Keep what a network said of an image that was loaded before."""
        known = self._known(uri, task_id)
        if known is not None:
            self._cache.keep_features(known, network, features)

    def check(self) -> list[str]:
        """What is wrong with the cache, one sentence each; reads every file once."""
        return self._cache.check()

    def _known(self, uri: str, task_id: int | None) -> Known | None:
        try:
            return self._cache.known(self._source.place(uri, task_id).key)
        except ImageError:
            return None

    def _begin(self, pool: ThreadPoolExecutor, task: int, uri: str, side: int) -> Pixels | ImageError | Future[Pixels]:
        try:
            place = self._source.place(uri, task)
        except ImageError as error:
            return error
        kept = self._kept(place, side)
        return pool.submit(self._fresh, place, uri, side) if kept is None else kept

    def _kept(self, place: Place, side: int) -> Pixels | None:
        known = self._cache.known(place.key)
        kept = None if known is None else self._cache.pixels(known, side)
        with self._counting:
            so_far = self._lookups
            self._lookups = Lookups(so_far.hits + (kept is not None), so_far.misses + (kept is None))
        return kept

    def _fresh(self, place: Place, uri: str, side: int) -> Pixels:
        content, known = self._read(place, uri)
        pixels = self._cache.pixels(known, side)  # the same bytes may have come from another address
        if pixels is None:
            pixels = self._decoder.decode(content, side, uri)
            self._cache.keep_pixels(known, pixels)
        return pixels

    def _read(self, place: Place, uri: str) -> tuple[bytes, Known]:
        content = self._measured.take(place.key) or self._source.read(place, uri)
        known = Known(hashlib.sha256(content).hexdigest(), *self._decoder.size(content, uri))
        self._cache.keep_known(place.key, known)
        return content, known


class _Recent:
    """Bytes of images that were measured, until they are loaded or there are too many."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes, self._contents = limit_bytes, OrderedDict[str, bytes]()
        self._lock = threading.Lock()

    def put(self, key: str, content: bytes) -> None:
        with self._lock:
            self._contents[key] = content
            while sum(map(len, self._contents.values())) > self._limit_bytes:
                self._contents.popitem(last=False)

    def take(self, key: str) -> bytes | None:
        with self._lock:
            return self._contents.pop(key, None)


def _arrived(one: Pixels | ImageError | Future[Pixels]) -> Pixels | ImageError:
    if not isinstance(one, Future):
        return one
    try:
        return one.result()
    except ImageError as error:
        return error
