"""What the default preset makes of 200 labelled images: held-out accuracy and seconds, on digits, CIFAR-10 and TrashNet.

    .venv/bin/python -m benchmarks.training [--seeds 3] [--labels 200] [--threads 2] [--data FOLDER]

Digits come with scikit-learn. The others are read from cifar10-subset.zip, trashnet-photos.zip and
mobilenet_v2_x0.35_features.pth in FOLDER, and left out without them. Writes training.md and training.json beside itself.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.lplgrad.objective import main_loss
from lplgrad_backend.lplgrad.recipe import Recipe, choose
from lplgrad_backend.lplgrad.training import fit, look_at
from lplgrad_backend.preparation import choose_side
from lplgrad_backend.pretrained import load_into, resolve

HERE = Path(__file__).parent
WEIGHTS = "mobilenet_v2_x0.35_features.pth"
HELD_OUT = 600


@dataclass(frozen=True)
class Data:
    """Images uint8 [N, 3, S, S] and labels [N] to draw the labelled ones from, and the held-out ones."""

    images: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


@dataclass(frozen=True)
class Setting:
    """One line of the table: data, and the network that the trainer would choose for it."""

    name: str
    load: Callable[[Path, int], Data]
    longest: int
    backbone: str = "resnet18"
    width: float | None = None


@dataclass(frozen=True)
class Run:
    """What one training run gave."""

    setting: str
    seed: int
    side: int
    accuracy: float
    balanced_accuracy: float
    loss_order: float  # Spearman correlation of predicted and true loss on held-out images
    training_loss: float
    epochs: int
    seconds: float
    cpu_seconds: float


def digits(_: Path, side: int) -> Data:
    found = load_digits()
    pixels = [np.repeat(np.uint8(image * 255 / 16)[:, :, None], 3, 2) for image in found.images]
    images, labels = _stacked([Image.fromarray(one) for one in pixels], side), torch.tensor(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    kept, held = order[HELD_OUT:], order[:HELD_OUT]
    return Data(images[kept], labels[kept], images[held], labels[held])


def cifar(folder: Path, side: int) -> Data:
    return _zipped(folder / "cifar10-subset.zip", side)


def trashnet(folder: Path, side: int) -> Data:
    return _zipped(folder / "trashnet-photos.zip", side)


def _zipped(file: Path, side: int) -> Data:
    parts: dict[str, tuple[list[Image.Image], list[str]]] = {"train": ([], []), "test": ([], [])}
    with zipfile.ZipFile(file) as archive:
        for row in csv.DictReader(io.StringIO(archive.read("labels.csv").decode())):
            images, names = parts[row["split"]]
            image = Image.open(io.BytesIO(archive.read(row["path"]))).convert("RGB")
            images.append(image.resize((side, side), Image.Resampling.BILINEAR))
            names.append(row["label"])
    classes = sorted(set(parts["train"][1]))
    stacks = [
        (_stacked(images, side), torch.tensor([classes.index(n) for n in names])) for images, names in parts.values()
    ]
    return Data(*stacks[0], *stacks[1])


def _stacked(images: list[Image.Image], side: int) -> Tensor:
    resized = [np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()


SETTINGS = (
    Setting("digits, ResNet-18 from scratch", digits, 8),
    Setting("CIFAR-10 subset, ResNet-18 from scratch", cifar, 32),
    Setting("TrashNet, MobileNetV2 x0.35 pretrained", trashnet, 341, "mobilenet_v2", 0.35),
    Setting("TrashNet, ResNet-18 from scratch", trashnet, 341),
)


def train(setting: Setting, data: Data, side: int, recipe: Recipe, labels: int, seed: int, folder: Path) -> Run:
    """One run, its clock around everything from building the network to its last step."""
    chosen = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(seed))[:labels]
    targets = torch.nn.functional.one_hot(data.labels[chosen], int(data.labels.max()) + 1).float()
    clock, cpu = time.perf_counter(), time.process_time()
    torch.manual_seed(seed)
    network = build(setting, side, targets.shape[1], folder)
    *_, last = fit(network, data.images[chosen], targets, recipe, seed=seed, device=torch.device("cpu"))
    seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    return Run(
        setting.name, seed, side, *measure(network, data), last.loss, last.epoch, round(seconds, 2), round(cpu_seconds, 2)
    )  # fmt: skip


def build(setting: Setting, side: int, classes: int, folder: Path) -> Network:
    weights = str(folder / WEIGHTS) if setting.width else "none"
    pretrained = resolve(weights, "half", setting.backbone, setting.longest, folder)
    options = {"width_mult": setting.width} if setting.width else {}
    small = setting.longest <= 64
    network = Network(
        Architecture(setting.backbone, classes, False, side, small, pretrained.mean, pretrained.std, options)
    )
    if pretrained.state is not None:
        load_into(network.backbone, pretrained.state)
    return network


def measure(network: Network, data: Data) -> tuple[float, float, float]:
    """Accuracy, balanced accuracy, and how well the predicted losses order the true ones, on held-out images."""
    looked = look_at(network, data.held_out)
    said = looked.logits.argmax(1)
    with torch.no_grad():
        predicted = network.loss_prediction(looked.pooled)
    one_hot = torch.nn.functional.one_hot(data.held_out_labels, looked.logits.shape[1]).float()
    ranks = torch.stack([predicted, main_loss(looked.logits, one_hot, False)]).argsort(1).argsort(1).float()
    accuracy = float((said == data.held_out_labels).float().mean())
    return accuracy, float(balanced_accuracy_score(data.held_out_labels, said)), float(torch.corrcoef(ranks)[0, 1])


def table(runs: list[Run], labels: int, threads: int) -> str:
    lines = [
        f"# The default preset with {labels} labelled images\n",
        "Made by `benchmarks/training.py`. Means over seeds, accuracy with its standard deviation; the labelled images are",
        "drawn at random, the held-out ones are never trained on. Seconds are those of building and training, without",
        "decoding images. Loss order is Spearman's correlation of predicted and true loss on held-out images.",
        f"{platform.machine()}, {threads} threads of {os.cpu_count()} cores, Python {platform.python_version()},"
        f" torch {torch.__version__}; other programs were running on the same cores, so CPU seconds say more.\n",
        "| | side | seeds | accuracy | balanced accuracy | loss order | epochs | seconds | CPU seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(run.setting for run in runs):
        some = [run for run in runs if run.setting == name]
        mean = {key: np.mean([getattr(run, key) for run in some]) for key in asdict(some[0]) if key != "setting"}
        spread = np.std([run.accuracy for run in some], ddof=1) if len(some) > 1 else float("nan")
        lines.append(
            f"| {name} | {some[0].side} | {len(some)} | {100 * mean['accuracy']:.1f} ± {100 * spread:.1f} % | "
            f"{100 * mean['balanced_accuracy']:.1f} % | {mean['loss_order']:.2f} | {mean['epochs']:.0f} | "
            f"{mean['seconds']:.0f} | {mean['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    runs = []
    for setting in SETTINGS:
        if setting.load is not digits and not asked.data.is_dir():
            print(f"{setting.name}: left out, there is no {asked.data}")
            continue
        side = choose_side(setting.longest, setting.width is not None)
        data = setting.load(asked.data, side)
        for seed in range(asked.seeds):
            cpu = torch.device("cpu")
            recipe, _ = choose("auto", setting.width is not None, asked.labels, cpu, side)
            runs.append(train(setting, data, side, recipe, asked.labels, seed, asked.data))
            print(runs[-1], flush=True)
    (HERE / "training.md").write_text(table(runs, asked.labels, asked.threads))
    (HERE / "training.json").write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")


if __name__ == "__main__":
    main()
