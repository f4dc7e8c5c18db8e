"""What each choice of the recipes `frozen` and `scratch` is worth: the same labels and starts, that choice made otherwise.

    .venv/bin/python -m benchmarks.recipes [--seeds 10] [--data FOLDER] [--weights FILE] [--missing]

Digits come with scikit-learn; FOLDER holds trashnet-photos.zip and mobilenet_v2_x0.35_features.pth. Labels are drawn at
random, accuracy is that on held-out images. Writes recipes.md and recipes.json beside itself; with --missing only what
recipes.json does not have yet is trained.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.label_efficiency import DIGITS, FROZEN, RARE, RUNS, Setting, read, settings_for
from benchmarks.label_efficiency import WEIGHTS as WEIGHTS_FILE
from lplgrad_backend.lplgrad.network import Looked, Network
from lplgrad_backend.lplgrad.recipe import FROM_SCRATCH, HEAD, Recipe
from lplgrad_backend.lplgrad.training import fit, look_at
from lplgrad_backend.simulation.features import prepare
from lplgrad_backend.simulation.material import Budget, Material, divide

HERE = Path(__file__).parent
WARM = "warm start from a network of half the labels"
LOWEST = "the weights of the epoch with the lowest loss, not the last one's"
HEADS: Mapping[str, Recipe] = {
    "frozen, as it is": HEAD,
    "every image equally often (not every class)": replace(HEAD, balanced=False),
    "100 batches, no stop rule": replace(HEAD, epochs=1, steps=100, enough=0.0),
    "1,200 batches, no stop rule": replace(HEAD, epochs=1, steps=1200, enough=0.0),
    WARM: HEAD,
    LOWEST: replace(HEAD, kept="lowest"),
}
WHOLE: Mapping[str, Recipe] = {
    "scratch, as it is": FROM_SCRATCH,
    "ranking loss reaches the main model, lambda 0.1": replace(FROM_SCRATCH, cut_after=1.0),
    "ranking loss reaches the main model, lambda 1": replace(FROM_SCRATCH, cut_after=1.0, ranking_weight=1.0),
    "every image equally often (not every class)": replace(FROM_SCRATCH, balanced=False),
    "no shifted images": replace(FROM_SCRATCH, shift=0.0),
    "40 batches, no stop rule": replace(FROM_SCRATCH, epochs=1, steps=40, enough=0.0),
    "100 batches, no stop rule": replace(FROM_SCRATCH, epochs=1, enough=0.0),
    "200 batches": replace(FROM_SCRATCH, steps=200),
    WARM: FROM_SCRATCH,
    LOWEST: replace(FROM_SCRATCH, kept="lowest"),
}


@dataclass(frozen=True)
class Case:
    """Labels drawn from a material."""

    name: str
    material: Material
    labels: int
    recipes: Mapping[str, Recipe]
    pool: int


@dataclass(frozen=True)
class Trained:
    """One network. `seconds`: processor time of training it."""

    case: str
    labels: int
    recipe: str
    seed: int
    accuracy: float
    balanced_accuracy: float
    seconds: float


def material_of(setting: Setting, asked: argparse.Namespace) -> Material:
    settings = settings_for(setting, asked.weights or asked.data / WEIGHTS_FILE, RUNS)
    return prepare(read(setting, asked.data, settings), settings, 1).material


def cases(asked: argparse.Namespace) -> Iterator[Case]:
    photos, digits = material_of(FROZEN[0], asked), material_of(DIGITS, asked)
    for labels in (30, 150):
        yield Case("TrashNet", photos, labels, HEADS, 2000)
        yield Case("TrashNet, imbalanced", replace(photos, rare=RARE), labels, HEADS, 2000)
    for labels in (20, 100):
        yield Case("digits", digits, labels, WHOLE, 1000)
        yield Case("digits, imbalanced", replace(digits, rare=RARE), labels, WHOLE, 1000)


def part(material: Material, at: np.ndarray) -> Looked | Tensor:
    rows, seen = torch.from_numpy(at), material.seen
    if isinstance(seen, Tensor):
        return seen[rows]
    return Looked(seen.logits[rows], seen.features[rows], tuple(level[rows] for level in seen.pooled))


def train(network: Network, material: Material, recipe: Recipe, labelled: np.ndarray, seed: int) -> None:
    classes = material.architecture.classes
    targets = torch.nn.functional.one_hot(torch.from_numpy(material.labels[labelled]), classes).float()
    for _ in fit(network, part(material, labelled), targets, recipe, seed=seed, device=torch.device("cpu")):
        pass


def trained(case: Case, name: str, seed: int) -> Trained:
    material, recipe = case.material, case.recipes[name]
    division = divide(material, Budget(case.labels, case.labels, case.labels, case.pool), seed)
    torch.manual_seed(seed)
    network = Network(material.architecture)
    network.load_state_dict({**network.state_dict(), **material.state})
    if name == WARM:
        train(network, material, recipe, division.first[: case.labels // 2], seed)
    began = time.process_time()
    train(network, material, recipe, division.first, seed)
    seconds = time.process_time() - began
    seen, truth = part(material, division.held_out), material.labels[division.held_out]
    with torch.no_grad():
        logits = network.head(seen.features) if isinstance(seen, Looked) else look_at(network, seen).logits
    right = logits.argmax(1).numpy() == truth
    balanced = float(np.mean([right[truth == one].mean() for one in np.unique(truth)]))
    return Trained(case.name, case.labels, name, seed, float(right.mean()), balanced, seconds)


def introduction() -> str:
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"""# What each choice of the recipes is worth

