"""One prediction per task, in order, always: as published, else measured now with the same network."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_versions import MadeImages, made, save_network, small_network
from versions import LABELING, save_version

from lplgrad_backend.labeling import Labeling
from lplgrad_backend.predictor import VERSIONS_IN_MEMORY, Predictor
from lplgrad_backend.scoring import Measured, Scorer, as_batch, scores_of
from lplgrad_backend.settings import read_settings
from lplgrad_backend.store import Store

PROJECT = 7
POOL = [(1, "/a.png"), (2, "/b.png"), (3, "/broken.png"), (4, "/d.png")]
UNTRAINED = {"result": [], "score": 0.5, "model_version": "untrained"}


def task(number: int, uri: object) -> dict[str, Any]:
    return {"id": number, "data": {"image": uri}, "project": PROJECT}


class Scene:
    """A store, images that are made from their addresses, and a predictor that looks at both."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.store, self.images = Store(folder), MadeImages()
        self.predictor = Predictor(read_settings(environ, None), self.store, self.images)

    def save(self, version: str = "v1", seed: int = 0, project: int = PROJECT) -> None:
        save_network(self.store, project, version, small_network(seed), POOL)
        self.images.asked.clear()

    def predict(self, *tasks: dict[str, Any], labeling: Labeling = LABELING) -> list[dict[str, Any]]:
        return self.predictor.predict(PROJECT, labeling, tasks)

    def published(self, number: int, version: str = "v1") -> float:
        scores = self.store.scores(PROJECT, version)
        at = scores.position(number, dict(POOL)[number])
        assert at is not None
        return float(scores.scores[at])


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def trained(scene: Scene) -> Scene:
    scene.save()
    return scene


class TestBeforeTheFirstVersion:
    def test_every_task_gets_one_half_and_no_label(self, scene: Scene) -> None:
        assert scene.predict(task(1, "/a.png"), {"id": 2}, {}) == [UNTRAINED] * 3
        assert scene.predict() == []
        assert scene.predictor.version(PROJECT) == "untrained"
        assert scene.images.asked == []

    def test_another_projects_version_says_nothing(self, trained: Scene) -> None:
        assert trained.predictor.predict(PROJECT + 1, LABELING, [task(1, "/a.png")]) == [UNTRAINED]


class TestPublished:
    def test_what_was_published_is_said_again_without_reading_the_image(self, trained: Scene) -> None:
        found = trained.predict(task(4, "/d.png"), task(1, "/a.png"))
        assert [row["score"] for row in found] == [trained.published(4), trained.published(1)]
        assert {row["model_version"] for row in found} == {"v1"} == {trained.predictor.version(PROJECT)}
        assert all(row["result"][0]["value"]["choices"][0] in LABELING.classes for row in found)
        assert trained.images.asked == []

    def test_a_task_whose_image_was_exchanged_is_measured(self, trained: Scene) -> None:
        found = trained.predict(task(1, "/other.png"))
        assert trained.images.asked == [(1, "/other.png")]
        assert found[0]["score"] != trained.published(1)


class TestUnknown:
    def test_others_are_measured_with_the_same_network(self, trained: Scene) -> None:
        found = trained.predict(task(50, "/x.png"), task(1, "/a.png"), task(51, "/y.png"))
        assert trained.images.asked == [(50, "/x.png"), (51, "/y.png")]
        measured = list(Scorer(small_network()).measure(MadeImages(), [(50, "/x.png"), (51, "/y.png")]))
        scale = trained.store.manifest(PROJECT, "v1").scale
        for row, one in zip((found[0], found[2]), measured, strict=True):
            assert isinstance(one, Measured)
            assert row["score"] == pytest.approx(float(scores_of(np.array([one.norm]), scale)[0]), rel=1e-4)
            best = int(one.probabilities.argmax())
            assert row["result"][0]["value"] == {"choices": [LABELING.classes[best]]}
            assert row["result"][0]["score"] == pytest.approx(float(one.probabilities[best]), rel=1e-4)

    def test_the_same_picture_under_another_number_gets_the_published_score(self, trained: Scene) -> None:
        assert trained.predict(task(99, "/a.png"))[0]["score"] == pytest.approx(trained.published(1), rel=1e-4)

    def test_a_task_without_a_number(self, trained: Scene) -> None:
        assert 0 < trained.predict({"data": {"image": "/x.png"}})[0]["score"] < 1


