"""Writing files so that a reader, a crash or a full disk never meets half of one.

A file that is being written has a temporary name and is locked by its writer, and the kernel frees the lock when the
writer ends, however it does. So what a killed writer left can be told from what another is writing, by no clock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import safetensors

from lplgrad_backend.errors import StoreError

REMEDIES = {
    errno.ENOSPC: "the disk is full. Make room there, or set MODEL_DIR to another disk",
    errno.EDQUOT: "the disk quota is used up. Make room there, or set MODEL_DIR to another disk",
    errno.EROFS: "the disk is mounted read-only. Mount it so that it can be written, or set MODEL_DIR to another disk",
    errno.EACCES: "the backend's user may not. Give that user the folder, or set MODEL_DIR to another one",
    errno.EPERM: "the backend's user may not. Give that user the folder, or set MODEL_DIR to another one",
}


@contextlib.contextmanager
def written(what: str, folder: Path) -> Iterator[None]:
    """For a block that writes `what` below `folder`.

    Raises:
        StoreError: the disk refuses; it says why and what to do.
    """
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise StoreError(f"{what} cannot be written below MODEL_DIR, in {folder}: {refusal(error)}.") from error


def refusal(error: OSError | safetensors.SafetensorError) -> str:
    """Why a disk refuses, and what to do, in words. safetensors has the system's number in its text alone."""
    number = getattr(error, "errno", None)
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(found.group(1))
    return REMEDIES.get(number or 0, str(error))


def keep_private() -> None:
    """From now on other users of this machine can read nothing that this process and its children write: images, their
    addresses and models are people's own."""
    os.umask(os.umask(0o007) | 0o007)


def write_whole(path: Path, content: bytes, *, durable: bool = True, through: Path | None = None) -> None:
    """Write `content` to `path`: to a temporary file, synced if `durable`, renamed. Replaces what was there.

    Args:
        through: folder of the temporary file, on the same disk; that of `path` unless given.

    Raises:
        OSError: disk full, read-only; nothing is left behind and the old content stays.
    """
    with _temporary(through or path.parent, path.name) as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(file.fileno())
        Path(file.name).replace(path)


@contextlib.contextmanager
def _temporary(folder: Path, name: str) -> Iterator[IO[bytes]]:
    """A new locked file that is gone at the end, if the block leaves it where it is."""
    while True:
        path = folder / f".{name}.{uuid.uuid4().hex}.tmp"
        with path.open("xb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file.fileno()).st_nlink == 0:  # taken for a leftover before it was locked
                    continue
                yield file
                return
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()


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


def is_leftover(path: Path) -> bool:
    """Whether nobody writes this temporary file or folder any more. Of a folder its maker's lock must say that."""
    if path.is_dir():
        return True
    with contextlib.suppress(OSError), _abandoned(path):
        return True
    return False


def remove_leftover(file: Path) -> None:
    """Remove a temporary file, unless somebody writes it."""
    with contextlib.suppress(OSError), _abandoned(file):
        file.unlink()


@contextlib.contextmanager
def _abandoned(file: Path) -> Iterator[None]:
    """Hold a temporary file's lock. OSError: it is gone, or being written."""
    with file.open("rb") as content:
        fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writers left directly in `folder`. Only for the one process that may make folders there;
    files are written by several."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            remove_folder(path)
        else:
            remove_leftover(path)
