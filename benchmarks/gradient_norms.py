"""What exact gradient norms cost and how exact they are: seconds against a forward pass, error against float64, memory.

    .venv/bin/python -m benchmarks.gradient_norms [--only NAME ...] [--rounds N]

One thread, float32, process CPU time. Everything that is compared runs once in each round, in turn; what is reported is
the median of the rounds' ratios, after two rounds to warm up: 9 rounds for what has a target, 3 to 5 for the others, after
one. Freed memory is kept, as in the process that scores a round (rounds.ENVIRONMENT), for all that is compared. Memory is
the peak of a process of its own, above the weights and the libraries, LLVM's 33 MB of code among them. Each network's
numbers are saved as soon as they are there, so that it may be run in pieces; each kind of processor has its own. Writes
gradient_norms.md and gradient_norms.json beside itself.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from benchmarks.gradient_norms_page import page
from benchmarks.gradient_norms_settings import MODELS, TARGETS, Setting
from lplgrad_backend.lplgrad.gradnorm import GradientNorms, places
from lplgrad_backend.lplgrad.gradnorm.entropy import entropy_gradient
from lplgrad_backend.lplgrad.gradnorm.trace import Kind
from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.rounds import ENVIRONMENT
from tests import reference

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "gradient_norms.json", HERE / "gradient_norms.md"
CHECKED = 1
CLASSES = 10


def network_of(setting: Setting) -> nn.Module:
    """The main model as the backend builds it, or torchvision's own at its own image size."""
    torch.manual_seed(0)
    if setting.small_stem:
        return Network(Architecture(setting.backbone, CLASSES, False, setting.side, True)).main.eval()
    options: dict[str, Any] = {"num_classes": CLASSES}
    if setting.backbone in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    return torchvision.models.get_model(setting.backbone, weights=None, **options).eval()


def images_of(setting: Setting, count: int) -> Tensor:
    return torch.rand(count, 3, setting.side, setting.side, generator=torch.Generator().manual_seed(1))


def train(network: nn.Module, setting: Setting) -> nn.Module:
    """Some steps on random images and labels: weights that are no longer what they began as, and a confident head.

    The BatchNorms of a new inception_v3 have to learn what they see first, which takes too long with the usual momentum:
    there they take the mean of all steps.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and setting.backbone == "inception_v3":
            module.momentum = None
    images, labels = images_of(setting, 2), torch.arange(2) % CLASSES
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network.train()
    for _ in range(setting.steps):
        optimiser.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimiser.step()
    return network.eval()


# What is compared


def one_by_one(network: nn.Module, images: Tensor) -> list[float]:
    """The authors' published way: batches of one, autograd through the entropy."""
    norms = []
    for image in images.split(1):
        network.zero_grad()
        torch.distributions.Categorical(logits=network(image)).entropy().sum().backward()
        norms.append(sum(float(one.grad.norm()) for one in network.parameters() if one.grad is not None))
    return norms


def training_step(network: nn.Module, images: Tensor) -> None:
    """An ordinary batched forward and backward pass, without the optimiser."""
    network.zero_grad()
    F.cross_entropy(network(images), torch.zeros(len(images), dtype=torch.int64)).backward()


def ways(network: nn.Module, images: Tensor) -> Mapping[str, Callable[[], object]]:
    layout = torch.channels_last
    turned, turned_images = copy.deepcopy(network).to(memory_format=layout), images.contiguous(memory_format=layout)
    scorer = GradientNorms(network)

    def forward(model: nn.Module, batch: Tensor) -> None:
        with torch.inference_mode():
            model(batch)

    return {
        "forward": lambda: forward(network, images),
        "forward, channels last": lambda: forward(turned, turned_images),
        "exact": lambda: scorer.measure(images),
        "step": lambda: training_step(network, images),
        "loop": lambda: one_by_one(network, images),
    }


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def cost(setting: Setting, rounds: int) -> dict[str, float]:
    """Medians of per-round ratios; the base is whichever layout's forward pass is the faster in that round."""
    calls = ways(network_of(setting), images_of(setting, setting.count))
    warm_up = 2 if rounds >= 9 else 1
    taken = [{name: seconds(call) for name, call in calls.items()} for _ in range(warm_up + rounds)][warm_up:]

    def median(ratio: Callable[[Mapping[str, float]], float]) -> float:
        return round(statistics.median(map(ratio, taken)), 3)

    return {
        "cost": median(lambda one: one["exact"] / min(one["forward"], one["forward, channels last"])),
        "step_cost": median(lambda one: one["step"] / min(one["forward"], one["forward, channels last"])),
        "speedup": median(lambda one: one["loop"] / one["exact"]),
        "against_step": median(lambda one: one["exact"] / one["step"]),
        "forward_ms_per_image": round(1000 * statistics.median(one["forward"] for one in taken) / setting.count, 2),
        "rounds": rounds,
    }


