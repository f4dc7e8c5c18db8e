"""Small material to replay, and data sets of digits on disk."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lplgrad_backend.demo.dataset import write_digits
from lplgrad_backend.lplgrad.network import Architecture, Looked, Network
from lplgrad_backend.lplgrad.recipe import HEAD
from lplgrad_backend.simulation.material import Budget, Material
from lplgrad_backend.simulation.replay import Round, Run

ARCHITECTURE = Architecture("mobilenet_v2", 3, False, 32, False, options={"width_mult": 0.25})
BUDGET = Budget(6, 6, 18)


def blobs(count: int = 90, held_out: bool = True, *, multiple: bool = False) -> Material:
    """Three clouds of points that overlap, as if a frozen network had seen them; with `multiple` a point may lie in more."""
    random = np.random.default_rng(0)
    targets = np.eye(3, dtype=bool)[random.integers(0, 3, count)]
    features = torch.from_numpy(random.normal(size=(count, 1280))).float()
    features[:, :3] += 8 * torch.from_numpy(targets)
    if multiple:
        targets |= random.random((count, 3)) < 0.3
        features += torch.from_numpy(targets).repeat(1, 427)[:, :1280]
    channels = [level.channels for level in Network(ARCHITECTURE).levels]
    seen = Looked(torch.zeros(count, 3), features, tuple(torch.rand(count, number) for number in channels))
    architecture = replace(ARCHITECTURE, multiple=multiple)
    return Material(targets, np.arange(count) < 30 if held_out else None, seen, architecture, {}, HEAD)


def digit_folder(folder: Path, count: int = 60) -> Path:
    """A folder per class, of the digits 0 to 2."""
    for digit in write_digits(folder / "raw", pool=count * 4, held_out=0).pool:
        if digit.label in "012":
            target = folder / "digits" / digit.label / digit.file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(digit.file.read_bytes())
    return folder / "digits"


def zipped(folder: Path, file: Path, listed: str | None = None) -> Path:
    """A folder as a zip, with a labels.csv if its content is given."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder).as_posix())
        if listed is not None:
            archive.writestr("labels.csv", listed)
    return file


def a_run(strategy: str, seed: int, accuracies: list[float], first: int = 10, each: int = 10) -> Run:
    """A run with these accuracies."""
    rounds = tuple(
        Round(first + each * at, one, one / 2, (1, 2), (at,), strategy, None, 0.0, None, 1, 0.1, 0.0, 0.0)
        for at, one in enumerate(accuracies)
    )
    return Run(strategy, seed, 100, rounds)