class TestUnreadable:
    @pytest.mark.parametrize(
        "broken",
        [
            task(3, "/broken.png"),
            task(60, "/broken-too.png"),
            task(61, 5),
            task(62, ""),
            {"id": 63},
            {"data": None},
            {},
        ],
    )
    def test_it_comes_last_without_a_label_and_costs_itself_alone(self, trained: Scene, broken: dict[str, Any]) -> None:
        found = trained.predict(task(1, "/a.png"), broken, task(70, "/x.png"))
        assert found[1] == {"result": [], "score": 1.0, "model_version": "v1"}
        assert found[0]["score"] == trained.published(1)
        assert 0 < found[2]["score"] < 1 and found[2]["result"]


KINDS = st.sampled_from([task(1, "/a.png"), task(2, "/b.png"), task(8, "/x.png"), task(9, "/broken.png"), {"id": 5}])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(KINDS, max_size=6))
def test_always_one_result_per_task_in_order(trained: Scene, tasks: list[dict[str, Any]]) -> None:
    found = trained.predict(*tasks)
    assert len(found) == len(tasks)
    alone = [trained.predict(one)[0] for one in tasks]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in alone], rel=1e-3)
    assert [bool(row["result"]) for row in found] == [bool(row["result"]) for row in alone]


class TestLabels:
    def test_preannotation_can_be_left_out(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path, LPLGRAD_PREANNOTATE="false")
        scene.save()
        found = scene.predict(task(1, "/a.png"), task(9, "/x.png"))
        assert [row["result"] for row in found] == [[], []]
        assert found[0]["score"] == scene.published(1)

    @pytest.mark.parametrize("classes", [("dog", "cat"), ("wolf", "dog", "cat")])
    def test_classes_keep_their_names_in_another_order(self, trained: Scene, classes: tuple[str, ...]) -> None:
        tasks = [task(number, uri) for number, uri in POOL] + [task(80 + n, f"/{n}.png") for n in range(6)]
        before = trained.predict(*tasks)
        after = trained.predict(*tasks, labeling=replace(LABELING, classes=classes))
        for one, other in zip(before, after, strict=True):
            assert [region["value"] for region in one["result"]] == [region["value"] for region in other["result"]]

    def test_the_class_shown_is_the_likeliest(self, trained: Scene) -> None:
        scores = trained.store.scores(PROJECT, "v1")
        for number in (1, 2, 4):
            at = scores.position(number, dict(POOL)[number])
            region = trained.predict(task(number, dict(POOL)[number]))[0]["result"][0]
            assert region["value"]["choices"] == [LABELING.classes[int(scores.probabilities[at].argmax())]]
            assert region["score"] == pytest.approx(float(scores.probabilities[at].max()))

    def test_its_confidence_is_that_at_the_versions_temperature(self, scene: Scene) -> None:
        network = small_network()
        save_network(scene.store, PROJECT, "v1", network, POOL, temperature=0.1)
        known, new = scene.predict(task(*POOL[0]), task(900, "/new.png"))
        for row, uri in ((known, POOL[0][1]), (new, "/new.png")):
            with torch.no_grad():
                logits = network(as_batch([made(uri)]).float() / 255)
            wanted = float(torch.softmax(logits / 0.1, 1).max())
            assert row["result"][0]["score"] == pytest.approx(wanted, rel=1e-4)
        plain = Scorer(network).measure_pixels(as_batch([made(POOL[0][1])]))[0]
        sharp = Scorer(network, confidence=0.1).measure_pixels(as_batch([made(POOL[0][1])]))[0]
        assert sharp.norm == plain.norm and sharp.probabilities.max() > plain.probabilities.max()


