"""Which images to label while there is no model to ask, or one that has seen too little to be asked.

A typical image lies close to its nearest neighbours (TypiClust, Hacohen et al., arXiv 2202.02794). Where that method takes
the most typical image of each cluster, typicality is here the weight of `coverage`: an image is worth the typicality that it
and its look-alikes still have uncovered, which orders the whole pool at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lplgrad_backend.lplgrad.acquisition import Queue
from lplgrad_backend.lplgrad.coverage import alike, cover

FEW_PER_CLASS = 3
NEIGHBOURS = 20
SHARPNESS = 4.0
THUMBNAIL = 8
CHUNK = 1024


def is_cold(per_class: Tensor) -> bool:
    """Whether labels per class [C] are too few for a model to say what it lacks: below 3 on average over all classes, or
    fewer than two classes seen."""
    return bool(per_class.sum() < FEW_PER_CLASS * len(per_class) or (per_class > 0).sum() < 2)


def cold_queue(features: Tensor, labelled: Tensor, seed: int, budget: int | None = None) -> Queue:
    """Typical images first, each with look-alikes that no image before it nor a labelled one covers.

    Args:
        features: finite, [N, D]: a pretrained backbone's, or `simple_features`.
        labelled: [L, D], those of the images that have a label.
        seed: decides between equals.
        budget: how many; None: all.
    """
    wanted = len(features) if budget is None else min(budget, len(features))
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    if wanted == 0:
        return Queue(order[:0], torch.zeros(0, dtype=torch.float64))
    shuffled = features[order]
    taken, worth = cover(shuffled, typicality(shuffled), labelled, SHARPNESS, wanted)
    return Queue(order[taken], worth)


def typicality(features: Tensor) -> Tensor:
    """1 / the mean distance to the 20 nearest images, after centring and normalising; largest 1: float64 [N].

    A picture that comes several times is not more typical for that: distances below a tenth of the median are taken as it.
    """
    count = len(features)
    centre = features.mean(0)
    near = min(NEIGHBOURS, count - 1)
    if near == 0:
        return torch.ones(count, dtype=torch.float64)
    cosines = [alike(part, features, centre).topk(near + 1, dim=1).values[:, 1:] for part in features.split(CHUNK)]
    distances = (2 - 2 * torch.cat(cosines)).clamp(min=0).sqrt().mean(1).double().cpu()
    floored = distances.clamp(min=max(0.1 * float(distances.median()), 1e-12))
    return floored.min() / floored


def simple_features(images: Tensor) -> Tensor:
    """Colours and edges of images as a grid of 8 x 8 cells: where no pretrained weights can be had.

    Args:
        images: uint8 [N, 3, S, S], S >= 8.

    Returns:
        float32 [N, 320]: per cell the mean colour and the mean strength of horizontal and vertical edges, each of these
        kinds scaled to the same variance over the images.
    """
    return torch.cat([_grid(part) for part in images.split(CHUNK)]) if len(images) else torch.zeros(0, 5 * THUMBNAIL**2)


def _grid(images: Tensor) -> Tensor:
    pixels = images.float() / 255
    grey = pixels.mean(1, keepdim=True)
    across = F.pad(grey.diff(dim=3).abs(), (0, 1))
    down = F.pad(grey.diff(dim=2).abs(), (0, 0, 0, 1))
    edges = 4 * torch.cat([across, down], 1)  # edges are weaker than colours, by about this much in photographs
    return F.adaptive_avg_pool2d(torch.cat([pixels, edges], 1), THUMBNAIL).flatten(1)
