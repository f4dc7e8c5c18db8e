"""The trainer as the child process that it is, on digits in a Label Studio of this process; its decisions as functions."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from digits_site import BROKEN_EXAMPLE, BROKEN_TASK, LABELING, LABELLED, POOL, Site, digits_site
from known_pool import alike_pool
from redis_server import local_redis

from lplgrad_backend.demo.dataset import Digits
from lplgrad_backend.errors import ImageError, NotLearnable, SettingsError, TrainingError, VersionNotFound
from lplgrad_backend.labeling import Example
from lplgrad_backend.lplgrad.acquisition import STRATEGIES
from lplgrad_backend.lplgrad.network import Looked
from lplgrad_backend.lplgrad.ordering import SAFE, TYPICALITY, Acquisition, order_pool
from lplgrad_backend.lplgrad.pool import Answers, NetworkPool
from lplgrad_backend.lplgrad.recipe import FROM_SCRATCH, recipe_from_plain
from lplgrad_backend.lplgrad.spreading import GAP
from lplgrad_backend.rounds import OUTCOME, SCORES, WEIGHTS, Outcome, Progress, run_round
from lplgrad_backend.scoring import Measured, Scorer, among, as_batch, load_network, order_measured, scale_of, scores_of
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.sight import Labelled
from lplgrad_backend.sources import open_images, open_label_studio
from lplgrad_backend.status import Phase, now
from lplgrad_backend.store import Manifest, PoolScores, Store, read_scores
from lplgrad_backend.trainer import Reporter, acquisition_of, complaints, draw_of, run, too_cold


@pytest.fixture(scope="module")
def site(digits: Digits) -> Iterator[Site]:
    with digits_site(digits) as served:
        yield served


@dataclass(frozen=True)
class Round:
    """A round's results, read from its folder."""

    outcome: Outcome
    heard: list[Progress]
    scores: PoolScores
    folder: Path
    settings: Settings


def do(site: Site, folder: Path, **environ: str) -> Round:
    settings, heard = site.settings(folder, **environ), list[Progress]()
    outcome = run_round(site.order(), folder, settings, heard.append, threading.Event())
    return Round(outcome, heard, read_scores(folder / SCORES), folder, settings)


