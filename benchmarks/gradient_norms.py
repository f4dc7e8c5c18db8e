"""What exact gradient norms cost and how exact they are: seconds against a forward pass, error against float64, memory.

    .venv/bin/python -m benchmarks.gradient_norms [--only NAME ...] [--rounds N]

One thread, float32, process CPU time. Everything that is compared runs once in each round, in turn; what is reported is
the median of the rounds' ratios, after two rounds to warm up: 9 rounds for what has a target, 3 to 5 for the others, after
one. Freed memory is kept, as in the process that scores a round (rounds.ENVIRONMENT), for all that is compared. Memory is
the peak of a process of its own, above the weights. Each network's numbers are saved as soon as they are
there, so that it may be run in pieces. Writes gradient_norms.md and gradient_norms.json beside itself.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from lplgrad_backend.lplgrad.gradnorm import GradientNorms
from lplgrad_backend.lplgrad.gradnorm.trace import Kind
from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.rounds import ENVIRONMENT
from tests import reference

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "gradient_norms.json", HERE / "gradient_norms.md"
CHECKED = 1
CLASSES = 10
HEAVY = ("vgg11_bn", "wide_resnet50_2", "inception_v3", "efficientnet_v2_s", "swin_t", "swin_v2_t", "maxvit_t")
"""Networks that are measured with two images, for time."""


@dataclass(frozen=True)
class Setting:
    """A network, its images, and what was asked of it: the most it may cost in forward passes, the least speed-up."""

    backbone: str
    side: int = 224
    count: int = 4
    small_stem: bool = False
    most_cost: float | None = None
    least_speedup: float | None = None
    rounds: int = 3

    @property
    def name(self) -> str:
        stem = " small stem" if self.small_stem else ""
        return f"{self.backbone}{stem} {self.side}x{self.side} N={self.count}"


TARGETS = (
    Setting("resnet18", 32, 16, True, 2.6, 2.8, rounds=9),
    Setting("resnet18", 224, 4, False, 2.75, 1.8, rounds=9),
    Setting("mobilenet_v3_small", 224, 16, False, 3.3, 2.6, rounds=9),
    Setting("vit_b_16", rounds=5),
    Setting("convnext_tiny", rounds=5),
)
SIDES = {"inception_v3": 299, "swin_v2_t": 256}
MODELS = tuple(
    Setting(name, SIDES.get(name, 224), 2 if name in HEAVY else 4, rounds=5 if name in ("vit_b_16", "convnext_tiny") else 3)
    for name in (
        "alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet",
        "inception_v3", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x1_0",
        "mnasnet1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t",
        "swin_v2_t", "maxvit_t",
    )
)  # fmt: skip


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


def train(network: nn.Module, setting: Setting, steps: int = 3) -> nn.Module:
    """Some steps on random images and labels: weights that are no longer what they began as, and a confident head.

    Logits of a new inception_v3 are of the order of 1e11 until its BatchNorms know what they see, which three steps of the
    usual momentum do not teach them: there they take the mean of all steps.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and setting.backbone == "inception_v3":
            module.momentum = None
    images, labels = images_of(setting, 2), torch.arange(2) % CLASSES
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network.train()
    for _ in range(steps):
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


def _error(network: nn.Module, images: Tensor, oracle: Tensor) -> float | None:
    """None where all norms are below what logits of float32 can tell from equal ones."""
    found = GradientNorms(network).measure(images).norms
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
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that building has left
    before = _kilobytes("VmRSS")
    scorer.measure(images)
    scorer.measure(images)
    return (_kilobytes("VmHWM") - before) / 1024


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


# The page


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


