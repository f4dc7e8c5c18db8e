"""Pretrained weights for a backbone: from torchvision's servers, from a local file, or none. Never runs what it loads.

`auto` means ImageNet's for images above 64 px and none for smaller ones, whose stem ImageNet's weights do not fit.
Weights that cannot be had are a sentence in the status, not an error: training from scratch still orders the queue.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import pickle  # for the name of its error alone  # nosec B403
import re
import struct
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from lplgrad_backend.errors import SettingsError, TrainingError
from lplgrad_backend.files import write_whole

log = logging.getLogger(__name__)
SMALL_SIDE = 64
SILENCE_SECONDS, DOWNLOAD_SECONDS = 20.0, 300.0
RETRY_SECONDS = 3600.0
BLOCK = 1 << 20
FITTING_SHARE = 0.5
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DENSENET_NAME = re.compile(
    r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\."
)  # norm.1 in torchvision's files, norm1 since
HALF = (0.5, 0.5, 0.5)
# what reading a damaged file raises, depending on where the damage is
UNREADABLE = (
    OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, struct.error,
    pickle.UnpicklingError, safetensors.SafetensorError,
)  # fmt: skip
PIXELS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": (HALF, HALF)}


@dataclass(frozen=True)
class Pretrained:
    """Weights by parameter name (None: from scratch), the pixels they were trained on, and what is to be said."""

    state: Mapping[str, Tensor] | None
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    warning: str | None = None


def resolve(
    weights: str, pixels: str, backbone: str, side: int, folder: Path, fetch: Callable[[str, Path], None] | None = None
) -> Pretrained:
    """What LPLGRAD_WEIGHTS means for this backbone and these images.

    Args:
        weights: `auto`, `imagenet`, `none` or a path to .pth, .pt or .safetensors.
        pixels: `imagenet` or `half`: what a local file's weights were trained on.
        side: the images' longest side, in pixels.
        folder: where downloads are kept, and the note that one failed within the last hour.
        fetch: puts what is at an address into a file; `download` unless given.

    Raises:
        SettingsError: a local file is missing or is not a state dict.
    """
    if weights == "none" or (weights == "auto" and side <= SMALL_SIDE):
        return Pretrained(None)
    if weights in ("auto", "imagenet"):
        return _imagenet(backbone, folder, fetch or download)
    return Pretrained(_read(Path(weights)), *PIXELS[pixels])


def load_into(backbone: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Copy weights by name; a head of another size is left out. Returns a sentence when other parts did not fit.

    Raises:
        TrainingError: most of the backbone does not fit, so that the weights are another network's.
    """
    own = backbone.state_dict()
    state = {DENSENET_NAME.sub(r"\1\2.", name): value for name, value in state.items()}
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    head = list(own)[-1].rpartition(".")[0]
    wanted = [name for name in own if name.rpartition(".")[0] != head and "num_batches_tracked" not in name]
    unfit = [name for name in wanted if name not in fitting]
    if len(unfit) > FITTING_SHARE * len(wanted):
        raise TrainingError(
            f"LPLGRAD_WEIGHTS are another network's: {len(unfit)} of the {len(wanted)} tensors that LPLGRAD_BACKBONE "
            f"wants are missing or of another shape, such as {_described(unfit[0], own, state)}. "
            "Set LPLGRAD_BACKBONE and its options to theirs, or LPLGRAD_WEIGHTS to none."
        )
    backbone.load_state_dict(fitting, strict=False)
    if not unfit:
        return None
    return (
        f"{len(unfit)} of the backbone's {len(wanted)} tensors are not in LPLGRAD_WEIGHTS and start anew, "
        f"such as {_described(unfit[0], own, state)}."
    )


def _described(name: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    found = f"{list(state[name].shape)} in the file" if name in state else "missing"
    return f"{name} ({list(own[name].shape)} wanted, {found})"


def download(address: str, file: Path) -> None:
    """Put what is at `address` into `file`, whole or not at all. Torchvision's names end in the content's SHA-256.

    Raises:
        OSError: it cannot be had within DOWNLOAD_SECONDS, or something else came.
    """
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    content = bytearray()
    try:
        # the addresses are torchvision's own, and what comes is compared with its SHA-256
        with urllib.request.urlopen(address, timeout=SILENCE_SECONDS) as answer:  # nosec B310
            while block := answer.read1(BLOCK):
                content += block
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{address} takes longer than {DOWNLOAD_SECONDS:.0f} s")
    except http.client.HTTPException as error:
        raise OSError(f"{address} answers no HTTP, or was cut off: {type(error).__name__}") from error
    digest = re.search(r"-([0-9a-f]{8,64})\.", file.name)
    if digest and not hashlib.sha256(content).hexdigest().startswith(digest[1]):
        raise OSError(f"what came from {address} is not what its name says")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, bytes(content))


def _imagenet(backbone: str, folder: Path, fetch: Callable[[str, Path], None]) -> Pretrained:
    note = folder / f"{backbone}.unavailable"
    if note.exists() and 0 <= time.time() - note.stat().st_mtime < RETRY_SECONDS:
        return Pretrained(None, warning=note.read_text())
    try:
        weights = torchvision.models.get_model_weights(backbone).DEFAULT
        state = _fetched(weights.url, folder, fetch)
    except (OSError, ValueError, SettingsError) as error:
        reason = (
            f"ImageNet weights of {backbone} cannot be had ({type(error).__name__}), so it is trained from scratch. "
            "Set LPLGRAD_WEIGHTS to a local file, or to none to hide this."
        )
        log.warning("%s Reason: %s", reason, error)
        with suppress(OSError):  # without the note the next round asks again, and no worse
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(note, reason.encode())
        return Pretrained(None, warning=reason)
    return Pretrained(state, *_pixels_of(backbone, weights))


def _fetched(address: str, folder: Path, fetch: Callable[[str, Path], None]) -> Mapping[str, Tensor]:
    """What is at an address, from our folder, torchvision's or the net. A damaged file of ours goes, to be fetched anew."""
    name = address.rpartition("/")[2]
    ours, torchs = folder / name, Path(torch.hub.get_dir()) / "checkpoints" / name
    if torchs.exists() and not ours.exists():
        return _read(torchs)  # an image may have been built with them
    if not ours.exists():
        fetch(address, ours)
    try:
        return _read(ours)
    except SettingsError:
        ours.unlink(missing_ok=True)
        raise


def _pixels_of(backbone: str, weights: torchvision.models.WeightsEnum) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels that torchvision's weights expect."""
    if backbone in ("googlenet", "inception_v3"):
        return PIXELS["half"]  # torchvision rescales inside these two from ImageNet's values to the ones they learnt on
    transforms = weights.transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def _read(file: Path) -> Mapping[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(file))
        state = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = f"a readable state dict in a .pth or .safetensors file ({type(error).__name__})"
        raise SettingsError("LPLGRAD_WEIGHTS", str(file), reason) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SettingsError("LPLGRAD_WEIGHTS", str(file), "a file that holds tensors by name (a state dict)")
    return state
