"""What each shortcut of the gradient norms is worth: a batch's time without it, over that with all of them.

    .venv/bin/python -m benchmarks.gradient_norms_ablation [--rounds 5]

Networks that have a target, and one of narrow layers, measured as benchmarks/gradient_norms.py does; the answers must stay
the same. Adds its table to gradient_norms.md and gradient_norms.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.gradient_norms import PAGE, RESULTS, images_of, network_of, seconds
from benchmarks.gradient_norms_page import page
from benchmarks.gradient_norms_settings import MODELS, TARGETS
from lplgrad_backend.lplgrad.gradnorm import (
    GradientNorms,
    convolution,
    matrices,
    narrow,
    packing,
    places,
    products,
    replay,
    scorer,
    tally,
    trace,
    winograd_choice,
)

SETTINGS = (*TARGETS[:3], *[setting for setting in MODELS if setting.backbone == "shufflenet_v2_x1_0"])
Without = Callable[[], AbstractContextManager[Any]]


def _contiguous(model: nn.Module, image: Tensor, memory_format: torch.memory_format) -> trace.Plan:
    del memory_format
    return _LOOK(model, image, torch.contiguous_format)


def _never(*_: object) -> bool:
    return False


def _nothing(*_: object) -> None:
    return None


def _one_by_one(self: tally.Tally) -> dict[tally.Key, Tensor]:
    return {key: tally.squared_norms(vector) for key, vector in self.vectors.items()}


_LOOK = trace._trace
WITHOUT: dict[str, Without] = {
    "channels last": lambda: patch.object(trace, "_trace", _contiguous),
    "BatchNorm in the convolution": lambda: patch.object(trace, "_take_norm", lambda tracer, use, output, once: output),
    "the activation in the convolution": lambda: patch.object(trace, "activation_of", lambda *_: None),
    "weights arranged once": lambda: patch.object(packing, "WORTH_ARRANGING", 2**60),
    "the way back as a convolution": lambda: patch.object(convolution, "turnable", _never),
    "products by oneDNN": lambda: patch.object(matrices, "LARGE", 2**60),
    "Winograd's convolutions": lambda: patch.object(winograd_choice, "convolution", _nothing),
    "Winograd's weight gradients": lambda: patch.object(winograd_choice, "weight_gradient", _nothing),
    "Winograd's tiles kept": lambda: patch.object(winograd_choice, "LARGEST_KEPT", 0),
    "products of shifted maps": lambda: patch.object(products, "are_shifts_cheaper", _never),
    "rules kept from call to call": lambda: patch.object(scorer, "_state", lambda tensor: object()),
    "Gram matrices of convolutions": lambda: patch.object(convolution, "gram_is_cheaper", _never),
    "Gram matrices of 1x1 convolutions": lambda: patch.object(convolution, "outer_gram_is_cheaper", _never),
    "three quarters of Gram matrices": lambda: patch.object(products, "FEWEST_HALVED", 2**60),
    "loops for few channels": lambda: patch.object(narrow, "is_narrow", _never),
    "activations and sums in one pass": lambda: patch.object(places, "readable", _never),
    "images side by side": lambda: patch.object(products, "LARGEST_SIDE_BY_SIDE", 0),
    "gradients of gates with their squeezes": lambda: patch.object(replay, "is_squeeze", _never),
    "convolutions of one place as products": lambda: patch.object(convolution.Convolution, "_is_product", _never),
    "short gradients together": lambda: patch.object(tally.Tally, "_squares_of_vectors", _one_by_one),
}


def ratios(model: nn.Module, images: Tensor, rounds: int) -> dict[str, float]:
    """Median of the rounds' ratios, for each shortcut left out."""
    ways: dict[str, Without] = {"": nullcontext, **WITHOUT}
    scorers = {name: GradientNorms(model) for name in ways}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    norms: dict[str, Tensor] = {}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            with way():
                taken[name].append(seconds(lambda name=name: norms.update({name: scorers[name].measure(images).norms})))  # type: ignore[misc]
    for name in WITHOUT:
        torch.testing.assert_close(norms[name], norms[""], rtol=1e-3, atol=1e-9, msg=name)
    return {
        name: round(statistics.median(a / b for a, b in zip(taken[name][1:], taken[""][1:], strict=True)), 3)
        for name in WITHOUT
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for setting in SETTINGS:
        found[setting.name] = ratios(network_of(setting), images_of(setting, setting.count), options.rounds)
        print(setting.name, found[setting.name], flush=True)
    results = json.loads(RESULTS.read_text())
    results[torch.backends.cpu.get_cpu_capability()]["ablation"] = {"rounds": options.rounds, "without": found}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
