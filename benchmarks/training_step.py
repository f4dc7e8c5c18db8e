"""What a training step takes with quick_convolutions.py, over what it takes with torch's own convolutions.

    .venv/bin/python -m benchmarks.training_step [--rounds 7]

ResNet-18 from scratch, SGD, process CPU time: a step of each kind in turn, the median of the rounds' ratios after one to
warm up. Torch's own get the images as they come, channels first; the others as `arranged` lays them. Freed memory is kept
as in the process that trains (rounds.ENVIRONMENT). Writes training_step.md and training_step.json beside itself, a part for
each kind of processor.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gradient_norms import machine, seconds
from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.lplgrad.quick_convolutions import QuickConvolutions, arranged
from lplgrad_backend.rounds import ENVIRONMENT

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "training_step.json", HERE / "training_step.md"
CLASSES = 10


@dataclass(frozen=True)
class Setting:
    """A batch of images, and whether the network has the stem for small ones."""

    side: int
    count: int
    small_stem: bool

    @property
    def name(self) -> str:
        return f"{'small' if self.small_stem else 'usual'} stem, {self.count} images of {self.side} px"


SETTINGS = (
    Setting(8, 32, True), Setting(16, 32, True), Setting(16, 128, True), Setting(32, 32, True), Setting(64, 32, False),
    Setting(224, 8, False),
)  # fmt: skip


def stepper(network: Network, images: Tensor, quick: Callable[[], AbstractContextManager[Any]]) -> Callable[[], None]:
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    labels = torch.arange(len(images)) % CLASSES

    def step() -> None:
        with quick():
            logits = network.look(images).logits
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(logits, labels).backward()
        optimiser.step()

    return step


def ratio(setting: Setting, rounds: int) -> float:
    torch.manual_seed(0)
    network = Network(Architecture("resnet18", CLASSES, False, setting.side, setting.small_stem)).train()
    images = torch.rand(setting.count, 3, setting.side, setting.side)
    own = stepper(copy.deepcopy(network), images, nullcontext)
    quick = stepper(network, arranged(images), QuickConvolutions)
    taken = [(seconds(quick), seconds(own)) for _ in range(1 + rounds)][1:]
    return round(statistics.median(one / other for one, other in taken), 3)


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "# A training step of ResNet-18 with quick convolutions\n",
        "CPU time over that with torch's own convolutions, made by `benchmarks/training_step.py`, which says how. Other",
        "programs were running beside it, so ratios count.",
    ]
    for vectors, results in found.items():
        facts = results["machine"]
        lines += [
            f"\n## {vectors}, {facts['cores']} cores ({facts['processor']}), torch {facts['torch']}\n",
            "| | one thread | two threads |",
            "|---|---|---|",
            *(f"| {name} | {one['1']:.2f} | {one['2']:.2f} |" for name, one in results["settings"].items()),
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if not ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **ENVIRONMENT})
    settings: dict[str, dict[str, float]] = {one.name: {} for one in SETTINGS}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for setting in SETTINGS:
            settings[setting.name][str(threads)] = ratio(setting, options.rounds)
            print(threads, setting.name, settings[setting.name], flush=True)
    facts = {key: value for key, value in machine().items() if key != "threads"}
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found[torch.backends.cpu.get_cpu_capability()] = {"machine": facts, "rounds": options.rounds, "settings": settings}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
