"""What a network says to the images that were held out of its training."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lplgrad_backend.comparison import image_key
from lplgrad_backend.errors import ImageError
from lplgrad_backend.images import Images
from lplgrad_backend.labeling import Example
from lplgrad_backend.lplgrad.network import Network
from lplgrad_backend.scoring import as_batch, probabilities_of

BATCH = 64


def examine(
    network: Network, images: Images, held_out: Sequence[Example], classes: Sequence[str]
) -> dict[str, list[str]]:
    """Key of each held-out image -> the classes that the network names. Images that cannot be read are left out."""
    device = next(network.parameters()).device
    network.eval()
    found: dict[str, list[str]] = {}
    for start in range(0, len(held_out), BATCH):
        part = held_out[start : start + BATCH]
        loaded = list(images.load_many([(one.task_id, one.uri) for one in part], network.architecture.side))
        readable = [
            (one.uri, image) for one, image in zip(part, loaded, strict=True) if not isinstance(image, ImageError)
        ]
        if not readable:
            continue
        with torch.no_grad():
            logits = network(as_batch([image for _, image in readable]).to(device).float() / 255)
        probabilities = probabilities_of(logits.float(), network.architecture.multiple).cpu()
        least = 0.5 if network.architecture.multiple else probabilities.amax(1, keepdim=True)
        chosen = probabilities >= least
        for (uri, _), row in zip(readable, chosen.tolist(), strict=True):
            found[image_key(uri)] = [name for name, shown in zip(classes, row, strict=True) if shown]
    return found
