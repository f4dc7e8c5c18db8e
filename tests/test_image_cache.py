"""Decoded images on disk: kept by content, found again, damaged ones passed over, the oldest gone when room is needed."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lplgrad_backend.image_cache import BLOCK, HOUR, ImageCache, Known

LARGE = 10**9
SIDE = 8


def known(number: int = 0) -> Known:
    return Known(f"{number:064x}", 30, 20)


def image(number: int = 0, side: int = SIDE) -> NDArray[np.uint8]:
    return np.full((side, side, 3), number, np.uint8)


def files(folder: Path, kind: str) -> list[Path]:
    return sorted(path for path in (folder / kind).rglob("*") if path.is_file())


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    cache = ImageCache(tmp_path / "images", LARGE)
    cache.keep_known("a", known())
    cache.keep_pixels(known(), image(7))
    return cache


def test_what_was_kept_is_found_again_by_another_process(cache: ImageCache) -> None:
    other = ImageCache(cache.folder, LARGE)
    assert other.known("a") == known()
    found = other.pixels(known(), SIDE)
    assert found is not None
    np.testing.assert_array_equal(found, image(7))
    found[:] = 0  # to be written to freely
    np.testing.assert_array_equal(other.pixels(known(), SIDE), image(7))
    assert other.check() == []


NETWORK, FEATURES = "0123456789abcdef", np.linspace(-1, 1, 5, dtype=np.float32)


def test_what_a_network_said_is_kept_beside_the_image(cache: ImageCache) -> None:
    cache.keep_features(known(), NETWORK, FEATURES)
    other = ImageCache(cache.folder, LARGE)
    np.testing.assert_array_equal(other.features(known(), NETWORK, 5), FEATURES)
    assert other.features(known(), NETWORK[::-1], 5) is None
    assert other.features(known(1), NETWORK, 5) is None
    assert other.check() == []


def test_damaged_features_are_passed_over_and_named(cache: ImageCache) -> None:
    cache.keep_features(known(), NETWORK, FEATURES)
    assert cache.features(known(), NETWORK, 6) is None, "of another length"
    [path] = files(cache.folder, "features")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert cache.features(known(), NETWORK, 5) is None
    [found] = cache.check()
    assert "features" in found and "damaged" in found
    path.write_bytes(b"")
    assert len(cache.check()) == 1


def test_features_share_the_room(tmp_path: Path) -> None:
    limit = 40 * BLOCK
    cache = ImageCache(tmp_path / "images", limit)
    for number in range(80):
        cache.keep_features(known(number), NETWORK, FEATURES)
    taken = sum(-(-path.stat().st_size // BLOCK) * BLOCK for path in files(cache.folder, "features"))
    assert 0 < taken <= limit


def test_what_was_not_kept_is_not_there(cache: ImageCache, tmp_path: Path) -> None:
    assert cache.known("b") is None
    assert cache.pixels(known(), SIDE + 1) is None
    assert cache.pixels(known(1), SIDE) is None
    empty = ImageCache(tmp_path / "nothing", LARGE)
    assert (empty.known("a"), empty.check()) == (None, [])


def test_addresses_of_the_same_bytes_share_their_pixels(cache: ImageCache) -> None:
    cache.keep_known("b", known())
    cache.keep_pixels(known(), image(7))
    assert len(files(cache.folder, "addresses")) == 2
    assert len(files(cache.folder, "pixels")) == 1


@pytest.mark.parametrize("damage", [b"", b"rot", bytes(4 + 3 * SIDE * SIDE)])
@pytest.mark.parametrize("kind", ["addresses", "pixels"])
def test_a_damaged_file_counts_as_absent_and_is_named(
    cache: ImageCache, kind: str, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    [path] = files(cache.folder, kind)
    path.write_bytes(damage[1:] + b"1" if kind == "pixels" and len(damage) > 10 else damage)
    assert any(path.name in sentence and "damaged" in sentence for sentence in cache.check())
    assert (cache.known("a") if kind == "addresses" else cache.pixels(known(), SIDE)) is None
    assert path.name in caplog.text
    cache.keep_known("a", known())
    cache.keep_pixels(known(), image(7))
    assert cache.check() == []


def test_what_an_interrupted_writer_left_is_named_and_removed(cache: ImageCache) -> None:
    [path] = files(cache.folder, "pixels")
    left = path.parent / "x.tmp"
    with left.open("xb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        assert cache.check() == []
    assert [("x.tmp" in sentence) for sentence in cache.check()] == [True]
    ImageCache(cache.folder, LARGE).keep_known("b", known())
    assert not left.exists()


def test_a_file_that_is_none_of_its_own_and_pixels_of_no_address_are_named(cache: ImageCache) -> None:
    (cache.folder / "notes.txt").write_text("mine")
    cache.keep_pixels(known(5), image(5))
    found = cache.check()
    assert sum("notes.txt" in sentence for sentence in found) == 1
    assert sum("belongs to no address" in sentence for sentence in found) == 1
    assert len(found) == 2


def test_the_limit_holds_and_the_oldest_go_first(tmp_path: Path) -> None:
    cache, count = ImageCache(tmp_path, 40 * BLOCK), 100
    for number in range(count):
        cache.keep_pixels(known(number), image(number))
        [path] = [path for path in files(tmp_path, "pixels") if path.name.startswith(f"{number:064x}")]
        os.utime(path, (number, number))
        assert len(files(tmp_path, "pixels")) <= 40
    kept = {int(path.name.partition("-")[0], 16) for path in files(tmp_path, "pixels")}
    assert kept == set(range(count - len(kept), count))
    assert len(kept) >= 20


def test_use_is_noted_once_an_hour(cache: ImageCache) -> None:
    [path] = files(cache.folder, "pixels")
    for age, touched in ((HOUR / 2, False), (2 * HOUR, True)):
        before = time.time() - age
        os.utime(path, (before, before))
        cache.pixels(known(), SIDE)
        assert (path.stat().st_mtime > before + 1) is touched


def test_a_disk_that_refuses_costs_a_warning_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "images").write_text("a file where the folder should be")
    cache = ImageCache(tmp_path / "images", LARGE)
    for number in range(3):
        cache.keep_known("a", known(number))
        cache.keep_pixels(known(number), image())
    assert cache.known("a") is None
    assert caplog.text.count("cannot be kept") == 1


def test_many_writers_at_once_leave_nothing_damaged(tmp_path: Path) -> None:
    caches = [ImageCache(tmp_path, 30 * BLOCK) for _ in range(4)]

    def write(cache: ImageCache) -> None:
        for number in range(60):
            cache.keep_known(str(number % 9), known(number % 9))
            cache.keep_pixels(known(number % 9), image(number % 9))
            found = cache.pixels(known(number % 9), SIDE)
            assert found is None or (found == number % 9).all()

    threads = [threading.Thread(target=write, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any("damaged" in sentence for sentence in caches[0].check())


@pytest.mark.parametrize("text", ["", "x", f"{1:064x} 3 4 00000000\n", known().text[:-1], known().text + "\n"])
def test_text_that_is_not_its_own_is_nothing(text: str) -> None:
    assert Known.from_text(text) is None
    assert Known.from_text(known().text) == known()
