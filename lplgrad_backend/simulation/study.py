"""A whole simulation: read the data, prepare them, run what is missing, write what was found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lplgrad_backend.errors import SettingsError
from lplgrad_backend.lplgrad.acquisition import STRATEGIES
from lplgrad_backend.settings import Settings
from lplgrad_backend.simulation import report
from lplgrad_backend.simulation.datasets import DataSet, open_data
from lplgrad_backend.simulation.features import prepare
from lplgrad_backend.simulation.material import Budget, Material
from lplgrad_backend.simulation.measures import measures_of
from lplgrad_backend.simulation.runs import run_all, wanted_runs

USUAL = ("random", "lplgrad-coverage", "badge", "margin", "entropy", "lplgrad")
FORMAT = 1

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, of how much."""


@dataclass(frozen=True)
class Study:
    """What to simulate."""

    strategies: tuple[str, ...]
    seeds: int
    budget: Budget


def strategies_named(text: str) -> tuple[str, ...]:
    """Names separated by commas; `all` for all there are. Random is always among them, since it is compared with.

    Raises:
        SettingsError: there is no such strategy.
    """
    names = [*STRATEGIES] if text.strip() == "all" else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in STRATEGIES:
            raise SettingsError("--strategies", name, f"names out of {', '.join(STRATEGIES)}")
    return tuple(dict.fromkeys([report.RANDOM, *names]))


def budget_named(text: str, cold_start: bool = False) -> Budget:
    """`FIRST:EACH:LAST`, the labels at first, more with every round, and in all.

    Args:
        cold_start: the first are those that the backend would ask for, instead of any.

    Raises:
        SettingsError: it is not of this form.
    """
    try:
        first, each, last = (int(part) for part in text.split(":"))
    except ValueError:
        first, each, last = 0, 0, 0
    if not (2 <= first < last and each >= 1):
        wish = "FIRST:EACH:LAST, such as 20:20:200: labels at first, more with every round, and in all"
        raise SettingsError("--budget", text, wish)
    return Budget(first, each, last, cold_start=cold_start)


def simulate(
    where: str,
    settings: Settings,
    study: Study,
    out: Path,
    processes: int,
    progress: Progress,
    say: Callable[[str], None],
) -> list[str]:
    """Simulate, write curves.png, table.md and results.json into `out`, and return the summary. Finished runs stay in
    `out` and are not made again, as long as data, network, recipe and budget are the same.

    Args:
        say: told how the network is trained before any run begins, since runs from scratch may take hours.

    Raises:
        SettingsError: data, weights or the folder cannot be used.
        LPLGradError: the data cannot be read or learned from, or every seed diverged.
    """
    data = open_data(where, settings)
    prepared = prepare(data, settings, processes, lambda done, total: progress("reading images", done, total))
    for sentence in prepared.sentences:
        say(sentence)
    plan = _plan(data, prepared.material, study)
    folder = out / f"runs-{_digest(plan, prepared.material)}"
    wanted = wanted_runs(study.strategies, study.seeds)
    try:
        ended = run_all(
            prepared.material,
            study.budget,
            wanted,
            folder,
            processes,
            lambda done, total: progress("runs", done, total),
        )
        begun = ", cold start" if study.budget.cold_start else ""
        title = f"{data.name}: {prepared.material.architecture.backbone}{begun}"
        return report.write(ended, plan, prepared.names, title, out, measures_of(data.multiple))
    except OSError as error:
        raise SettingsError("--out", str(out), f"a folder that can be written ({error.strerror})") from error


def _plan(data: DataSet, material: Material, study: Study) -> dict[str, Any]:
    """Everything that is needed to make the runs again, as plain values."""
    return {
        "format": FORMAT,
        "data": data.name,
        "content": data.pictures.digest(),
        "classes": data.classes,
        "images": len(material.targets),
        "several_classes_per_image": material.multiple,
        "measures": asdict(measures_of(material.multiple)),
        "held_out": None if material.held_out is None else int(material.held_out.sum()),
        "architecture": material.architecture.as_plain(),
        "recipe": material.recipe.as_plain(),
        "budget": asdict(study.budget),
        "strategies": study.strategies,
        "seeds": study.seeds,
    }


def _digest(plan: dict[str, Any], material: Material) -> str:
    """What every run depends on; more strategies or seeds go on with the runs that there are."""
    kept = {name: value for name, value in plan.items() if name not in ("strategies", "seeds")}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    digest.update(material.targets.tobytes())
    for name, value in sorted(material.state.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:16]
