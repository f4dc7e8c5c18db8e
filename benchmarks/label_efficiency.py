"""What strategies save: nine variants of three data sets on frozen features, and nine from scratch.

    .venv/bin/python -m benchmarks.label_efficiency [--minutes 300] [--processes 2] [--data FOLDER] [--weights FILE]

FOLDER holds cifar10-subset.zip and trashnet-photos.zip; FILE is mobilenet_v2_x0.35_features.pth unless another is named.
Digits come with scikit-learn. Runs are kept below `--runs` (benchmarks/.runs), so that what was stopped goes on where it
was. After `--minutes` nothing more is begun, and the report says how many seeds there are. `--missing` runs only what
label_efficiency.json does not have yet, and adds to it; `--only NAME` is for one setting. Writes label_efficiency.md,
label_efficiency.json and a curve for each variant beside itself.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.label_efficiency_report import Finished, read_finished, write_report
from lplgrad_backend.demo.dataset import write_digits
from lplgrad_backend.lplgrad.recipe import PAPER
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.simulation.datasets import DataSet, open_data
from lplgrad_backend.simulation.features import prepare
from lplgrad_backend.simulation.material import Budget, Material
from lplgrad_backend.simulation.replay import Run
from lplgrad_backend.simulation.runs import Wanted, run_all, wanted_runs

HERE = Path(__file__).parent
RUNS = HERE / ".runs"
WEIGHTS = "mobilenet_v2_x0.35_features.pth"
SEEDS = 30
COMPARED = ("random", "lplgrad-coverage", "badge", "margin")
STRATEGIES = (*COMPARED, "entropy", "lplgrad", "lplgrad-ladder", "predicted-loss", "coreset")
AS_PUBLISHED = "lplgrad, preset paper"
PASSES = ((COMPARED, 4), (COMPARED, 15), (COMPARED, SEEDS), (STRATEGIES, 10), (STRATEGIES, SEEDS))
SCRATCH_PASSES = (*((COMPARED, seeds) for seeds in (2, 4, 6, 8, 10)), (STRATEGIES, 10), ((AS_PUBLISHED,), 10))
"""What is run in turn, and how many seeds of it."""


@dataclass(frozen=True)
class Setting:
    """A data set and how it is labelled. `side`: of the images the network sees, in pixels."""

    name: str
    source: str
    side: int
    budget: Budget
    backbone: str = "mobilenet_v2"
    options: str = '{"width_mult": 0.35}'
    frozen: bool = True


FROZEN = (
    Setting("TrashNet", "trashnet-photos.zip", 161, Budget(30, 30, 180, 2000)),
    Setting("CIFAR-10", "cifar10-subset.zip", 97, Budget(40, 40, 240, 2000)),
    Setting("digits", "digits", 97, Budget(20, 20, 120, 2000)),
)
SMALL = ("resnet18", "{}")
DIGITS = Setting("digits from scratch", "digits", 8, Budget(20, 20, 80, 400), *SMALL, frozen=False)
SCRATCH = (
    Setting("TrashNet from scratch", "trashnet-photos.zip", 16, Budget(30, 30, 120, 400), *SMALL, frozen=False),
    Setting("CIFAR-10 from scratch", "cifar10-subset.zip", 16, Budget(40, 40, 160, 400), *SMALL, frozen=False),
    DIGITS,
)
RARE, COPIES = 0.1, 3
KINDS: Mapping[str, Mapping[str, Any]] = {"plain": {}, "imbalanced": {"rare": RARE}, "duplicated": {"copies": COPIES}}


@dataclass(frozen=True)
class Variant:
    """A setting, plain or made harder."""

    name: str
    kind: str
    material: Material
    budget: Budget


def settings_for(setting: Setting, weights: Path, folder: Path) -> Settings:
    chosen = {
        "MODEL_DIR": str(folder), "LPLGRAD_IMAGE_SIZE": str(setting.side),
        "LPLGRAD_BACKBONE": setting.backbone, "LPLGRAD_BACKBONE_OPTIONS": setting.options,
        "LPLGRAD_WEIGHTS": str(weights) if setting.frozen else "none",
    }  # fmt: skip
    return read_settings(chosen | ({"LPLGRAD_PIXELS": "half"} if setting.frozen else {}), None)


def read(setting: Setting, data: Path, settings: Settings) -> DataSet:
    if setting.source != "digits":
        return open_data(str(data / setting.source), settings)
    with TemporaryDirectory() as folder:
        digits = write_digits(Path(folder), pool=1397, held_out=400)
        rows = [f"{one.file.name},{one.label},train" for one in digits.pool]
        rows += [f"{one.file.name},{one.label},test" for one in digits.held_out]
        (Path(folder) / "labels.csv").write_text("path,label,split\n" + "\n".join(rows))
        found = open_data(folder, settings)
        return replace(found, name="digits", pictures=Kept(found, settings.image_size))


class Kept:
    """Pictures of a folder that will be gone, decoded once."""

    def __init__(self, data: DataSet, side: int) -> None:
        self._digest, self._longest = data.pictures.digest(), data.pictures.longest()
        self._pixels = list(data.pictures.load(side))
        self._names = data.pictures.names()

    def names(self) -> Sequence[str]:
        return self._names

    def digest(self) -> str:
        return self._digest

    def longest(self) -> int:
        return self._longest

    def load(self, side: int) -> Iterator:
        assert len(self._pixels[0]) == side
        return iter(self._pixels)


def variants(settings_asked: Sequence[Setting], asked: argparse.Namespace) -> Iterator[Variant]:
    for setting in settings_asked:
        settings = settings_for(setting, asked.weights or asked.data / WEIGHTS, asked.runs)
        material = prepare(read(setting, asked.data, settings), settings, asked.processes).material
        for kind, harder in KINDS.items():
            yield Variant(setting.name, kind, replace(material, **harder), setting.budget)


def finish(variant: Variant, wanted: Sequence[Wanted], known: Sequence[Run], asked: argparse.Namespace) -> Finished:
    """What is known of a variant, and those of the wanted runs that are not."""
    there = {(run.strategy, run.seed) for run in known}
    folder = asked.runs / f"{variant.name} {variant.kind}".replace(" ", "-")
    missing = [one for one in wanted if one not in there]
    usual = [one for one in missing if one[0] != AS_PUBLISHED]
    made = run_all(variant.material, variant.budget, usual, folder, asked.processes).runs
    published = as_published(variant, [seed for name, seed in missing if name == AS_PUBLISHED], folder / "paper", asked)
    return Finished(variant.name, variant.kind, variant.budget, [*known, *made, *published])


def as_published(variant: Variant, seeds: Sequence[int], folder: Path, asked: argparse.Namespace) -> list[Run]:
    """Runs of the preset `paper` under a name of their own; fewer where a loss grows beyond all numbers, which it may at
    the authors' learning rate."""
    wanted = [("lplgrad", seed) for seed in seeds]
    ended = run_all(replace(variant.material, recipe=PAPER), variant.budget, wanted, folder, asked.processes)
    for one in ended.diverged:
        print(f"{variant.name}, {variant.kind}: {AS_PUBLISHED}, seed {one.seed}: {one.reason}", flush=True)
    return [replace(run, strategy=AS_PUBLISHED) for run in ended.runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=300)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data")
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--only", default="", help="the name of a setting, such as digits")
    asked = parser.parse_args()
    began = time.monotonic()
    found = {(one.name, one.kind): one for one in read_finished(HERE)} if asked.missing else {}
    for every, passes in ((FROZEN, PASSES), (SCRATCH, SCRATCH_PASSES)):
        settings = [one for one in every if asked.only in ("", one.name)]
        if all(_is_done(found.get((one.name, kind)), passes) for one in settings for kind in KINDS):
            continue
        all_of_them = list(variants(settings, asked))
        for wanted, variant in itertools.product(passes, all_of_them):
            if time.monotonic() - began > 60 * asked.minutes:
                break
            where = variant.name, variant.kind
            if _is_done(found.get(where), (wanted,)):
                continue
            known = found[where].runs if where in found else ()
            found[where] = finish(variant, wanted_runs(*wanted), known, asked)
            minutes = (time.monotonic() - began) / 60
            print(f"{minutes:.1f} min: {variant.name}, {variant.kind}: {len(found[where].runs)} runs", flush=True)
            write_report(in_order(found), HERE)


def in_order(found: Mapping[tuple[str, str], Finished]) -> list[Finished]:
    """By setting and kind, in whatever order they were run."""
    every = itertools.product((one.name for one in (*FROZEN, *SCRATCH)), KINDS)
    return [found[where] for where in every if where in found]


def _is_done(one: Finished | None, passes: Sequence[tuple[Sequence[str], int]]) -> bool:
    there = {(run.strategy, run.seed) for run in one.runs} if one else set()
    return all(wanted in there for asked in passes for wanted in wanted_runs(*asked))


if __name__ == "__main__":
    main()
