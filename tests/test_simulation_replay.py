"""One run: repeatable, fair between strategies, and what is kept of it is enough to go on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from simulated import ARCHITECTURE, BUDGET, blobs

from lplgrad_backend.errors import TrainingError
from lplgrad_backend.lplgrad.acquisition import DEFAULT, STRATEGIES
from lplgrad_backend.lplgrad.cold_start import cold_queue, simple_features
from lplgrad_backend.lplgrad.network import Looked
from lplgrad_backend.lplgrad.recipe import FROM_SCRATCH, HEAD
from lplgrad_backend.simulation.material import Budget, Material, divide
from lplgrad_backend.simulation.replay import Replay, Run
from lplgrad_backend.simulation.runs import RunFolder, run_all, wanted_runs


@pytest.fixture(scope="module")
def replay() -> Replay:
    return Replay(blobs(), BUDGET)


def without_clock(run: Run) -> list[object]:
    return [replace(one, seconds_training=0.0, seconds_ordering=0.0) for one in run.rounds]


def test_a_run_follows_from_its_seed(replay: Replay) -> None:
    first, again, other = replay.run("margin", 0), replay.run("margin", 0), replay.run("margin", 1)
    assert without_clock(first) == without_clock(again)
    assert without_clock(first) != without_clock(other)


def test_strategies_start_alike_and_the_held_out_are_never_chosen(replay: Replay) -> None:
    runs = [replay.run(name, 2) for name in ("random", "lplgrad-coverage", "badge", "lplgrad")]
    assert len({(run.rounds[0].chosen, run.rounds[0].accuracy, run.rounds[0].loss) for run in runs}) == 1
    for run in runs:
        chosen = [image for one in run.rounds for image in one.chosen]
        assert len(chosen) == len(set(chosen)) == 18
        assert min(chosen) >= 30
        assert [one.labels for one in run.rounds] == [6, 12, 18]
        assert [sum(one.per_class) for one in run.rounds] == [6, 12, 18]
    assert len({run.rounds[1].chosen for run in runs}) == 4


def test_the_measures_are_those_of_a_loop(replay: Replay) -> None:
    material = blobs()
    one = replay.run("random", 0).rounds[-1]
    held = np.flatnonzero(material.held_out)
    predicted = replay._logits(held).argmax(1)
    right = [int(a == b) for a, b in zip(predicted, material.labels[held], strict=True)]
    by_class = [[r for r, label in zip(right, material.labels[held], strict=True) if label == k] for k in range(3)]
    assert one.accuracy == pytest.approx(sum(right) / len(right))
    assert one.balanced_accuracy == pytest.approx(sum(sum(of) / len(of) for of in by_class) / 3)


@pytest.mark.parametrize("strategy", [*STRATEGIES])
def test_images_of_several_classes_are_replayed_by_every_strategy(strategy: str) -> None:
    material = blobs(multiple=True)
    run = Replay(material, BUDGET).run(strategy, 0)
    chosen = [image for one in run.rounds for image in one.chosen]
    assert len(chosen) == len(set(chosen)) == 18
    assert run.rounds[-1].per_class == tuple(material.targets[chosen].sum(0))
    assert sum(run.rounds[-1].per_class) > 18
    assert run.rounds[-1].accuracy > 0.8


class TestRuns:
    def test_what_was_finished_is_not_made_again(self, tmp_path: Path) -> None:
        material, wanted = blobs(), wanted_runs(["random", "margin"], 2)
        told: list[tuple[int, int]] = []
        first = run_all(material, BUDGET, wanted[:3], tmp_path, 1).runs
        kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        assert len(kept) == 3
        all_of_them = run_all(material, BUDGET, wanted, tmp_path, 1, lambda *done: told.append(done)).runs
        assert told == [(3, 4), (4, 4)]
        assert all_of_them[:3] == first
        assert {name: (tmp_path / name).stat().st_mtime_ns for name in kept} == kept
        assert without_clock(all_of_them[3]) == without_clock(Replay(material, BUDGET).run("margin", 1))

    def test_half_a_file_counts_as_missing(self, tmp_path: Path, replay: Replay) -> None:
        folder, run = RunFolder(tmp_path), replay.run("random", 0)
        folder.keep(run)
        assert folder.read([("random", 0)]) == {("random", 0): run}
        file = tmp_path / "random-0.json"
        file.write_bytes(file.read_bytes()[:100])
        assert folder.read([("random", 0)]) == {}
        file.write_text(json.dumps({"strategy": "random"}))
        assert folder.read([("random", 0)]) == {}

    def test_one_that_diverged_is_kept_too_and_holds_nothing_up(self, tmp_path: Path) -> None:
        wanted, wild = wanted_runs(["random", "margin"], 1), replace(blobs(), recipe=replace(HEAD, rate=1e30))
        ended = run_all(wild, BUDGET, wanted, tmp_path, 1)
        assert ended.runs == []
        assert [(one.strategy, one.seed) for one in ended.diverged] == wanted
        assert all("lower learning rate" in one.reason for one in ended.diverged)
        assert run_all(wild, BUDGET, wanted, tmp_path / "elsewhere", 1) == ended
        # a calm network finds those two where it looks, makes the missing one and does not try them again
        (tmp_path / "margin-0.json").unlink()
        again = run_all(blobs(), BUDGET, wanted, tmp_path, 1)
        assert [(run.strategy, run.seed) for run in again.runs] == [("margin", 0)]
        assert again.diverged == ended.diverged[:1]

    def test_what_can_never_work_is_a_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match=r"Strategy random, seed 0: .*--budget"):
            run_all(blobs(), Budget(10, 10, 100), [("random", 0)], tmp_path, 1)


class TestColdStart:
    COLD = replace(BUDGET, cold_start=True)

    def test_the_first_labels_are_the_typical_ones_of_the_same_pool(self) -> None:
        material = blobs()
        any_ones = divide(material, BUDGET, 0)
        everything = np.concatenate([any_ones.first, any_ones.pool])
        assert isinstance(material.seen, Looked)
        features = material.seen.features[torch.from_numpy(everything)]
        run = Replay(material, self.COLD).run("random", 0)
        queue = cold_queue(features, features[:0], 0)
        assert list(run.rounds[0].chosen) == everything[queue.positions[:6].numpy()].tolist()
        assert {image for one in run.rounds for image in one.chosen} <= {*everything.tolist()}

    def test_all_strategies_begin_with_them(self) -> None:
        replay = Replay(blobs(), self.COLD)
        assert len({replay.run(name, 1).rounds[0].chosen for name in ("random", "margin", "lplgrad-coverage")}) == 1

    def test_the_default_goes_on_so_until_it_knows_enough_labels(self) -> None:
        run = Replay(blobs(), self.COLD).run(DEFAULT, 0)
        assert [one.ordered_by for one in run.rounds] == [
            "typicality",
            DEFAULT,
            None,
        ]  # 6, 12 and 18 labels of 3 classes
        assert Replay(blobs(), self.COLD).run("margin", 0).rounds[0].ordered_by == "margin"
        assert Replay(blobs(), BUDGET).run(DEFAULT, 0).rounds[0].ordered_by == DEFAULT

    def test_without_pretrained_weights_colours_and_edges_are_compared(self) -> None:
        images = torch.randint(0, 256, (30, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        material = Material(
            np.eye(3, dtype=bool)[np.arange(30) % 3], np.arange(30) < 6, images, ARCHITECTURE, {}, FROM_SCRATCH
        )
        division = divide(material, Budget(4, 4, 8), 0)
        everything = np.concatenate([division.first, division.pool])
        typical = cold_queue(simple_features(images[torch.from_numpy(everything)]), torch.zeros(0, 320), 0)
        replay = Replay(material, Budget(4, 4, 8, cold_start=True))
        found = replay._division(0, replay._start(0))
        assert found.first.tolist() == everything[typical.positions[:4].numpy()].tolist()
        assert found.held_out.tolist() == division.held_out.tolist()
