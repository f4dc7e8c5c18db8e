"""Writing files so that a reader, a crash or a full disk never meets half of one."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path


def write_whole(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write `content` to `path`: to a temporary neighbour, synced if `durable`, renamed. Replaces what was there.

    Raises:
        OSError: disk full, read-only; nothing is left behind and the old content stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill; when the block ends well it appears as `target` with everything synced, else not at all.

    Raises:
        FileExistsError: `target` is there already.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        if target.exists():
            raise FileExistsError(target)
        temporary.rename(target)
        sync(target.parent)
    finally:
        remove_folder(temporary)


def remove_folder(folder: Path) -> None:
    """Remove a flat folder if it is there. It vanishes under its name at once, its files a moment later."""
    with contextlib.suppress(FileNotFoundError):
        grave = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
        folder.rename(grave)
        for file in grave.iterdir():
            file.unlink()
        grave.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writers left in `folder`: folders at once, files when they are an hour old.

    Only for the one process that may make folders there; small files are written by several.
    """
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            remove_folder(path)
        elif time.time() - path.stat().st_mtime > 3600:
            path.unlink(missing_ok=True)