class TestVersions:
    def test_the_newest_is_used_from_the_next_call_on(self, trained: Scene) -> None:
        before = trained.predict(task(1, "/a.png"))
        trained.save("v2", seed=5)
        after = trained.predict(task(1, "/a.png"))
        assert [row["model_version"] for row in before + after] == ["v1", "v2"]
        assert after[0]["score"] == trained.published(1, "v2")

    def test_a_damaged_one_is_passed_over(self, trained: Scene) -> None:
        trained.save("v2", seed=5)
        (trained.store.project_folder(PROJECT) / "v2" / "weights.safetensors").write_bytes(b"damaged")
        assert trained.predict(task(1, "/a.png"))[0]["model_version"] == "v1"
        assert trained.predictor.version(PROJECT) == "v1"
        (trained.store.project_folder(PROJECT) / "v1" / "manifest.json").unlink()
        assert trained.predict(task(1, "/a.png")) == [UNTRAINED]

    def test_one_that_another_release_saved_is_no_error(self, scene: Scene) -> None:
        save_version(scene.store, PROJECT, "v1")
        assert scene.predict(task(1, "/a.png"), {}) == [UNTRAINED] * 2

    @pytest.mark.filterwarnings("ignore::lplgrad_backend.lplgrad.gradnorm.SlowGradientNorms")
    def test_one_that_says_nothing_finite_is_no_error(self, scene: Scene) -> None:
        broken = small_network()
        with torch.no_grad():
            broken.head.get_parameter("bias").fill_(torch.nan)
        save_network(scene.store, PROJECT, "v1", broken, [])
        empty = {"result": [], "score": 1.0, "model_version": "v1"}
        assert scene.predict(task(1, "/a.png"), task(2, "/broken.png")) == [empty] * 2

    def test_more_projects_than_fit_into_memory(self, scene: Scene) -> None:
        projects = range(1, VERSIONS_IN_MEMORY + 3)
        for project in projects:
            scene.save("v1", seed=project, project=project)
        first = [scene.predictor.predict(project, LABELING, [task(1, "/a.png")]) for project in projects]
        again = [scene.predictor.predict(project, LABELING, [task(1, "/a.png")]) for project in projects]
        assert first == again
        assert len({rows[0]["score"] for rows in first}) > 1


def test_threads_get_what_one_alone_gets(trained: Scene) -> None:
    tasks = [task(1, "/a.png"), task(90, "/x.png"), task(91, "/broken.png"), task(2, "/b.png")]
    alone, found = trained.predict(*tasks), []
    fresh = Scene(trained.store.folder)

    def ask() -> None:
        found.extend(fresh.predict(*tasks) for _ in range(3))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 12


class SlowImages(MadeImages):
    """Waits at every address that says "slow" until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.let_go = threading.Event(), threading.Event()

    def load_many(self, items: Any, side: int) -> Any:
        for one in items:
            if "slow" in one[1]:
                self.reached.set()
                assert self.let_go.wait(60)
            yield from super().load_many([one], side)


def test_an_image_that_takes_its_time_holds_up_nobody_else(trained: Scene) -> None:
    images = SlowImages()
    predictor = Predictor(read_settings({}, None), trained.store, images)
    slow: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: slow.extend(predictor.predict(PROJECT, LABELING, [task(9, "/slow.png")])))
    waiting.start()
    try:
        assert images.reached.wait(60)
        assert len(predictor.predict(PROJECT, LABELING, [task(8, "/x.png")])) == 1
        assert slow == []
    finally:
        images.let_go.set()
        waiting.join()
    assert len(slow) == 1
