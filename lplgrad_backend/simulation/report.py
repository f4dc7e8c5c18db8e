"""What a simulation leaves: curves.png, table.md, results.json, and the sentences of the summary."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lplgrad_backend.errors import TrainingError
from lplgrad_backend.files import write_whole
from lplgrad_backend.simulation.measures import ONE_CLASS, Measures
from lplgrad_backend.simulation.runs import Diverged, Ended
from lplgrad_backend.simulation.statistics import (
    Comparison,
    Curves,
    Interval,
    against,
    curves,
    interval,
    saving,
    saving_sentence,
)

RANDOM = "random"


def headings(names: Measures) -> tuple[str, ...]:
    """Of the table."""
    return (
        "strategy", "AULC", "difference to random", "wins", "p", f"final {names.plain}", "balanced AULC",
        "difference to random", f"labels for random's final {names.plain}",
    )  # fmt: skip


def write(
    ended: Ended, plan: Mapping[str, Any], images: Sequence[str], title: str, out: Path, names: Measures = ONE_CLASS
) -> list[str]:
    """Write the three files into `out`, and return the summary.

    Args:
        plan: everything that is needed to run it again, as plain values.
        images: what they are called, in the order by which a round's `chosen` counts them.

    Raises:
        TrainingError: no seed is left on which strategies can be compared, since all diverged.
    """
    out.mkdir(parents=True, exist_ok=True)
    lost = losses(ended)
    try:
        found = curves(ended.runs)
    except ValueError as error:
        raise TrainingError(" ".join([f"{error} Ask for more --seeds, or another --preset.", *lost])) from error
    write_whole(out / "curves.png", picture(found, title, names))
    said = "".join(f"\n\n{sentence}" for sentence in [explanation(found, names), *lost])
    write_whole(out / "table.md", (f"# {title}{said}\n\n" + "\n".join(table(found, names)) + "\n").encode())
    kept = {"runs": [run.as_plain() for run in ended.runs], "diverged": [asdict(one) for one in ended.diverged]}
    write_whole(out / "results.json", json.dumps({"plan": plan, "images": images, **kept}, allow_nan=False).encode())
    return [*summary(found, names), *lost]


def losses(ended: Ended) -> list[str]:
    """A sentence for each strategy that diverged: with which seeds, what that means, and why the first did."""
    by_name: dict[str, list[Diverged]] = {}
    for one in ended.diverged:
        by_name.setdefault(one.strategy, []).append(one)
    compared = {run.strategy for run in ended.runs}
    return [
        f"{name} diverged with {_named([one.seed for one in of_name])} and is left out"
        f"{' there, as all others are' if name in compared else ''}: {of_name[0].reason}"
        for name, of_name in by_name.items()
    ]


def _named(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def explanation(found: Mapping[str, Curves], names: Measures = ONE_CLASS) -> str:
    """How to read the table."""
    first = next(iter(found.values()))
    several = "" if names == ONE_CLASS else f" Balanced AULC is that of {names.even}."
    return (
        f"{len(first.seeds)} seeds, {first.labels[0]} to {first.labels[-1]} labels. AULC is the mean {names.plain} over "
        "rounds, in percent; differences are in points, on the same seeds, with 95 % bootstrap intervals; p is "
        f"Holm-corrected.{several}"
    )


def table(found: Mapping[str, Curves], names: Measures = ONE_CLASS) -> list[str]:
    """Lines of Markdown, one strategy each; best AULC first."""
    plain, even = _against_random(found, balanced=False), _against_random(found, balanced=True)
    order = sorted(found, key=lambda name: -found[name].accuracy.mean())
    heads = headings(names)
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in order:
        one = found[name]
        measured = [100 * one.accuracy.mean(), 100 * one.accuracy[:, -1].mean(), 100 * one.balanced.mean()]
        aulc, final, balanced = (f"{number:.1f}" for number in measured)
        difference = _difference(plain.get(name))
        cells = [name, aulc, *difference, final, balanced, _difference(even.get(name))[0], _saving(found, name)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _against_random(found: Mapping[str, Curves], *, balanced: bool) -> dict[str, Comparison]:
    return against(found, RANDOM, balanced=balanced) if RANDOM in found else {}


def _difference(one: Comparison | None) -> tuple[str, str, str]:
    if one is None:
        return "", "", ""
    return points(one.difference), f"{one.wins:g}/{one.seeds}", probability(one.p)


def points(one: Interval) -> str:
    """A difference of shares, in points, with its interval."""
    return f"{100 * one.mean:+.1f} ({100 * one.low:+.1f} to {100 * one.high:+.1f})"


def probability(p: float) -> str:
    """Never "0.000": no number of seeds makes chance impossible."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _saving(found: Mapping[str, Curves], name: str) -> str:
    return saving_sentence(saving(found[name], found[RANDOM])) if RANDOM in found and name != RANDOM else ""


def summary(found: Mapping[str, Curves], names: Measures = ONE_CLASS) -> list[str]:
    """A sentence for each strategy, best first."""
    compared = _against_random(found, balanced=False)
    lines = []
    for name in sorted(found, key=lambda name: -found[name].accuracy.mean()):
        one, aulc = found[name], interval(found[name].accuracy.mean(1))
        sentence = f"{name}: AULC {100 * aulc.mean:.1f} %, final {names.plain} {100 * one.accuracy[:, -1].mean():.1f} %"
        if name in compared:
            paired = compared[name]
            sentence += (
                f"; {points(paired.difference)} points to random, better on {paired.wins:g} of {paired.seeds} seeds "
                f"(p {probability(paired.p)}); {saving_sentence(saving(one, found[RANDOM]))}"
            )
        lines.append(sentence + ".")
    return lines


def picture(
    found: Mapping[str, Curves],
    title: str,
    names: Measures = ONE_CLASS,
    *,
    size: tuple[float, float] = (9.0, 4.2),
    dpi: int = 90,
) -> bytes:
    """A PNG with both measures over labels: the mean of each strategy, the interval of that mean as a band,
    and every seed as a faint line."""
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    faint = min(0.4, 20 / sum(len(one.seeds) for one in found.values()))  # many lines must leave the means readable
    for axes, balanced in zip(figure.subplots(1, 2), (False, True), strict=True):
        for at, (name, one) in enumerate(sorted(found.items(), key=lambda pair: pair[0] != RANDOM)):
            colour, values = f"C{at}", one.of(balanced)
            bands = [interval(values[:, column]) for column in range(values.shape[1])]
            axes.plot(one.labels, 100 * values.T, color=colour, alpha=faint, linewidth=0.6)
            axes.fill_between(
                one.labels,
                [100 * band.low for band in bands],
                [100 * band.high for band in bands],
                color=colour,
                alpha=0.12,
            )
            axes.plot(one.labels, 100 * values.mean(0), color=colour, linewidth=1.6, label=name)
        axes.set_xlabel("labels")
        axes.set_ylabel(f"{names.even if balanced else names.plain}, %")
        axes.grid(alpha=0.2)
        low = min(np.quantile(one.of(balanced)[:, 0], 0.1) for one in found.values())
        axes.set_ylim(bottom=max(0.0, 100 * low - 5))
    figure.axes[0].legend(fontsize=7)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()


def plain(one: Comparison | Interval) -> dict[str, Any]:
    """For a file."""
    return asdict(one)
