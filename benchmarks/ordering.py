"""What ordering a pool costs beside scoring it: 10,000 images of 1,280 features, on the processor.

    make benchmark, or: .venv/bin/python -m benchmarks.ordering [--images 10000] [--repeats 7]

The features are clouds around ten centres, the answers those of a random linear layer on them; no image and no network is
needed. Each way is timed several times in turn, in wall and in processor seconds: on a busy machine the latter say more.
Writes ordering.md and ordering.json beside itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lplgrad_backend.lplgrad.cold_start import cold_queue
from lplgrad_backend.lplgrad.ordering import Acquisition, order_pool
from lplgrad_backend.lplgrad.pool import AnsweredPool, Answers

HERE = Path(__file__).parent
FEATURES, CLASSES, LABELLED = 1280, 10, 200
LIMIT_SECONDS = 5.0


def made_pool(images: int) -> AnsweredPool:
    """Clouds of points and a random linear layer."""
    random = torch.Generator().manual_seed(0)
    kinds = torch.randint(CLASSES, (images,), generator=random)
    centres = torch.randn(CLASSES, FEATURES, generator=random)
    features = (centres[kinds] + 1.5 * torch.randn(images, FEATURES, generator=random)).relu()
    logits = 3 * features @ torch.randn(CLASSES, FEATURES, generator=random).T / FEATURES**0.5
    norms = torch.rand(1, images, generator=random, dtype=torch.float64)
    answers, counts = Answers(logits, features, norms[0].float(), norms), torch.full((CLASSES,), LABELLED // CLASSES)
    return AnsweredPool(answers, features[:LABELLED], counts, multiple=False)


def ways(pool: AnsweredPool) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""

    def by(strategy: str) -> Callable[[], object]:
        return lambda: order_pool(pool, Acquisition(strategy, strict=True, random_share=0.05), 0)

    return {
        "the default, `lplgrad-coverage`": by("lplgrad-coverage"),
        "the safe strategy, `badge`": by("badge"),
        "`coreset`": by("coreset"),
        "`lplgrad`": by("lplgrad"),
        "before the first version, typicality": lambda: cold_queue(pool.features, pool.labelled_features, 0),
    }


def timed(way: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - wall, time.process_time() - processor


def measured(images: int, repeats: int) -> dict[str, Any]:
    pool = made_pool(images)
    torch.set_num_threads(1)  # as a round does while it orders
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways(pool)}
    for _ in range(repeats):
        for name, way in ways(pool).items():
            found[name].append(timed(way))
    return {
        "images": images, "features": FEATURES, "repeats": repeats, "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(), "load": os.getloadavg()[0],
        "seconds": {name: {"wall": [wall for wall, _ in pairs], "processor": [cpu for _, cpu in pairs]}
                    for name, pairs in found.items()},
    }  # fmt: skip


def written(found: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {median(of['processor']):.2f} ({min(of['processor']):.2f} to {max(of['processor']):.2f}) | "
        f"{median(of['wall']):.2f} ({min(of['wall']):.2f} to {max(of['wall']):.2f}) |"
        for name, of in found["seconds"].items()
    ]
    table = "\n".join(rows)
    return f"""# Ordering a pool, measured

Made by `benchmarks/ordering.py`: {found["images"]:,} images of {found["features"]:,} features, {found["repeats"]} times in
turn, on one thread of {found["cores"]} cores ({found["processor"]}; load {found["load"]:.0f} when it ended, so that wall
seconds are those of a busy machine where it is above the number of cores). Scoring the images is not in it.

| order | processor seconds, median (range) | wall seconds |
|---|---|---|
{table}

The limit is {LIMIT_SECONDS:.0f} s. One thread, since the greedy steps are small: on two threads and a machine with load 12
the default took 7 to 9 processor seconds. `badge` and `coreset` choose the first 400 and leave the rest to margin; the whole
of 10,000 would take them about a minute.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    found = measured(asked.images, asked.repeats)
    (HERE / "ordering.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "ordering.md").write_text(written(found))


if __name__ == "__main__":
    main()
