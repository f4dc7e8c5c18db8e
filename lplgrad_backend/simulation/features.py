"""From a data set to what runs are made of. A network whose head alone is trained looks at every image once; what it says
is kept on disk by the images' content, the weights and the architecture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from lplgrad_backend.errors import ImageError, NotLearnable
from lplgrad_backend.files import write_whole
from lplgrad_backend.lplgrad.network import Architecture, Looked, Network
from lplgrad_backend.lplgrad.recipe import Recipe
from lplgrad_backend.lplgrad.training import look_at
from lplgrad_backend.preparation import start_of
from lplgrad_backend.scoring import as_batch
from lplgrad_backend.settings import Settings
from lplgrad_backend.simulation.datasets import DataSet
from lplgrad_backend.simulation.material import Material

BATCH = 64
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Prepared:
    """Material, what its images are called, and what is to be said about how it was made."""

    material: Material
    names: tuple[str, ...]
    sentences: tuple[str, ...]


def prepare(data: DataSet, settings: Settings, processes: int, report: Report = lambda done, total: None) -> Prepared:
    """The network that the trainer would choose for these images, and what it says of them.

    Args:
        settings: preset, backbone, weights, image size, and where features are kept.
        processes: threads that the network may use.
        report: told how many images are done, of how many.

    Raises:
        SettingsError: the weights cannot be read.
        NotLearnable: no image can be read.
    """
    longest = data.pictures.longest()
    start = start_of(settings, longest, len(data.classes), data.multiple, len(data.targets), torch.device("cpu"))
    network, recipe, architecture = start.network, start.recipe, start.network.architecture
    said = [*start.said, f"Recipe {start.reason}"]
    state = _weights(network) if start.pretrained else {}
    seen, readable = _seen(data, network, recipe, state, settings.model_dir / "simulation", processes, report)
    if not readable.any():
        raise NotLearnable(f"None of the {len(readable)} images of {data.name} can be read.")
    if not readable.all():
        said.append(f"{int((~readable).sum())} of {len(readable)} images cannot be read and are left out.")
    held_out = None if data.held_out is None else data.held_out[readable]
    material = Material(data.targets[readable], held_out, seen, architecture, state, recipe)
    names = tuple(name for name, known in zip(data.pictures.names(), readable, strict=True) if known)
    return Prepared(material, names, tuple(said))


def _weights(network: Network) -> dict[str, Tensor]:
    """All of the backbone but the head."""
    inside = "main." + network.head_name + "."
    return {
        name: value.clone()
        for name, value in network.state_dict().items()
        if name.startswith("main.") and not name.startswith(inside)
    }


def _seen(
    data: DataSet,
    network: Network,
    recipe: Recipe,
    state: Mapping[str, Tensor],
    folder: Path,
    processes: int,
    report: Report,
) -> tuple[Looked | Tensor, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """What runs see of the images that can be read, and which these are, bool [N]."""
    if recipe.trained != "head":
        pixels, readable = _pixels(data, network.architecture.side, report)
        return pixels, readable
    file = folder / f"{_key(data, network.architecture, state)}.safetensors"
    try:
        kept = safetensors.torch.load_file(file)
    except (OSError, SafetensorError):
        pixels, readable = _pixels(data, network.architecture.side, report)
        kept = _features(network, pixels, processes) | {"readable": torch.from_numpy(readable)}
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, safetensors.torch.save(kept))
    levels = tuple(kept[f"level{at}"] for at in range(len(network.levels)))
    features = kept["features"]
    looked = Looked(features.new_zeros(len(features), network.architecture.classes), features, levels)
    return looked, kept["readable"].numpy()


def _key(data: DataSet, architecture: Architecture, state: Mapping[str, Tensor]) -> str:
    """What the features depend on. How many classes there are, and per image, is not among it."""
    digest = hashlib.sha256(data.pictures.digest().encode())
    digest.update(json.dumps({**architecture.as_plain(), "classes": 0, "multiple": False}, sort_keys=True).encode())
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def _pixels(data: DataSet, side: int, report: Report) -> tuple[Tensor, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    found = []
    readable = np.zeros(len(data.targets), dtype=bool)
    for at, one in enumerate(data.pictures.load(side)):
        if not isinstance(one, ImageError):
            found.append(one)
            readable[at] = True
        report(at + 1, len(readable))
    return as_batch(found) if found else torch.zeros(0, 3, side, side, dtype=torch.uint8), readable


def _features(network: Network, pixels: Tensor, processes: int) -> dict[str, Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(processes)
    try:
        looked = look_at(network, pixels, BATCH)
    finally:
        torch.set_num_threads(threads)
    return {"features": looked.features, **_named(looked.pooled)}


def _named(levels: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"level{at}": level.contiguous() for at, level in enumerate(levels)}