def exactness(setting: Setting) -> dict[str, Any]:
    """Largest error of an image's score against the float64 loop, in thousandths, and what share of tensors has a rule."""
    network, images = network_of(setting), images_of(setting, CHECKED)
    errors = {"untrained": _error(network, images, reference.gradient_norms(network, images))}
    train(network, setting)
    oracle = reference.gradient_norms(network, images)
    errors["trained"] = _error(network, images, oracle)
    errors["float64"] = _error(copy.deepcopy(network).double(), images.double(), oracle)
    errors["loop in float32"] = _worst(loop_with_closed_seed(network, images), oracle)
    layout = torch.channels_last
    turned = network.to(memory_format=layout)  # type: ignore[call-overload]
    errors["trained, channels last"] = _error(turned, images.contiguous(memory_format=layout), oracle)
    scorer = GradientNorms(network)
    several = images_of(setting, 4)
    exact = scorer.measure(several).norms
    halved = GradientNorms(network, activations=torch.bfloat16).measure(several).norms
    half = float(((halved - exact).abs() / exact.clamp(min=1e-3 * float(exact.max()))).max())
    [plan] = scorer.plans.values()
    uses = plan.uses.values() if plan is not None else ()
    slow = {key for use in uses if use.kind is Kind.MAPPED for key in use.keys}
    tensors = len(scorer.parameters)
    by_rule = tensors - len(slow) if plan is not None else 0
    return {"errors": errors, "bfloat16": round(100 * half, 2), "tensors": tensors, "by_rule": by_rule}


def loop_with_closed_seed(network: nn.Module, images: Tensor) -> Tensor:
    """Batches of one in the network's own precision, without the error of differentiating the entropy: float64 [N]."""
    norms = []
    for image in images.split(1):
        network.zero_grad()
        logits = network(image)
        logits.backward(entropy_gradient(logits.detach(), False, 1.0).to(logits))
        norms.append(sum(one.grad.double().norm() for one in network.parameters() if one.grad is not None))
    return torch.stack(norms)


def _error(network: nn.Module, images: Tensor, oracle: Tensor) -> float | None:
    return _worst(GradientNorms(network).measure(images).norms, oracle)


def _worst(found: Tensor, oracle: Tensor) -> float | None:
    """None where all norms are below what logits of float32 can tell from equal ones."""
    if oracle.max() < 1e-12:
        return None
    error = (found - oracle).abs() / oracle.clamp(min=1e-3 * float(oracle.max()))
    return float(f"{1000 * float(error.max()):.2g}")


def memory(setting: Setting) -> float:
    """Megabytes above the weights, in a process of its own."""
    arguments = [sys.executable, "-m", "benchmarks.gradient_norms", "--memory-of", setting.name]
    return float(subprocess.run(arguments, check=True, capture_output=True, text=True, cwd=HERE.parent).stdout)


def peak_of(setting: Setting) -> float:
    scorer, images = GradientNorms(network_of(setting)), images_of(setting, setting.count)
    places.sums(*images_of(setting, 2).contiguous(memory_format=torch.channels_last).split(1))  # opens LLVM
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that building has left
    before = _kilobytes("VmRSS")
    scorer.measure(images)
    scorer.measure(images)
    return (_kilobytes("VmHWM") - before) / 1024


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def measured(setting: Setting, rounds: int) -> dict[str, Any]:
    return {**cost(setting, rounds), **exactness(setting), "megabytes": round(memory(setting))}


def machine() -> dict[str, Any]:
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "processor": cpu[0] if cpu else platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__,
        "torchvision": torchvision.__version__, "python": platform.python_version(), "threads": 1,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        nargs="*",
        help='networks, such as resnet18, or lines of the table, such as "vit_b_16 224x224 N=4"; all by default',
    )
    parser.add_argument("--rounds", type=int, help="instead of each network's own number")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **ENVIRONMENT})
    torch.set_num_threads(1)
    settings = {setting.name: setting for setting in (*MODELS, *TARGETS)}
    if options.memory_of:
        print(peak_of(settings[options.memory_of]))
        return
    warnings.simplefilter("error")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results = found.setdefault(torch.backends.cpu.get_cpu_capability(), {"settings": {}})
    for name, setting in settings.items():
        if options.only and setting.backbone not in options.only and name not in options.only:
            continue
        results["machine"] = machine()
        results["settings"][name] = measured(setting, options.rounds or setting.rounds)
        print(name, results["settings"][name], flush=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
