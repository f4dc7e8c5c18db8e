"""What `lplgrad-screened` misses: exact gradient norms for the top 30 % by ||dH/dlogits||, against exact ones for all.

    .venv/bin/python -m benchmarks.screening [--seeds 1] [--pool 600]

Small networks are trained on scikit-learn's digits at 16 px and order the digits that they have not seen: with the default
recipe, and once with 400 steps instead of 100, which the two smaller networks need to become sure of anything. Writes
screening.md and screening.json beside itself; takes about three minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from lplgrad_backend.lplgrad.acquisition import SCREENED_SHARE, STRATEGIES
from lplgrad_backend.lplgrad.gradnorm.entropy import entropy_gradient
from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.lplgrad.pool import NetworkPool
from lplgrad_backend.lplgrad.recipe import FROM_SCRATCH, Recipe
from lplgrad_backend.lplgrad.training import fit

HERE = Path(__file__).parent
SIDE, CLASSES = 16, 10
BACKBONES = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5")
LONG = replace(FROM_SCRATCH, steps=400)
TRAININGS = ((50, FROM_SCRATCH), (200, FROM_SCRATCH), (200, LONG))  # labels, recipe
SURE = 0.8  # of its likeliest class, on average over the pool
HEADS = (0.01, 0.05, 0.1)  # shares of the pool that are asked for
T = TypeVar("T")
COMPARED = ("lplgrad-screened", "lplgrad-head", "entropy")


@dataclass(frozen=True)
class Run:
    """One trained network and how well the cheap orders agree with the exact one."""

    backbone: str
    labels: int
    steps: int
    seed: int
    confidence: float  # mean probability of the likeliest class
    accuracy: float  # on the pool, which is never trained on
    recall: dict[
        str, dict[str, float]
    ]  # strategy -> share of the pool -> part of the exact head that it has in its own
    depth: float  # share of the pool by ||dH/dlogits|| that holds all of the exact top 10 %
    cost: dict[str, float]  # strategy -> process CPU time over that of a forward pass


def digits() -> tuple[Tensor, Tensor]:
    """Images uint8 [1797, 3, 16, 16], enlarged without smoothing, and labels."""
    found = load_digits()
    grey = torch.from_numpy(np.uint8(found.images * 255 / 16))
    large = grey.repeat_interleave(SIDE // 8, 1).repeat_interleave(SIDE // 8, 2)
    return large.unsqueeze(1).expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(found.target)


def trained(backbone: str, images: Tensor, labels: Tensor, recipe: Recipe, seed: int) -> Network:
    torch.manual_seed(seed)
    network = Network(Architecture(backbone, CLASSES, multiple=False, side=SIDE, small_stem=True))
    targets = torch.nn.functional.one_hot(labels, CLASSES).float()
    list(fit(network, images, targets, recipe, seed=seed, device=torch.device("cpu")))
    return network


def measure(backbone: str, labels: int, recipe: Recipe, seed: int, size: int) -> Run:
    """Train on `labels` digits and order `size` others."""
    images, truth = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    known, unknown = order[:labels], order[labels : labels + size]
    network = trained(backbone, images[known], truth[known], recipe, seed)

    def fresh() -> NetworkPool:
        return NetworkPool(network, images[unknown], images[known], truth[known].bincount(minlength=10))

    pool = fresh()
    forward, _ = timed(lambda: pool.logits)
    seconds, queues = {}, {}
    for name in ("lplgrad", *COMPARED):
        asked = fresh()
        seconds[name], queue = timed(lambda name=name, asked=asked: STRATEGIES[name](asked, size, seed))
        queues[name] = queue.positions.tolist()
    heads = {f"{share:.0%}": round(share * size) for share in HEADS}
    recall = {name: {share: overlap(queues, name, count) for share, count in heads.items()} for name in COMPARED}
    probabilities, said = torch.softmax(pool.logits, 1).max(1)
    return Run(
        backbone=backbone,
        labels=labels,
        steps=recipe.steps,
        seed=seed,
        confidence=float(probabilities.mean()),
        accuracy=float((said == truth[unknown]).float().mean()),
        recall=recall,
        depth=depth(pool, queues["lplgrad"][: heads["10%"]]),
        cost={name: spent / forward for name, spent in seconds.items()},
    )


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Process CPU seconds, and what the work gives."""
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def overlap(queues: dict[str, list[int]], name: str, count: int) -> float:
    """Part of the first `count` of the exact order that are among the first `count` of the other."""
    return len(set(queues["lplgrad"][:count]) & set(queues[name][:count])) / count


def depth(pool: NetworkPool, exact: list[int]) -> float:
    """Share of the pool, ordered by ||dH/dlogits||, that has to be taken to have all of `exact`."""
    rough = entropy_gradient(pool.logits, multiple=False).norm(dim=1)
    rank = rough.argsort(descending=True).argsort()
    return float(rank[exact].max() + 1) / len(pool)


def table(runs: list[Run], size: int) -> str:
    """The runs as a page."""
    lines = [
        "# What screening misses\n",
        f"Made by `benchmarks/screening.py`: digits at {SIDE} px, a pool of {size} unseen ones, one CPU thread, process",
        "CPU time. Recall is the part of the exact top 1 / 5 / 10 % of the pool that an order has in its own; depth is the",
        "share of the pool by ||dH/dlogits|| that holds all of the exact top 10 % (screening takes "
        f"{SCREENED_SHARE:.0%}); cost is over a forward pass.",
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}.\n",
        summary([run for run in runs if run.confidence >= SURE], f"Mean confidence of {SURE} and more"),
        summary([run for run in runs if run.confidence < SURE], f"Below {SURE}"),
        "",
        "| network | labels | steps | seed | accuracy | confidence | screened | last layer | entropy | depth | cost exact "
        "| screened |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        cells = [" / ".join(f"{value:.2f}" for value in run.recall[name].values()) for name in COMPARED]
        lines.append(
            f"| {run.backbone} | {run.labels} | {run.steps} | {run.seed} | {run.accuracy:.2f} | {run.confidence:.2f} | "
            f"{' | '.join(cells)} | {run.depth:.0%} | "
            f"{run.cost['lplgrad']:.1f} | {run.cost['lplgrad-screened']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def summary(runs: list[Run], title: str) -> str:
    """One line over some of the networks."""
    recalls = [run.recall["lplgrad-screened"]["10%"] for run in runs]
    numbers = f"{np.mean(recalls):.2f} on average, {min(recalls):.2f} at worst" if runs else "not seen"
    return f"- **{title}: recall of `lplgrad-screened` in the top 10 % {numbers}** ({len(runs)} networks)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--pool", type=int, default=600)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for backbone in BACKBONES:
        for labels, recipe in TRAININGS:
            for seed in range(asked.seeds):
                runs.append(measure(backbone, labels, recipe, seed, asked.pool))
                print(runs[-1], flush=True)
    (HERE / "screening.md").write_text(table(runs, asked.pool))
    (HERE / "screening.json").write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")


if __name__ == "__main__":
    main()