@pytest.fixture(scope="module")
def first(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Round:
    return do(site, tmp_path_factory.mktemp("round"))


def manifest(found: Round) -> Manifest:
    """The version that a learner would save."""
    return Manifest(
        project=1, version="v1", created=now(), labeling=LABELING, architecture=found.outcome.architecture,
        recipe=found.outcome.recipe, seed=0, labels={}, scale=found.outcome.metrics["scale"], newest_task=0,
        metrics=found.outcome.metrics, files={},
    )  # fmt: skip


class TestARound:
    def test_it_says_what_it_made_and_how(self, first: Round) -> None:
        outcome = first.outcome
        assert outcome.architecture["backbone"] == "mobilenet_v3_small"
        assert (outcome.architecture["side"], outcome.architecture["classes"]) == (16, 10)
        assert outcome.architecture["small_stem"] is True
        assert recipe_from_plain(outcome.recipe) == FROM_SCRATCH
        assert outcome.metrics["images"] == LABELLED - 1
        assert outcome.metrics["epochs"] >= FROM_SCRATCH.epochs
        assert 0 < outcome.metrics["seconds_training"] <= outcome.metrics["seconds"]
        assert outcome.warnings == []
        assert (outcome.temperature, outcome.temperature_from) == (
            1.0, "not fitted: 0 held-out labelled images, 20 are needed",
        )  # fmt: skip
        assert outcome.health is not None and sum(outcome.health.head_classes) <= 50

    def test_an_unreadable_image_costs_itself_alone(self, first: Round) -> None:
        assert set(first.outcome.unreadable) == {BROKEN_EXAMPLE, BROKEN_TASK}
        assert "Label Studio does not give it" in first.outcome.unreadable[BROKEN_TASK]
        assert first.scores.tasks.tolist() == list(range(102, 101 + POOL))

    def test_its_scores_are_those_of_its_weights(self, first: Round, site: Site) -> None:
        network = load_network(manifest(first), first.folder / WEIGHTS)
        images = open_images(first.settings, open_label_studio(first.settings))
        tasks = [(entry.task, entry.uri) for entry in site.order().pool[1:]]
        measured = [one for one in Scorer(network).measure(images, tasks) if isinstance(one, Measured)]
        np.testing.assert_allclose(first.scores.norms, [one.norm for one in measured], rtol=1e-4)
        pixels = as_batch(
            [one for one in images.load_many(tasks, network.architecture.side) if not isinstance(one, ImageError)]
        )
        examples = [(one.task_id, one.uri) for one in site.order().examples[1:]]
        labelled = [
            one for one in images.load_many(examples, network.architecture.side) if not isinstance(one, ImageError)
        ]
        counts = torch.tensor([one.target for one in site.order().examples[1:]]).sum(0)
        pool = NetworkPool(network, pixels, as_batch(labelled), counts)
        ordered = order_pool(pool, acquisition_of(first.settings, draw_of(site.order())), 0)
        assert first.outcome.ordered_by == ordered.ordered_by
        assert first.scores.scores.argsort().tolist() == ordered.queue.positions.tolist()
        np.testing.assert_allclose(first.scores.worth[ordered.queue.positions.numpy()], ordered.queue.worth, rtol=1e-3)
        assert first.outcome.metrics["scale"] == scale_of(first.scores.worth)
        np.testing.assert_allclose(first.scores.probabilities.sum(1), 1, rtol=1e-5)
        assert [first.scores.position(task, uri) for task, uri in tasks] == list(range(POOL - 1))

    def test_the_papers_order_is_that_of_the_norms(self, site: Site, tmp_path: Path) -> None:
        found = do(site, tmp_path, LPLGRAD_STRATEGY="lplgrad", LPLGRAD_STRICT="true", LPLGRAD_RANDOM_SHARE="0")
        assert found.outcome.ordered_by == "lplgrad"
        np.testing.assert_array_equal(found.scores.worth, found.scores.norms)
        np.testing.assert_allclose(found.scores.scores, scores_of(found.scores.norms, scale_of(found.scores.norms)))

    def test_it_reports_every_phase_to_its_end(self, first: Round) -> None:
        phases = list(dict.fromkeys(progress.phase for progress in first.heard))
        assert phases == [Phase.LOADING, Phase.TRAINING, Phase.SCORING]
        last = {progress.phase: progress for progress in first.heard}
        assert (last[Phase.LOADING].done, last[Phase.LOADING].total) == (LABELLED, LABELLED)
        assert (last[Phase.SCORING].done, last[Phase.SCORING].total) == (POOL, POOL)
        assert all(0 < progress.done <= progress.total for progress in first.heard)

    def test_a_seed_repeats_it_and_weights_that_cannot_be_had_are_a_warning(
        self, first: Round, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
        again = do(site, tmp_path, LPLGRAD_WEIGHTS="imagenet")
        assert len(again.outcome.warnings) == 1 and "ImageNet" in again.outcome.warnings[0]
        assert (again.folder / WEIGHTS).read_bytes() == (first.folder / WEIGHTS).read_bytes()
        assert again.scores.scores.tolist() == first.scores.scores.tolist()


def test_a_child_ends_when_its_parent_is_killed(site: Site, tmp_path: Path) -> None:
    """Parent and child hold the pipe that is read here, until they end."""
    settings = site.settings(tmp_path, LPLGRAD_PRESET="paper")
    program = f"""
import threading
from pathlib import Path
from lplgrad_backend.rounds import Order, run_round
from lplgrad_backend.settings import read_settings
run_round(Order.model_validate_json({site.order().model_dump_json()!r}), Path({str(tmp_path)!r}),
          read_settings({settings.environ()!r}, None), lambda progress: print(progress.phase.name, flush=True),
          threading.Event())
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        while (line := process.stdout.readline()) != b"TRAINING\n":
            assert line, process.stderr.read().decode()
        process.kill()
        process.stderr.read()
    process.wait()
    assert not (tmp_path / OUTCOME).exists()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random ones of a network that is small enough to be looked through quickly."""
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v3_small(width_mult=0.25)
    file = tmp_path_factory.mktemp("weights") / "some.safetensors"
    safetensors.torch.save_file(network.state_dict(), file)
    return {"LPLGRAD_WEIGHTS": str(file), "LPLGRAD_IMAGE_SIZE": "32", "LPLGRAD_RANDOM_SHARE": "0.2"}


@pytest.fixture(scope="module")
def frozen(site: Site, weights: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Round:
    folder = tmp_path_factory.mktemp("frozen")
    settings = site.settings(folder, **weights)
    outcome = run(site.order(), folder, settings)
    return Round(outcome, [], read_scores(folder / SCORES), folder, settings)


class TestFrozen:
    """A round that trains the head alone, on features that are kept."""

    def test_its_scores_are_those_that_its_weights_give_image_by_image(self, frozen: Round, site: Site) -> None:
        assert frozen.outcome.recipe["trained"] == "head" and "frozen" in frozen.outcome.recipe_reason
        network = load_network(manifest(frozen), frozen.folder / WEIGHTS)
        images = open_images(frozen.settings, open_label_studio(frozen.settings))
        tasks = [(entry.task, entry.uri) for entry in site.order().pool[1:]]
        scorer = Scorer(network, for_ordering=True, confidence=frozen.outcome.temperature)
        measured = [one for one in scorer.measure(images, tasks) if isinstance(one, Measured)]
        np.testing.assert_allclose(frozen.scores.norms, [one.norm for one in measured], rtol=1e-3, atol=1e-9)
        np.testing.assert_allclose(
            frozen.scores.predicted_losses, [one.predicted_loss for one in measured], rtol=1e-3, atol=1e-5
        )
        np.testing.assert_allclose(
            frozen.scores.probabilities, [one.probabilities for one in measured], rtol=1e-3, atol=1e-6
        )

    def test_a_share_of_its_queue_is_marked_as_drawn_and_its_scores_rise_all_the_same(self, frozen: Round) -> None:
        assert abs(int(frozen.scores.random.sum()) - 0.2 * (POOL - 1)) <= 1
        assert (np.diff(np.sort(frozen.scores.scores)) > 0).all()
        queue = frozen.scores.random[frozen.scores.scores.argsort()]
        assert queue[:10].sum() in (1, 2, 3)

    def test_a_second_round_looks_at_new_images_alone(self, frozen: Round, site: Site, weights: dict[str, str]) -> None:
        assert frozen.outcome.metrics["images_looked_at"] == LABELLED + POOL
        again = run(site.order(), frozen.folder, site.settings(frozen.folder, **weights))
        assert again.metrics["images_looked_at"] == 2, "those that cannot be read are asked for again"
        found = read_scores(frozen.folder / SCORES)
        np.testing.assert_array_equal(found.scores, frozen.scores.scores)
        assert open_images(frozen.settings, open_label_studio(frozen.settings)).check() == []

    def test_below_three_labels_a_class_typical_images_come_first(self, frozen: Round) -> None:
        assert frozen.outcome.ordered_by == TYPICALITY

    def test_another_pool_draws_others(self, site: Site) -> None:
        order = site.order()
        assert draw_of(order) == draw_of(site.order())
        assert draw_of(order.model_copy(update={"pool": order.pool[1:]})) != draw_of(order)


class TestInThisProcess:
    """What a child says when it cannot go on, without starting one."""

    def test_a_saved_version_scores_alone(self, first: Round, site: Site, tmp_path: Path) -> None:
        draft = manifest(first).model_dump(exclude={"files"})
        Store(tmp_path).save(draft, first.folder / WEIGHTS, {}, first.scores)
        order = site.order(version="v1", examples=[], pool=site.order().pool[:5])
        outcome = run(order, tmp_path, site.settings(tmp_path))
        found = read_scores(tmp_path / SCORES)
        assert outcome.metrics == {"scale": first.outcome.metrics["scale"]}
        assert set(outcome.unreadable) == {BROKEN_TASK}
        np.testing.assert_allclose(found.norms, first.scores.norms[:4], rtol=1e-4)
        again = [Measured(norm, np.zeros(10, np.float32)) for norm in found.norms]
        np.testing.assert_array_equal(found.worth, among(again, first.scores, outcome.metrics["scale"]).worth)
        assert not {*found.scores.tolist()} & {
            *first.scores.scores.tolist()
        }  # the same images, and none in another's place

    def test_a_saved_version_scores_in_shards_that_others_may_take(
        self, first: Round, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        draft = manifest(first).model_dump(exclude={"files"})
        Store(tmp_path).save(draft, first.folder / WEIGHTS, {}, first.scores)
        order, found = site.order(version="v1", examples=[], share=4), []
        with local_redis(tmp_path) as url:
            for name, queue in (("1-alone", {}), ("1-shared", {"LPLGRAD_QUEUE_URL": url, "LPLGRAD_SHARD_SIZE": "1"})):
                folder = tmp_path / "scratch" / name
                folder.mkdir(parents=True)
                run(order, folder, site.settings(tmp_path, **queue))
                found.append(read_scores(folder / SCORES))
                assert ('{"shards": 1}' in capsys.readouterr().out) == bool(queue), "two shards, one for a helper"
        alone, shared = found
        for name in ("tasks", "norms", "worth", "scores", "probabilities"):
            np.testing.assert_array_equal(getattr(shared, name), getattr(alone, name))

    def test_of_a_version_that_is_not_there(self, site: Site, tmp_path: Path) -> None:
        with pytest.raises(VersionNotFound, match="v8"):
            run(site.order(version="v8"), tmp_path, site.settings(tmp_path))

    def test_no_image_at_all_can_be_read(self, site: Site, tmp_path: Path) -> None:
        examples = [Example(n, "/data/upload/1/broken.png", (1.0,) + (0.0,) * 9) for n in range(1, 4)]
        with pytest.raises(NotLearnable, match="None of the images"):
            run(site.order(examples=examples, pool=[]), tmp_path, site.settings(tmp_path))

    def test_the_images_that_can_be_read_show_one_class(self, site: Site, tmp_path: Path) -> None:
        good = site.order().examples[1]
        examples = [good, Example(90, "/data/upload/1/broken.png", (0.5, 0.5) + (0.0,) * 8)]
        with pytest.raises(NotLearnable, match="1 of 2 labelled images cannot be read; two classes"):
            run(site.order(examples=examples), tmp_path, site.settings(tmp_path))

    def test_a_backbone_that_there_is_not(self, site: Site, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="resnet1800"):
            run(site.order(), tmp_path, site.settings(tmp_path, LPLGRAD_BACKBONE="resnet1800"))

    @pytest.mark.parametrize("changed", [{"LPLGRAD_WEIGHTS": "/no/such.pth"}, {"LPLGRAD_DEVICE": "cuda:99"}])
    def test_a_setting_that_cannot_be_used(self, site: Site, tmp_path: Path, changed: dict[str, str]) -> None:
        with pytest.raises(SettingsError, match=next(iter(changed))):
            run(site.order(), tmp_path, site.settings(tmp_path, **changed))


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, Acquisition("lplgrad-coverage", 1.0, random_share=0.05, apart=GAP)),
        ({"LPLGRAD_COVERAGE": "off", "LPLGRAD_RANDOM_SHARE": "0"}, Acquisition("lplgrad-coverage", None)),
        ({"LPLGRAD_COVERAGE": "4", "LPLGRAD_STRICT": "true"}, Acquisition("lplgrad-coverage", 4.0, True, 0.05, GAP)),
        ({"LPLGRAD_PRESET": "paper"}, Acquisition("lplgrad", random_share=0.05)),
        (
            {"LPLGRAD_PRESET": "paper", "LPLGRAD_STRATEGY": "margin"},
            Acquisition("margin", random_share=0.05, apart=GAP),
        ),
    ],
)
def test_the_settings_say_how_to_order(environ: dict[str, str], wanted: Acquisition) -> None:
    assert acquisition_of(read_settings(environ, None)) == wanted


@pytest.mark.parametrize(
    ("environ", "labels", "cold"),
    [
        ({}, 5, True),
        ({}, 6, False),
        ({"LPLGRAD_COLD_START": "false"}, 5, False),
        ({"LPLGRAD_STRICT": "true"}, 5, False),
        ({"LPLGRAD_STRATEGY": "margin"}, 5, False),
        ({"LPLGRAD_COVERAGE": "off"}, 5, False),
    ],
)
def test_when_labels_are_too_few_to_ask_the_network(environ: dict[str, str], labels: int, cold: bool) -> None:
    settings, looked = read_settings(environ, None), Looked(torch.zeros(labels, 2), torch.zeros(labels, 4), ())
    targets = torch.eye(2)[torch.arange(labels) % 2]
    assert too_cold(settings, acquisition_of(settings), Labelled(looked, targets, [], {})) == cold
    pixels = torch.zeros(labels, 3, 8, 8, dtype=torch.uint8)
    assert not too_cold(settings, acquisition_of(settings), Labelled(pixels, targets, [], {}))


def test_every_strategy_can_be_set() -> None:
    for name in STRATEGIES:
        assert acquisition_of(read_settings({"LPLGRAD_STRATEGY": name}, None)).strategy == name


def test_an_unhealthy_order_is_replaced_and_said() -> None:
    pool = alike_pool(60)
    answers = [
        Measured(
            0.0,
            np.ones(4, np.float32) / 4,
            Answers(pool.logits[:1], pool.features[:1], torch.ones(1), torch.zeros(1, 1)),
        )
        for _ in range(60)
    ]
    ordered = order_measured(answers, torch.zeros(0, 5), torch.zeros(4), False, Acquisition("lplgrad-coverage"), 0)
    assert (ordered.ordered_by == SAFE) == bool(complaints(ordered))


def test_the_last_of_a_phase_is_always_reported(capsys: pytest.CaptureFixture[str]) -> None:
    report = Reporter()
    for done in range(1, 1001):
        report(Phase.SCORING, done, 1000)
    lines = [Progress.model_validate_json(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1] == Progress(phase=Phase.SCORING, done=1000, total=1000)
    assert len(lines) < 1000


CRAMPED = """
import resource
from lplgrad_backend import trainer
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + {megabytes} * 2**20,) * 2)
trainer.main()
"""


class TestLittleMemory:
    """A real process that may take so much more than its libraries do, for images of which a batch takes a gigabyte."""

    @pytest.fixture
    def attempt(self, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Outcome]:
        monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # or each thread's own heap would take the room of several images
        backbone = torchvision.models.mobilenet_v3_small(weights=None, width_mult=0.25)
        torch.save(backbone.state_dict(), tmp_path / "weights.pth")
        settings = site.settings(tmp_path, LPLGRAD_IMAGE_SIZE="768", LPLGRAD_WEIGHTS=str(tmp_path / "weights.pth"))
        (tmp_path / "round").mkdir()

        def attempt(megabytes: int) -> Outcome:
            command = [sys.executable, "-c", CRAMPED.format(megabytes=megabytes)]
            return run_round(site.order(), tmp_path / "round", settings, lambda said: None, threading.Event(), command)

        return attempt

    def test_smaller_batches_fit(self, attempt: Callable[[int], Outcome]) -> None:
        assert re.search(r"batches are [248] times smaller than usual", " ".join(attempt(800).warnings))

    def test_of_the_smallest_it_is_a_sentence(self, attempt: Callable[[int], Outcome]) -> None:
        with pytest.raises(TrainingError, match=r"8 times smaller.*Set a smaller LPLGRAD_IMAGE_SIZE"):
            attempt(200)