Made by `benchmarks/recipes.py`; {platform.machine()}, 1 thread of {os.cpu_count()} cores, {versions}, other programs on the
same cores. The same labels, drawn at random, and the same starting weights in all rows; differences are paired, ± their
standard error. TrashNet: a head on frozen MobileNetV2 x0.35. Digits: ResNet-18 with a small stem, from scratch, 8 px."""


def table(every: Sequence[Trained]) -> list[str]:
    lines = []
    for case, labels in dict.fromkeys((one.case, one.labels) for one in every):
        of = [one for one in every if (one.case, one.labels) == (case, labels)]
        lines += [f"\n## {case}, {labels} labels\n", "| | seeds | accuracy | to the first row | balanced accuracy |"
                  " to the first row | CPU seconds |", "|---|---|---|---|---|---|---|"]  # fmt: skip
        base = [one for one in of if one.recipe == of[0].recipe]
        for name in dict.fromkeys(one.recipe for one in of):
            lines.append(_row(name, [one for one in of if one.recipe == name], base))
    return lines


def _row(name: str, these: Sequence[Trained], base: Sequence[Trained]) -> str:
    shown = [name, str(len(these))]
    for of in ("accuracy", "balanced_accuracy"):
        values = 100 * np.array([getattr(one, of) for one in these])
        away = values - 100 * np.array([getattr(one, of) for one in base])[: len(values)]
        error = away.std(ddof=1) / len(away) ** 0.5
        shown += [f"{values.mean():.1f} %", "" if not away.any() else f"{away.mean():+.1f} ± {error:.1f}"]
    return f"| {' | '.join(shown)} | {np.median([one.seconds for one in these]):.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data")
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--missing", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads((HERE / "recipes.json").read_text()) if asked.missing else []
    known = {(one.case, one.labels, one.recipe, one.seed): one for one in (Trained(**row) for row in rows)}
    every = []
    for case in cases(asked):
        for seed, name in itertools.product(range(asked.seeds), case.recipes):
            every.append(known.get((case.name, case.labels, name, seed)) or trained(case, name, seed))
        print(f"{case.name}, {case.labels} labels: done", flush=True)
    (HERE / "recipes.md").write_text("\n".join([introduction(), *table(every)]) + "\n")
    (HERE / "recipes.json").write_text(json.dumps([asdict(one) for one in every]) + "\n")


if __name__ == "__main__":
    main()
