"""A round's training in progress: `MODEL_DIR/<project>/checkpoint`, one file, for the next attempt at the same round.

It begins with the sha256 of the rest, which is safetensors; whose training it is stands in its `key`. What does not fit or
is damaged is no checkpoint: then the training begins at the beginning.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy
from numpy.typing import NDArray

from lplgrad_backend.files import write_whole, written

CHECKPOINT = "checkpoint"
DIGEST = hashlib.sha256().digest_size
Arrays = Mapping[str, NDArray[Any]]


def write_checkpoint(file: Path, key: str, numbers: tuple[int, int], arrays: Arrays) -> None:
    """Replace what is there.

    Args:
        key: of the round, in which nothing else is equal.
        numbers: epochs and steps done.

    Raises:
        StoreError: the disk refuses.
    """
    said = {"key": key, "epoch": str(numbers[0]), "steps": str(numbers[1])}
    content = safetensors.numpy.save(dict(arrays), metadata=said)
    with written(file.name, file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, hashlib.sha256(content).digest() + content)


def read_checkpoint(file: Path, key: str) -> tuple[tuple[int, int], dict[str, NDArray[Any]]] | None:
    """Numbers and arrays of the round with this key; None where there is another's, a damaged one, or none."""
    content = _intact(file)
    if content is None:
        return None
    (length,) = struct.unpack("<Q", content[:8])  # safetensors: a header of JSON behind its length
    said = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    if said.get("key") != key:
        return None
    return (int(said["epoch"]), int(said["steps"])), safetensors.numpy.load(content)


def is_damaged(file: Path) -> bool:
    """Whether there is a file that is no whole checkpoint."""
    return file.exists() and _intact(file) is None


def _intact(file: Path) -> bytes | None:
    try:
        content = file.read_bytes()
    except OSError:
        return None
    return content[DIGEST:] if hashlib.sha256(content[DIGEST:]).digest() == content[:DIGEST] else None
