"""What strategies save: nine variants of three data sets on frozen features, and digits from scratch.

    .venv/bin/python -m benchmarks.label_efficiency [--minutes 20] [--processes 2] [--data FOLDER] [--weights FILE]

FOLDER holds cifar10-subset.zip and trashnet-photos.zip; FILE is mobilenet_v2_x0.35_features.pth unless another is named.
Digits come with scikit-learn. Runs are kept below benchmarks/.runs, so that what was stopped goes on where it was. After
`--minutes` nothing more is begun, and the report says how many seeds there are. Writes label_efficiency.md,
label_efficiency.json and a curve for each variant beside itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.label_efficiency_report import Finished, write_report
from lplgrad_backend.demo.dataset import write_digits
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.simulation.datasets import DataSet, open_data
from lplgrad_backend.simulation.features import prepare
from lplgrad_backend.simulation.replay import Budget, Material
from lplgrad_backend.simulation.runs import run_all, wanted_runs

HERE = Path(__file__).parent
RUNS = HERE / ".runs"
WEIGHTS = "mobilenet_v2_x0.35_features.pth"
SEEDS = 30
COMPARED = ("random", "lplgrad-coverage", "badge", "margin")
STRATEGIES = (*COMPARED, "entropy", "lplgrad", "lplgrad-ladder", "predicted-loss", "coreset")
FROM_SCRATCH = (*COMPARED, "lplgrad")
PASSES = ((COMPARED, 4), (COMPARED, 15), (COMPARED, SEEDS), (STRATEGIES, 10), (STRATEGIES, SEEDS))
SCRATCH_PASSES = ((), (), (FROM_SCRATCH, 4), (FROM_SCRATCH, 7), (FROM_SCRATCH, 10))
"""What is run in turn, and how many seeds of it; a run from scratch takes as long as ten on frozen features."""


@dataclass(frozen=True)
class Setting:
    """A data set and how it is labelled. `side`: of the images the network sees, in pixels."""

    name: str
    source: str
    side: int
    budget: Budget
    frozen: bool = True


FROZEN = (
    Setting("TrashNet", "trashnet-photos.zip", 161, Budget(30, 30, 180, 2000)),
    Setting("CIFAR-10", "cifar10-subset.zip", 97, Budget(40, 40, 240, 2000)),
    Setting("digits", "digits", 97, Budget(20, 20, 120, 2000)),
)
SCRATCH = Setting("digits from scratch", "digits", 8, Budget(20, 20, 80, 400), frozen=False)
RARE, COPIES = 0.1, 3


@dataclass(frozen=True)
class Variant:
    """A setting, plain or made harder."""

    name: str
    kind: str
    material: Material
    budget: Budget


def settings_for(setting: Setting, weights: Path, folder: Path) -> Settings:
    common = {"MODEL_DIR": str(folder), "LPLGRAD_IMAGE_SIZE": str(setting.side)}
    if setting.frozen:
        common |= {
            "LPLGRAD_BACKBONE": "mobilenet_v2", "LPLGRAD_BACKBONE_OPTIONS": '{"width_mult": 0.35}',
            "LPLGRAD_WEIGHTS": str(weights), "LPLGRAD_PIXELS": "half",
        }  # fmt: skip
    else:
        common |= {"LPLGRAD_BACKBONE": "resnet18", "LPLGRAD_WEIGHTS": "none"}
    return read_settings(common, None)


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

    def digest(self) -> str:
        return self._digest

    def longest(self) -> int:
        return self._longest

    def load(self, side: int) -> Iterator:
        assert len(self._pixels[0]) == side
        return iter(self._pixels)


def variants(asked: argparse.Namespace) -> Iterator[Variant]:
    for setting in (*FROZEN, SCRATCH):
        settings = settings_for(setting, asked.weights or asked.data / WEIGHTS, RUNS)
        material = prepare(read(setting, asked.data, settings), settings, asked.processes).material
        yield Variant(setting.name, "plain", material, setting.budget)
        for kind, harder in (("imbalanced", {"rare": RARE}), ("duplicated", {"copies": COPIES})):
            yield Variant(setting.name, kind, replace(material, **harder), setting.budget)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data")
    parser.add_argument("--weights", type=Path, default=None)
    asked = parser.parse_args()
    began, all_of_them = time.monotonic(), list(variants(asked))
    found: dict[tuple[str, str], Finished] = {}
    for frozen, scratch in zip(PASSES, SCRATCH_PASSES, strict=True):
        for variant in all_of_them:
            if time.monotonic() - began > 60 * asked.minutes:
                break
            asked_of_it = frozen if variant.material.recipe.trained == "head" else scratch
            if not asked_of_it:
                continue
            folder = RUNS / f"{variant.name} {variant.kind}".replace(" ", "-")
            wanted = wanted_runs(*asked_of_it)
            runs = run_all(variant.material, variant.budget, wanted, folder, asked.processes)
            found[variant.name, variant.kind] = Finished(variant.name, variant.kind, variant.budget, runs)
            minutes = (time.monotonic() - began) / 60
            print(f"{minutes:.1f} min: {variant.name}, {variant.kind}: {len(runs)} runs", flush=True)
        write_report(list(found.values()), HERE)


if __name__ == "__main__":
    main()
