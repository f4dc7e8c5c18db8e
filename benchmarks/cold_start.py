"""What the cold start is worth: typical images as first labels, against any, on label_efficiency's variants.

    .venv/bin/python -m benchmarks.cold_start [--seeds 30] [--scratch-seeds 10] [--processes 2] [--data FOLDER]

Runs that begin with typical images are made here; those that begin with any are label_efficiency.json's, of the same seeds,
held-out images and pools. From scratch only the first training is repeated. Runs are kept below --runs
(benchmarks/.runs), so that what was stopped goes on where it was. Writes cold_start.md and cold_start.json beside itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.label_efficiency import FROZEN, HERE, RUNS, SCRATCH, Variant, variants
from benchmarks.label_efficiency_report import read_finished
from lplgrad_backend.lplgrad.acquisition import DEFAULT
from lplgrad_backend.simulation.material import divide
from lplgrad_backend.simulation.replay import Round, Run
from lplgrad_backend.simulation.report import points
from lplgrad_backend.simulation.runs import run_all
from lplgrad_backend.simulation.statistics import Interval, curves, interval, saving, saving_sentence

Measure = Callable[[Run], float]
BySeed = Mapping[int, Run]


@dataclass(frozen=True)
class Pairs:
    """Runs of a variant, by seed: of the default from typical labels and from any, and in random order from any. `classes`:
    how many the first labels show if they are any, in the mean."""

    name: str
    kind: str
    typical: BySeed
    usual: BySeed
    chance: BySeed
    classes: float

    @property
    def balanced(self) -> bool:
        return self.kind == "imbalanced"

    @property
    def whole(self) -> bool:
        """Whether the runs go on after the first labels."""
        return all(len(run.rounds) > 1 for run in self.typical.values())


def pairs_of(variant: Variant, known: Sequence[Run], seeds: int, whole: bool, asked: argparse.Namespace) -> Pairs:
    last = variant.budget.last if whole else variant.budget.first
    folder = asked.runs / f"cold {variant.name} {variant.kind}".replace(" ", "-")
    wanted = [(DEFAULT, seed) for seed in range(seeds)]
    budget = replace(variant.budget, last=last, cold_start=True)
    made = run_all(variant.material, budget, wanted, folder, asked.processes).runs

    def named(strategy: str) -> BySeed:
        return {run.seed: run for run in known if run.strategy == strategy and run.seed < seeds}

    classes = np.mean([_classes_at_first(variant, seed) for seed in range(seeds)])
    typical = {run.seed: run for run in made}
    return Pairs(variant.name, variant.kind, typical, named(DEFAULT), named("random"), float(classes))


def _classes_at_first(variant: Variant, seed: int) -> int:
    first = divide(variant.material, variant.budget, seed).first
    return int(variant.material.targets[first].any(0).sum())


def difference(one: BySeed, other: BySeed, measure: Measure) -> Interval:
    """Mean over the seeds that both have, with its bootstrap interval."""
    both = sorted({*one} & {*other})
    return interval(np.array([measure(one[seed]) - measure(other[seed]) for seed in both]))


def page(found: Sequence[Pairs]) -> str:
    return "\n".join([
        "# What the cold start is worth\n",
        "Made by `benchmarks/cold_start.py`: the variants of [label_efficiency.md](label_efficiency.md), begun with the",
        "images that the backend asks for before there is a version, against as many drawn at random, on the same seeds.",
        "Accuracy, balanced where classes are rare, in points, with 95 % bootstrap intervals. *First* is right after the",
        "first labels; *classes* is how many of them these show, typical and any; *whole run* is the mean over all rounds,",
        "of the default in both, and then against random order from any labels. From scratch, images are compared by",
        "colours and edges, as where no weights can be had.\n",
        "| variant | seeds | labels | first | classes | whole run | against random order | labels saved against it |",
        "|---|---|---|---|---|---|---|---|",
        *map(_row, found),
    ]) + "\n"  # fmt: skip


def _row(one: Pairs) -> str:
    begin = one.typical[0].rounds[0].labels

    def at_first(run: Run) -> float:
        return _accuracy(run.rounds[0], one.balanced)

    def overall(run: Run) -> float:
        return float(np.mean([_accuracy(each, one.balanced) for each in run.rounds]))

    cells = [
        f"{one.name}, {one.kind}", str(len(one.typical)), str(begin), points(difference(one.typical, one.usual, at_first)),
        f"{_classes(one.typical):.1f} and {one.classes:.1f}",
    ]  # fmt: skip
    if one.whole:
        of = curves([*one.typical.values(), *[run for run in one.chance.values() if run.seed in one.typical]])
        cells += [
            points(difference(one.typical, one.usual, overall)), points(difference(one.typical, one.chance, overall)),
            saving_sentence(saving(of[DEFAULT], of["random"], balanced=one.balanced)),
        ]  # fmt: skip
    return "| " + " | ".join(cells + [""] * (8 - len(cells))) + " |"


def _accuracy(one: Round, balanced: bool) -> float:
    return one.balanced_accuracy if balanced else one.accuracy


def _classes(runs: BySeed) -> float:
    return float(np.mean([sum(number > 0 for number in run.rounds[0].per_class) for run in runs.values()]))


def write(found: Sequence[Pairs]) -> None:
    plain = [
        {"variant": one.name, "kind": one.kind, "runs": [_plain(run) for run in one.typical.values()]} for one in found
    ]
    (HERE / "cold_start.json").write_text(json.dumps(plain) + "\n")
    (HERE / "cold_start.md").write_text(page(found))


def _plain(run: Run) -> dict[str, object]:
    return {
        "seed": run.seed, "labels": [each.labels for each in run.rounds], "per_class_at_first": run.rounds[0].per_class,
        "accuracy": [round(each.accuracy, 6) for each in run.rounds],
        "balanced_accuracy": [round(each.balanced_accuracy, 6) for each in run.rounds],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--scratch-seeds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data")
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--runs", type=Path, default=RUNS)
    asked = parser.parse_args()
    known = {(one.name, one.kind): one.runs for one in read_finished(HERE)}
    found: list[Pairs] = []
    for settings, seeds, whole in ((FROZEN, asked.seeds, True), (SCRATCH, asked.scratch_seeds, False)):
        for variant in variants(settings, asked):
            found.append(pairs_of(variant, known[variant.name, variant.kind], seeds, whole, asked))
            print(_row(found[-1]), flush=True)
            write(found)


if __name__ == "__main__":
    main()