def page(results: Mapping[str, Any]) -> str:
    facts, rows = results["machine"], results["settings"]
    return "\n".join([
        "# Exact gradient norms: cost, error, memory\n",
        "Made by `benchmarks/gradient_norms.py`, which says how. One thread of",
        f"{facts['cores']} cores ({facts['processor']}), torch {facts['torch']}, float32; other programs were running",
        "beside it, so ratios count and seconds do not. Not measured on a GPU: none was at hand.\n",
        "## Against what was asked\n",
        "1.0 is the fastest eager forward pass, contiguous or channels last, of the same batch; *step* is an ordinary",
        "batched forward and backward pass; *loop* is the authors' batch of one. Memory is the peak above the weights.",
        "The last column is the largest error, in %, that `activations=torch.bfloat16` makes on four images after some",
        "training, on the processor; it is meant for GPUs, where it was not measured.\n",
        "| network | exact | asked | step | faster than the loop | asked | cheaper than a step | memory, MB | bfloat16 |",
        "|---|---|---|---|---|---|---|---|---|",
        *[_target_row(setting, rows[setting.name]) for setting in TARGETS if setting.name in rows],
        "",
        *_misses(rows),
        "\n## Every network\n",
        "Error is the largest of an image's score against the float64 loop, in thousandths of it (asked: 1): with new",
        "weights, after some training, that with the rules in float64, which tells rounding from a wrong rule, and that",
        "with channels last; – where the new network's logits are all equal.",
        "Tensors: how many parameter tensors have a rule, of all. Rounds: how many ratios the medians are of.",
        *_stars(rows),
        "| network | error, new | trained | in float64 | channels last | by rule | exact | step | faster than the loop | "
        "memory, MB | rounds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *[_model_row(setting, rows[setting.name]) for setting in MODELS if setting.name in rows],
        "",
        *_dearer(rows),
        *_unmeasured(rows),
        *_ablation(results.get("ablation")),
    ]) + "\n"  # fmt: skip


def _stars(rows: Mapping[str, Any]) -> list[str]:
    earlier = any(row.get("earlier") for row in rows.values())
    return ["A star: measured before the last changes to the rules.\n" if earlier else ""]


def _target_row(setting: Setting, row: Mapping[str, Any]) -> str:
    star = " *" if row.get("earlier") else ""
    most = "" if setting.most_cost is None else f"≤ {setting.most_cost}"
    least = "" if setting.least_speedup is None else f"≥ {setting.least_speedup} x"
    cheaper = "yes" if row["against_step"] < 1 else "no"
    return (
        f"| {setting.name}{star} | {row['cost']:.2f} | {most} | {row['step_cost']:.2f} | {row['speedup']:.1f} x | {least} | "
        f"{cheaper} ({row['against_step']:.2f}) | {row['megabytes']} | {row.get('bfloat16', '–')} |"
    )


def _model_row(setting: Setting, row: Mapping[str, Any]) -> str:
    errors = " | ".join("–" if error is None else f"{error:g}" for error in row["errors"].values())
    star = " *" if row.get("earlier") else ""
    return (
        f"| {setting.name}{star} | {errors} | {row['by_rule']} of {row['tensors']} | {row['cost']:.2f} | "
        f"{row['step_cost']:.2f} | {row['speedup']:.1f} x | {row['megabytes']} | {row['rounds']} |"
    )


def _misses(rows: Mapping[str, Any]) -> list[str]:
    """What was asked and is not reached, a sentence each."""
    found = []
    for setting in (one for one in TARGETS if one.name in rows):
        row = rows[setting.name]
        if setting.most_cost is not None and row["cost"] > setting.most_cost:
            found.append(f"- Missed: {setting.name} costs {row['cost']:.2f} forward passes, not {setting.most_cost}.")
        if setting.least_speedup is not None and row["speedup"] < setting.least_speedup:
            least = setting.least_speedup
            found.append(f"- Missed: {setting.name} is {row['speedup']:.2f} x as fast as the loop, not {least} x.")
    return found


def _dearer(rows: Mapping[str, Any]) -> list[str]:
    measured = [(one.backbone, rows[one.name]["against_step"]) for one in MODELS if one.name in rows]
    names = [f"{name} ({ratio:.2f})" for name, ratio in measured if ratio > 1]
    return [f"Dearer than an ordinary forward and backward pass: {', '.join(names)}.\n"] if names else []


def _ablation(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    names = list(found["without"])
    shortcuts = found["without"][names[0]]
    return [
        "\n## What each shortcut is worth\n",
        "Time without it over time with all (`benchmarks/gradient_norms_ablation.py`, median of",
        f"{found['rounds']} rounds, good to about 0.04); 1 where a network has no use for it.\n",
        f"| without | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *[
            " | ".join(["| " + one, *(f"{row[one]:.2f}" for row in found["without"].values())]) + " |"
            for one in shortcuts
        ],
    ]


def _unmeasured(rows: Mapping[str, Any]) -> list[str]:
    names = [setting.name for setting in dict.fromkeys((*TARGETS, *MODELS)) if setting.name not in rows]
    return [f"Not measured yet: {', '.join(names)}."] if names else []


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
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"settings": {}}
    for name, setting in settings.items():
        if options.only and setting.backbone not in options.only and name not in options.only:
            continue
        results["machine"] = machine()
        results["settings"][name] = measured(setting, options.rounds or setting.rounds)
        print(name, results["settings"][name], flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
