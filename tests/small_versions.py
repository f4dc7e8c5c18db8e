"""Versions of a small real network, and images that are made from their addresses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from versions import LABELING

from lplgrad_backend.errors import ImageError, ImageUnreadable
from lplgrad_backend.labeling import Labeling
from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.scoring import Scorer, by_norm, pool_scores, readable
from lplgrad_backend.store import Manifest, Store

SIDE = 16
ARCHITECTURE = Architecture("shufflenet_v2_x0_5", classes=2, multiple=False, side=SIDE, small_stem=True)


class MadeImages:
    """As lplgrad_backend.images.Images: an image for every address but none and those that say "broken". Keeps what was
    asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []
        self.kept: dict[tuple[str, str], NDArray[np.float32]] = {}

    def features(self, uri: str, task_id: int, network: str, count: int) -> NDArray[np.float32] | None:
        return self.kept.get((uri, network))

    def keep_features(self, uri: str, task_id: int, network: str, features: NDArray[np.float32]) -> None:
        self.kept[uri, network] = features

    def size(self, uri: str, task_id: int | None = None) -> tuple[int, int]:
        if "broken" in uri or not uri:
            raise ImageUnreadable(uri, "it is broken.")
        return SIDE, SIDE

    def load_many(self, items: Iterable[tuple[int, str]], side: int) -> Iterator[NDArray[np.uint8] | ImageError]:
        for task, uri in items:
            self.asked.append((task, uri))
            yield ImageUnreadable(uri, "it is broken.") if "broken" in uri or not uri else made(uri, side)


def made(uri: str, side: int = SIDE) -> NDArray[np.uint8]:
    """The image at an address; all white where it says "white"."""
    if "white" in uri:
        return np.full((side, side, 3), 255, np.uint8)
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(uri.encode()).digest()[:8]))
    return random.integers(0, 200, (side, side, 3), np.uint8)


def small_network(seed: int = 0, architecture: Architecture = ARCHITECTURE) -> Network:
    """Untrained, in eval mode."""
    torch.manual_seed(seed)
    return Network(architecture).eval()


class Dazzled(nn.Module):
    """Stands for a `Network`: bright images overflow on their way to the logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.architecture = ARCHITECTURE
        self.main = nn.Sequential(Glare(), nn.Linear(3, 2)).eval()


class Glare(nn.Module):
    """Mean colour [N, 3], times infinity from nearly white on."""

    def forward(self, images: Tensor) -> Tensor:
        colour = images.mean((2, 3))
        return colour * torch.exp(2000 * (colour - 0.9).clamp(min=0))


def save_network(
    store: Store,
    project: int,
    version: str,
    network: Network,
    tasks: Sequence[tuple[int, str]],
    labeling: Labeling = LABELING,
    temperature: float = 1.0,
) -> Manifest:
    """Save a version as a round does: the network, and its scores of the pool of (task id, address)."""
    found = readable(tasks, list(Scorer(network, confidence=temperature).measure(MadeImages(), tasks)))
    standing = by_norm(found.measured)
    weights = store.folder / "weights.tmp"
    weights.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(network.state_dict(), weights)
    draft = {
        "project": project,
        "version": version,
        "created": datetime(2026, 1, 1, tzinfo=UTC),
        "labeling": labeling,
        "architecture": network.architecture.as_plain(),
        "recipe": {"trained": "all"},
        "seed": 0,
        "labels": dict.fromkeys(labeling.classes, 1),
        "scale": standing.scale,
        "temperature": temperature,
        "newest_task": max((task for task, _ in tasks), default=0),
        "metrics": {},
        "unreadable": found.unreadable,
    }
    scores = pool_scores(found, standing, len(labeling.classes))
    manifest = store.save(draft, weights, {}, scores)
    Path(weights).unlink()
    return manifest
