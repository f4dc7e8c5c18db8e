"""`simulate` from data to files: what data sets are understood, and the command run for real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_label_studio import FakeLabelStudio
from simulated import a_run, digit_folder, zipped

from lplgrad_backend.demo.dataset import write_digits
from lplgrad_backend.errors import LPLGradError, NotLearnable, SettingsError, TrainingError
from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.simulation import report
from lplgrad_backend.simulation.datasets import DataSet, open_data
from lplgrad_backend.simulation.features import prepare
from lplgrad_backend.simulation.material import Budget
from lplgrad_backend.simulation.report import losses, probability
from lplgrad_backend.simulation.runs import Diverged, Ended
from lplgrad_backend.simulation.study import Study, budget_named, simulate, strategies_named

ROOT = Path(__file__).parent.parent
CONFIG = """<View><Image name="image" value="$image"/><Choices name="kind" toName="image">
<Choice value="0"/><Choice value="1"/><Choice value="2"/></Choices></View>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small network, as random as its beginning."""
    torch.manual_seed(0)
    network = Network(Architecture("mobilenet_v2", 3, False, 32, False, options={"width_mult": 0.25}))
    file = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save(network.backbone.state_dict(), file)
    return file


def settings_for(folder: Path, weights: Path | None = None, **others: str) -> Settings:
    return read_settings(environment(folder, weights) | others, None)


def environment(folder: Path, weights: Path | None = None) -> dict[str, str]:
    return {
        "MODEL_DIR": str(folder), "LPLGRAD_BACKBONE": "mobilenet_v2", "LPLGRAD_BACKBONE_OPTIONS": '{"width_mult": 0.25}',
        "LPLGRAD_WEIGHTS": str(weights or "none"), "LPLGRAD_IMAGE_SIZE": "32",
    }  # fmt: skip


def names(data: DataSet) -> list[str]:
    """Classes of each image, with | between them."""
    return ["|".join(name for name, shown in zip(data.classes, row, strict=True) if shown) for row in data.targets]


class TestDataSets:
    def test_a_folder_per_class_its_zip_and_its_csv_are_the_same(self, folder: Path, tmp_path: Path) -> None:
        settings = settings_for(tmp_path)
        files = sorted(folder.rglob("*.png"))
        (folder.parent / "all.csv").write_text(
            "path,label\n" + "\n".join(f"{file.relative_to(folder.parent)},{file.parent.name}" for file in files)
        )
        where = (folder, zipped(folder, tmp_path / "digits.zip"), folder.parent / "all.csv")
        found = [open_data(str(one), settings) for one in where]
        assert len({one.pictures.digest() for one in found}) == 1
        for one in found:
            assert names(one) == [file.parent.name for file in files]
            assert one.held_out is None
            assert one.pictures.longest() == 8
            assert len(list(one.pictures.load(16))) == len(files)

    def test_a_zip_with_splits_keeps_them(self, folder: Path, tmp_path: Path) -> None:
        """<split>/<class>/<file> and labels.csv, with or without the latter."""
        for at, file in enumerate(sorted(folder.rglob("*.png"))):
            target = tmp_path / "all" / ("test" if at % 4 == 0 else "train") / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
        paths = [path.relative_to(tmp_path / "all") for path in sorted((tmp_path / "all").rglob("*.png"))]
        listed = "path,split,label\n" + "\n".join(f"{path},{path.parts[0]},{path.parts[1]}" for path in paths)
        for archive in (
            zipped(tmp_path / "all", tmp_path / "a.zip"),
            zipped(tmp_path / "all", tmp_path / "b.zip", listed),
        ):
            data = open_data(str(archive), settings_for(tmp_path))
            assert data.held_out is not None
            assert data.held_out.tolist() == [path.parts[0] == "test" for path in paths]
            assert names(data) == [path.parts[1] for path in paths]

    def test_what_is_no_data_set_is_a_sentence(self, tmp_path: Path) -> None:
        settings = settings_for(tmp_path)
        (tmp_path / "empty").mkdir()
        (tmp_path / "wrong.csv").write_text("file,kind\na,b\n")
        (tmp_path / "one.csv").write_text("path,label\na.png,x\nb.png,x\n")
        (tmp_path / "split.csv").write_text("path,label,split\na.png,x,holdout\nb.png,y,train\n")
        (tmp_path / "both.csv").write_text("path,label,split\na.png,x,test\nb.png,y,train\na.png,y,train\n")
        for name, error, word in (
            ("nowhere", SettingsError, "folder per class"),
            ("empty", SettingsError, "no labelled image"),
            ("wrong.csv", SettingsError, "path and label"),
            ("one.csv", NotLearnable, "at least two"),
            ("split.csv", SettingsError, "'holdout'"),
            ("both.csv", SettingsError, "a.png is in test and train"),
        ):
            with pytest.raises(error, match=word):
                open_data(str(tmp_path / name), settings)
        for project, word in (("labelstudio:1", "LABEL_STUDIO_URL"),):
            with pytest.raises(SettingsError, match=word):
                open_data(project, settings)

    def test_several_classes_of_an_image_stand_in_a_row_or_in_rows(self, tmp_path: Path) -> None:
        listed = {
            "bars.csv": "path,label\na.png,dog|cat\nb.png,cat\nc.png, dog | dog \nd.png,|\n",
            "rows.csv": "path,label\na.png,dog\nb.png,cat\na.png,cat\nc.png,dog\nb.png,cat\n",
        }
        for name, text in listed.items():
            (tmp_path / name).write_text(text)
            data = open_data(str(tmp_path / name), settings_for(tmp_path))
            assert data.multiple
            assert names(data) == ["cat|dog", "cat", "dog"]
            assert data.held_out is None

    def test_the_same_row_again_is_the_same_image_again(self, tmp_path: Path) -> None:
        (tmp_path / "twice.csv").write_text("path,label\na.png,cat\na.png,cat\nb.png,dog\n")
        data = open_data(str(tmp_path / "twice.csv"), settings_for(tmp_path))
        assert (names(data), data.multiple) == (["cat", "cat", "dog"], False)

    def test_a_project_s_own_annotations_are_data(self, tmp_path: Path) -> None:
        fake = FakeLabelStudio()
        project = int(fake.add_project("Digits", CONFIG)["id"])
        digits = [one for one in write_digits(tmp_path / "raw", pool=60, held_out=0).pool if one.label in "012"]
        for at, digit in enumerate(digits):
            fake.uploads[f"/data/upload/{project}/{at}.png"] = digit.file.read_bytes()
        tasks = fake.import_tasks(
            project, [{"data": {"image": f"/data/upload/{project}/{at}.png"}} for at in range(len(digits))]
        )
        for task, digit in zip(tasks[:-1], digits, strict=False):
            chosen = {"from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": [digit.label]}}
            fake.annotate(task, {"result": [chosen]}, "me@example.com")
        with fake.serving() as url:
            settings = settings_for(tmp_path, LABEL_STUDIO_URL=url, LABEL_STUDIO_API_KEY=fake.legacy_token())
            data = open_data(f"labelstudio:{project}", settings)
            pixels = list(data.pictures.load(8))
            with pytest.raises(SettingsError, match="number of a project"):
                open_data("labelstudio:x", settings)
        assert names(data) == [digit.label for digit in digits[:-1]]
        assert data.pictures.names() == [f"task {task}" for task in tasks[:-1]]
        assert all(isinstance(one, np.ndarray) and one.shape == (8, 8, 3) for one in pixels)

    def test_several_choices_of_a_task_are_several_classes(self, tmp_path: Path) -> None:
        """What half of the annotators chose counts; a task on which nothing is agreed is left out."""
        fake = FakeLabelStudio()
        project = int(
            fake.add_project("Digits", CONFIG.replace('toName="image"', 'toName="image" choice="multiple"'))["id"]
        )
        tasks = fake.import_tasks(project, [{"data": {"image": f"/data/upload/{project}/{at}.png"}} for at in range(4)])
        said = {0: (["0", "2"],), 1: (["1"], ["1", "2"]), 2: (["0"], ["1"], ["2"]), 3: (["0"], ["0"], ["0", "1"])}
        for at, annotators in said.items():
            for who, choices in enumerate(annotators):
                chosen = {"from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": choices}}
                fake.annotate(tasks[at], {"result": [chosen]}, f"{who}@example.com")
        with fake.serving() as url:
            settings = settings_for(tmp_path, LABEL_STUDIO_URL=url, LABEL_STUDIO_API_KEY=fake.legacy_token())
            data = open_data(f"labelstudio:{project}", settings)
        assert data.multiple
        assert names(data) == ["0|2", "1|2", "0"]


class TestFeatures:
    def test_they_are_computed_once_and_kept_by_content_and_weights(
        self, folder: Path, tmp_path: Path, weights: Path
    ) -> None:
        data, settings = open_data(str(folder), settings_for(tmp_path)), settings_for(tmp_path, weights)
        told: list[int] = []
        first = prepare(data, settings, 1, lambda done, total: told.append(done)).material
        assert told[-1] == len(data.targets)
        told.clear()
        again = prepare(data, settings, 1, lambda done, total: told.append(done)).material
        assert told == []
        assert not isinstance(first.seen, torch.Tensor)
        assert not isinstance(again.seen, torch.Tensor)
        assert torch.equal(first.seen.features, again.seen.features)
        others = torch.load(weights, weights_only=True)
        others["features.0.0.weight"] += 1
        torch.save(others, tmp_path / "others.pth")
        prepare(data, settings_for(tmp_path, tmp_path / "others.pth"), 1)
        assert len(list((tmp_path / "simulation").iterdir())) == 2

    def test_an_image_that_cannot_be_read_is_left_out_and_said(
        self, folder: Path, tmp_path: Path, weights: Path
    ) -> None:
        listed = "\n".join(f"{file},{file.parent.name}" for file in sorted(folder.rglob("*.png")))
        (tmp_path / "rot.png").write_bytes(b"rot")
        (tmp_path / "all.csv").write_text(f"path,label\n{tmp_path / 'rot.png'},0\nmissing.png,1\n{listed}\n")
        prepared = prepare(
            open_data(str(tmp_path / "all.csv"), settings_for(tmp_path)), settings_for(tmp_path, weights), 1
        )
        assert len(prepared.material.targets) == len(listed.splitlines())
        assert prepared.names == tuple(str(file) for file in sorted(folder.rglob("*.png")))
        assert any("2 of" in sentence for sentence in prepared.sentences)


def test_options_are_understood_or_explained() -> None:
    assert strategies_named("margin, badge") == ("random", "margin", "badge")
    assert budget_named("5:3:20").last == 20
    for text, read in (
        ("guess", strategies_named),
        ("20", budget_named),
        ("9:3:4", budget_named),
        ("a:b:c", budget_named),
    ):
        with pytest.raises(LPLGradError, match="--"):
            read(text)


@pytest.mark.timeout(600)
def test_the_command_runs_writes_and_goes_on(folder: Path, tmp_path: Path, weights: Path) -> None:
    environ = {**os.environ, **environment(tmp_path / "models", weights), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", "lplgrad_backend", "simulate", str(folder), "--strategies", "margin",
               "--budget", "6:6:18", "--processes", "1", "--out", str(tmp_path / "out"), "--seeds"]  # fmt: skip
    answers = [
        subprocess.run([*command, seeds], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=280)
        for seeds in ("1", "2")
    ]
    for answer in answers:
        assert answer.returncode == 0, answer.stderr
        assert re.search(r"margin: AULC [\d.]+ %.*points to random", answer.stdout)
    assert "4/4" in answers[1].stdout
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [(run["strategy"], run["seed"]) for run in results["runs"]] == [
        (name, seed) for seed in range(2) for name in ("random", "margin")
    ]
    assert [one["labels"] for one in results["runs"][0]["rounds"]] == [6, 12, 18]
    assert results["plan"]["recipe"]["trained"] == "head"
    asked_for = [results["images"][at] for one in results["runs"][0]["rounds"] for at in one["chosen"]]
    assert len(set(asked_for)) == 18
    for at, one in enumerate(results["runs"][0]["rounds"]):
        shown = [name.partition("/")[0] for name in asked_for[: 6 * (at + 1)]]
        assert [shown.count(digit) for digit in results["plan"]["classes"]] == one["per_class"]
    assert (tmp_path / "out/curves.png").read_bytes().startswith(b"\x89PNG")
    assert "| margin |" in (tmp_path / "out/table.md").read_text()
    assert len(list(tmp_path.glob("out/runs-*/*.json"))) == 4


@pytest.mark.timeout(300)
def test_several_classes_per_image_from_a_csv_to_the_table(folder: Path, tmp_path: Path, weights: Path) -> None:
    """Digits that are even, and digits below two: sigmoid heads, and a measure that says so."""
    shown = {"0": "even|small", "1": "small", "2": "even"}
    rows = [f"{file},{shown[file.parent.name]}" for file in sorted(folder.rglob("*.png"))]
    (tmp_path / "digits.csv").write_text("path,label\n" + "\n".join(rows))
    asked = Study(("random", "lplgrad-coverage"), 1, Budget(6, 6, 12))
    settings = settings_for(tmp_path, weights)
    told: list[str] = []
    lines = simulate(
        str(tmp_path / "digits.csv"), settings, asked, tmp_path / "out", 1,
        lambda what, done, total: told.append(f"{what} {done}"), told.append,
    )  # fmt: skip
    first = next(one for one in told if one.startswith(("Recipe", "runs")))
    assert first.startswith("Recipe frozen: ")  # while there is still time to choose another one
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["plan"]["architecture"]["multiple"]
    assert results["plan"]["measures"]["plain"] == "mean average precision"
    assert any("final mean average precision" in line for line in lines)
    assert "| final mean average precision |" in (tmp_path / "out/table.md").read_text()
    for run in results["runs"]:
        for one in run["rounds"]:
            assert sum(one["per_class"]) > one["labels"] == len(set(one["chosen"])) + one["labels"] - 6
            assert 0.4 < one["accuracy"] <= 1


def test_no_result_is_said_to_be_impossible_by_chance() -> None:
    assert [probability(p) for p in (0.0, 0.00099, 0.001, 0.0164, 1.0)] == [
        "< 0.001",
        "< 0.001",
        "0.001",
        "0.016",
        "1.000",
    ]


class TestDivergence:
    REASON = "The loss became inf at step 7: use a lower learning rate."

    def test_its_seeds_are_left_out_for_all_and_named(self, tmp_path: Path) -> None:
        runs = [a_run(name, seed, [0.2, 0.4]) for seed in range(4) for name in ("random", "margin")]
        ended = Ended(
            [run for run in runs if (run.strategy, run.seed) != ("margin", 2)], [Diverged("margin", 2, self.REASON)]
        )
        lines = report.write(ended, {}, ["a.png"], "photos", tmp_path)
        said = f"margin diverged with seed 2 and is left out there, as all others are: {self.REASON}"
        assert lines[-1] == said
        assert said in (tmp_path / "table.md").read_text()
        assert "3 seeds, 10 to 20 labels" in (tmp_path / "table.md").read_text()
        results = json.loads((tmp_path / "results.json").read_text())
        assert results["diverged"] == [{"strategy": "margin", "seed": 2, "reason": self.REASON}]
        assert len(results["runs"]) == 7

    def test_a_strategy_that_always_does_is_left_out_alone(self) -> None:
        ended = Ended([a_run("random", 0, [0.2])], [Diverged("lplgrad", seed, self.REASON) for seed in (0, 1)])
        assert losses(ended) == [f"lplgrad diverged with seeds 0, 1 and is left out: {self.REASON}"]

    def test_where_nothing_is_left_that_is_an_error(self, tmp_path: Path) -> None:
        ended = Ended([], [Diverged("random", 0, self.REASON)])
        with pytest.raises(TrainingError, match=r"--preset.* random diverged with seed 0 and is left out: The loss"):
            report.write(ended, {}, ["a.png"], "photos", tmp_path)
