"""The report of `benchmarks.label_efficiency`: a table per variant, the targets, and the default against three others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lplgrad_backend.lplgrad.acquisition import DEFAULT
from lplgrad_backend.simulation.material import Budget
from lplgrad_backend.simulation.replay import Round, Run
from lplgrad_backend.simulation.report import explanation, picture, points, probability, table
from lplgrad_backend.simulation.statistics import FEWEST, Curves, Interval, against, curves, saving, saving_sentence

OTHERS = ("random", "badge", "margin")
SCRATCH = "from scratch"  # ends the names of variants without pretrained weights
WANTED = {"random": 2.5, "badge": 1.0, "margin": 1.0}  # points of AULC
INTRODUCTION = f"""# What strategies save

Made by `benchmarks/label_efficiency.py`, which says how data and budgets are chosen. MobileNetV2 x0.35, pretrained on
ImageNet and frozen, a linear head trained with the default preset (from scratch: ResNet-18, digits at their own 8 px
and photos at 16 px, which keeps a training near a minute; its stem is the small one for digits and CIFAR-10 and the
usual one for TrashNet, as the backend chooses by the size of the files). Plain `lplgrad` is the paper's order:
on frozen features its joint training cannot disturb the main model, so that the preset `paper` differs by nothing
else there. From scratch that preset, with the authors' training, has a row of its own where it was run; a variant
shows the strategies that were run on all its seeds, and has a sentence for one that was run on fewer: on TrashNet
with copies that preset has nine, since at the authors' learning rate the loss of seed 1 grew beyond all numbers in
the first round (of seed 4 instead, with another rounding). Runs come from processors with and without AVX-512, and
some from after training without it got faster (training_step.md); those differ by rounding that training makes
larger. Every strategy gets the same held-out images, first labels (drawn at random) and starting weights per seed;
held-out images decide nothing. Pools have at most 2,000 images (from scratch 400). *Imbalanced*: of these, every
second class keeps as many as are a tenth of the most frequent one's.
*Duplicated*: every image is in the pool three times. `{DEFAULT}` is the default and is watched as in production
(where its order looks unhealthy, BADGE orders that round); the others do what their names say. TrashNet and CIFAR-10
were also used to find the default's rule, before this program was written, and imbalanced CIFAR-10 with seeds 100 to
111 to find its factor for rare classes (from no saving to 25 % of the labels; powers 1/2 and 1 did equally well);
nothing was tuned on the numbers below.
"""


@dataclass(frozen=True)
class Finished:
    """The runs of one variant."""

    name: str
    kind: str
    budget: Budget
    runs: Sequence[Run]


def write_report(finished: Sequence[Finished], folder: Path) -> None:
    found = [(one, complete(one.runs)) for one in finished]
    text = [INTRODUCTION, *_overview(found)]
    for one, of_strategy in found:
        name = f"{one.name}, {one.kind}"
        file = f"label_efficiency_{one.name}_{one.kind}.png".replace(" ", "_").replace("-", "_").lower()
        (folder / file).write_bytes(picture(of_strategy, name, size=(8.0, 3.4), dpi=72))
        text += [f"\n## {name}\n", explanation(of_strategy), "", *table(of_strategy), "", *on_fewer_seeds(one.runs)]
        text += [f"![curves]({file})"]
    (folder / "label_efficiency.md").write_text("\n".join(text) + "\n")
    (folder / "label_efficiency.json").write_text(json.dumps([_plain(one) for one in finished]) + "\n")


def complete(runs: Sequence[Run]) -> dict[str, Curves]:
    """Curves of the strategies that have as many seeds as the default."""
    counted = Counter(run.strategy for run in runs)
    return curves([run for run in runs if counted[run.strategy] >= counted[DEFAULT]])


def on_fewer_seeds(runs: Sequence[Run]) -> list[str]:
    """A sentence for each strategy that has enough seeds for an interval, and fewer than the default."""
    counted, lines = Counter(run.strategy for run in runs), []
    for name in (one for one in counted if FEWEST <= counted[one] < counted[DEFAULT]):
        found = against(curves([run for run in runs if run.strategy in (name, "random")]), "random")[name]
        lines += [
            f"`{name}` on {found.seeds} seeds alone: {points(found.difference)} to random, wins {found.wins:g}.\n"
        ]
    return lines


Found = list[tuple[Finished, dict[str, Curves]]]


def _overview(found: Found) -> list[str]:
    """The default against three others, on every variant and over all, beside the targets."""
    head = ["## The default against random, BADGE and margin\n",
            "AULC differences in points, 95 % bootstrap intervals; wins over seeds; p Holm-corrected over the strategies.\n",
            "| variant | seeds | " + " | ".join(f"to {other}" for other in OTHERS) + " | labels saved against random |",
            "|" + "---|" * (len(OTHERS) + 3)]  # fmt: skip
    rows = [_row(*pair) for pair in found]
    parts = {
        "on frozen features": [pair for pair in found if not pair[0].name.endswith(SCRATCH)],
        "from scratch": [pair for pair in found if pair[0].name.endswith(SCRATCH)],
        "all": found,
    }
    means = [
        f"| **{name}, mean** | | {' | '.join(points(overall(part, other)) for other in OTHERS)} | |"
        for name, part in parts.items()
        if part
    ]
    return [*head, *rows, *means, "", *_targets(found)]


def _row(one: Finished, of: dict[str, Curves]) -> str:
    return f"| {one.name}, {one.kind} | {_seeds(of)} | {' | '.join(_cells(of))} | {_saved(one, of)} |"


def _seeds(of: dict[str, Curves]) -> int:
    return len(of[DEFAULT].seeds)


def _cells(of: dict[str, Curves]) -> list[str]:
    cells = []
    for other in OTHERS:
        one = against(of, other)[DEFAULT]
        cells.append(f"{points(one.difference)}, {one.wins:g}/{one.seeds}, p {probability(one.p)}")
    return cells


def _saved(one: Finished, of: dict[str, Curves]) -> str:
    balanced = one.kind == "imbalanced"
    sentence = saving_sentence(saving(of[DEFAULT], of["random"], balanced=balanced))
    return f"{sentence} (balanced accuracy)" if balanced else sentence


def overall(found: Found, other: str) -> Interval:
    """Mean over variants of the paired differences, each variant with the same weight; seeds are resampled in each."""
    random = np.random.default_rng(0)
    means, resamples = [], np.zeros(10_000)
    for _, of in found:
        differences = of[DEFAULT].accuracy.mean(1) - of[other].accuracy.mean(1)
        means.append(differences.mean())
        chosen = random.integers(0, len(differences), (len(resamples), len(differences)))
        resamples += differences[chosen].mean(1) / len(found)
    low, high = np.quantile(resamples, [0.025, 0.975])
    return Interval(float(np.mean(means)), float(low), float(high))


def _targets(found: Found) -> list[str]:
    lines = ["Targets for the default, and what was reached:\n"]
    for other, wanted in WANTED.items():
        reached = overall(found, other)
        kept = "reached" if 100 * reached.mean >= wanted and reached.low > 0 else "missed"
        lines.append(f"- {wanted:+.1f} points to {other} over all variants: {points(reached)}: **{kept}**")
    worse = [f"{one.name}, {one.kind}" for one, of in found
             if (compared := against(of, "random")[DEFAULT]).difference.high < 0 and compared.p < 0.05]  # fmt: skip
    lines.append(
        f"- never significantly worse than random: **{'missed: ' + '; '.join(worse) if worse else 'reached'}**"
    )
    every = [_shown(saving(of[DEFAULT], of["random"])) for _, of in found]
    lines.append(_share("median variant, 0 where none is shown", float(np.median(every)), 0.25))
    rare = [_shown(saving(of[DEFAULT], of["random"], balanced=True)) for one, of in found if one.kind == "imbalanced"]
    if rare:
        lines.append(
            _share("imbalanced variants, balanced accuracy, median, 0 where none is shown", float(np.median(rare)), 0.4)
        )
    return lines


def _shown(saved: Interval) -> float:
    """What a variant counts for: nothing where no saving is shown."""
    return saved.mean if saved.low > 0 else 0.0


def _share(what: str, reached: float, wanted: float) -> str:
    kept = "reached" if reached >= wanted else "missed"
    return f"- {wanted:.0%} of labels saved against random ({what}): {reached:.0%}: **{kept}**"


def _plain(one: Finished) -> dict[str, object]:
    """What the tables are made of, without the chosen images, which would be megabytes."""
    return {
        "variant": one.name, "kind": one.kind, "budget": asdict(one.budget),
        "runs": [{
            "strategy": run.strategy, "seed": run.seed, "labels": [each.labels for each in run.rounds],
            "accuracy": [round(each.accuracy, 6) for each in run.rounds],
            "balanced_accuracy": [round(each.balanced_accuracy, 6) for each in run.rounds],
        } for run in one.runs],
    }  # fmt: skip


def read_finished(folder: Path) -> list[Finished]:
    """What label_efficiency.json tells of runs; of their rounds the number of labels and both accuracies alone."""
    return [
        Finished(one["variant"], one["kind"], Budget(**one["budget"]), [_run(run) for run in one["runs"]])
        for one in json.loads((folder / "label_efficiency.json").read_text())
    ]


def _run(plain: Mapping[str, Any]) -> Run:
    columns = zip(plain["labels"], plain["accuracy"], plain["balanced_accuracy"], strict=True)
    rounds = (Round(*one, (), (), None, None, None, None, 0, 0.0, 0.0, 0.0) for one in columns)
    return Run(plain["strategy"], plain["seed"], 0, tuple(rounds))
