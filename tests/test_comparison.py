"""Is a round clearly worse? And who is held out?"""

from __future__ import annotations

import numpy as np
import pytest
from learner_stage import Stage
from scipy.stats import binomtest
from versions import LABELING

from lplgrad_backend.comparison import (
    HELD_OUT_FROM,
    Comparison,
    compare,
    exact_mcnemar,
    image_key,
    right_classes,
    share_right,
    split,
)
from lplgrad_backend.labeling import Example, Labeling
from lplgrad_backend.rounds import Order, Outcome

SEVERAL = Labeling("kind", "image", "image", ("cat", "dog", "owl"), multiple=True)


def examples(count: int) -> list[Example]:
    return [Example(at, f"/{at}.png", (1.0, 0.0) if at % 2 else (0.0, 1.0)) for at in range(count)]


def named(shown: list[Example], wrong: int = 0) -> dict[str, list[str]]:
    """What a network says that is wrong about the first `wrong` of them."""
    return {
        image_key(one.uri): [
            name for name in LABELING.classes if (name in right_classes(LABELING, one)) != (at < wrong)
        ]
        for at, one in enumerate(shown)
    }


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (4, 0), (5, 0), (9, 2), (10, 10), (0, 7), (40, 21)])
def test_mcnemar_is_the_binomial_test(lost: int, won: int) -> None:
    expected = binomtest(lost, lost + won, 0.5, alternative="greater").pvalue if lost + won else 1.0
    assert exact_mcnemar(lost, won) == pytest.approx(expected)


@pytest.mark.parametrize(("lost", "won", "worse"), [(4, 0, False), (5, 0, True), (9, 5, False), (0, 30, False)])
def test_worse_is_more_than_a_bare_difference(lost: int, won: int, worse: bool) -> None:
    assert Comparison(100, 90, 90 + won - lost, lost, won).clearly_worse is worse


def test_equally_good_networks_are_seldom_called_worse() -> None:
    random = np.random.default_rng(0)
    right = random.random((4000, 2, 60)) < 0.8
    lost = (right[:, 0] & ~right[:, 1]).sum(1)
    won = (right[:, 1] & ~right[:, 0]).sum(1)
    called = np.mean([exact_mcnemar(int(a), int(b)) < 0.05 for a, b in zip(lost, won, strict=True)])
    assert 0.01 < called <= 0.05


def test_few_labels_all_train() -> None:
    few = examples(HELD_OUT_FROM - 1)
    assert split(LABELING, few, {"cat": 99, "dog": 100}) == (few, [])


def test_about_a_tenth_is_held_out_and_stays_so() -> None:
    training, held_out = split(LABELING, examples(1000), {"cat": 500, "dog": 500})
    assert 70 <= len(held_out) <= 130
    assert sorted(one.task_id for one in training + held_out) == list(range(1000))
    _, later = split(LABELING, examples(2000), {"cat": 1000, "dog": 1000})
    assert [one.uri for one in later][: len(held_out)] == [one.uri for one in held_out]


def test_one_image_in_two_tasks_is_on_one_side() -> None:
    twice = [Example(at, f"/{at % 500}.png", (1.0, 0.0)) for at in range(1000)]
    training, held_out = split(LABELING, twice, {"cat": 1000})
    assert not {one.uri for one in training} & {one.uri for one in held_out}


def test_a_scarce_class_gives_none_away() -> None:
    _, held_out = split(LABELING, examples(1000), {"cat": 500, "dog": 9})
    assert {name for one in held_out for name in right_classes(LABELING, one)} == {"cat"}


def test_only_images_of_both_are_compared() -> None:
    shown = examples(40)
    found = compare(LABELING, shown, named(shown[:30]), named(shown[10:], wrong=6))
    assert (found.images, found.before, found.after, found.lost, found.won) == (20, 20, 14, 6, 0)
    assert found.clearly_worse
    assert "14 right, v3 20" in found.sentence("v3")
    assert compare(LABELING, shown, {}, named(shown)).images == 0
    assert not compare(LABELING, shown, {}, named(shown)).clearly_worse


def test_labels_as_they_are_now_decide() -> None:
    shown = examples(2)
    assert share_right(LABELING, shown, named(shown)) == 1.0
    relabelled = [Example(one.task_id, one.uri, (one.target[1], one.target[0])) for one in shown]
    assert share_right(LABELING, relabelled, named(shown)) == 0.0
    assert share_right(LABELING, shown, {}) is None


def test_several_classes_are_right_together() -> None:
    one = Example(1, "/1.png", (1.0, 0.5, 0.2))
    assert right_classes(SEVERAL, one) == {"cat", "dog"}
    assert share_right(SEVERAL, [one], {image_key("/1.png"): ["dog", "cat"]}) == 1.0
    assert share_right(SEVERAL, [one], {image_key("/1.png"): ["cat"]}) == 0.0
    assert right_classes(SEVERAL, Example(2, "/2.png", (0.0, 0.0, 0.0))) == set()


class TestRounds:
    """220 labels make v1, ten more v2, whose network forgot `wrong` of the held-out images."""

    def second(self, stage: Stage, wrong: int) -> Order:
        stage.label(220)
        stage.held_out = lambda order: named(order.held_out)
        assert stage.look().published == "v1"
        stage.held_out = lambda order: named(order.held_out, wrong)
        stage.label(10, first=220)
        stage.look()
        return stage.orders[-1]

    def test_a_clearly_worse_round_is_kept_and_not_published(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        stage = Stage(tmp_path_factory.mktemp("stage"), 260)
        order = self.second(stage, wrong=9)
        assert not {one.uri for one in order.examples} & {one.uri for one in order.held_out}
        assert stage.store.versions(stage.project) == ["v1", "v2"]
        assert stage.row["model_version"] == "v1"
        status = stage.statuses.read(stage.project)
        assert status.published == "v1"
        assert status.not_published is not None and "v2 is kept and not published" in status.not_published
        assert not stage.predictions("v2")
        assert stage.look().rounds == 2, "and it is not trained again before new labels"
        stage.held_out = lambda order: named(order.held_out)
        stage.label(10, first=230)
        assert stage.look().published == "v3"
        assert stage.statuses.read(stage.project).not_published is None

    def test_a_little_worse_is_published(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        stage = Stage(tmp_path_factory.mktemp("stage"), 260)
        self.second(stage, wrong=4)
        assert stage.row["model_version"] == "v2"
        manifest = stage.store.manifest(stage.project, "v2")
        assert manifest.metrics["held_out_accuracy"] == 1 - 4 / manifest.metrics["held_out_images"]

    def test_always_publish_overrides(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        stage = Stage(tmp_path_factory.mktemp("stage"), 260, LPLGRAD_ALWAYS_PUBLISH="true")
        self.second(stage, wrong=9)
        assert stage.row["model_version"] == "v2"

    def test_orders_and_outcomes_pass_through_json(self) -> None:
        order = Order(project=1, labeling=LABELING, held_out=examples(3), pool=[])
        assert Order.model_validate_json(order.model_dump_json()) == order
        outcome = Outcome(held_out=named(examples(3)))
        assert Outcome.model_validate_json(outcome.model_dump_json()) == outcome
