"""Active against random: which queue asked for a label, and what it had predicted."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from learner_stage import Stage
from versions import LABELING, pool_scores, save_version

from lplgrad_backend.history import Group, History, VersionRecord, read_history, with_version
from lplgrad_backend.labeling import Example
from lplgrad_backend.random_share import newest_with_enough, with_missed, with_shown
from lplgrad_backend.store import Store

TASKS = [(number, f"/{number}.png") for number in range(1, 11)]
DRAWN = {2, 4, 6}
CAT, DOG = (1.0, 0.0), (0.0, 1.0)  # every version predicts a cat


def example(number: int, target: tuple[float, ...] = CAT) -> Example:
    return Example(number, f"/{number}.png", target)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def made(store: Store, *versions: str) -> History:
    history = History()
    for version in versions:
        manifest = save_version(store, 1, version, tasks=TASKS, random=DRAWN)
        history = with_version(history, manifest, pool_scores(TASKS, random=DRAWN), dict(TASKS))
    return history


def groups(history: History, version: str) -> tuple[list[int], int, list[int], int]:
    record = next(record for record in history.versions if record.version == version)
    return record.drawn.tasks, record.drawn.agreed, record.chosen.tasks, record.chosen.agreed


def test_labels_count_by_how_their_image_came_to_the_queue(store: Store) -> None:
    labelled = [example(1), example(2), example(4, DOG), example(5, DOG), example(99)]
    found = with_shown(made(store, "v1"), store, 1, LABELING, labelled, "v1")
    assert groups(found, "v1") == ([2, 4], 1, [1, 5], 1)
    assert found.versions[0].drawn.classes == {"cat": 1, "dog": 1}


def test_a_label_counts_once_and_for_the_queue_that_was_shown(store: Store) -> None:
    first = with_shown(made(store, "v1"), store, 1, LABELING, [example(2)], "v1")
    both = first.model_copy(update={"versions": [*first.versions, made(store, "v2").versions[0]]})
    found = with_shown(both, store, 1, LABELING, [example(2), example(4), example(5)], "v2")
    assert groups(found, "v1") == ([2], 1, [], 0)
    assert groups(found, "v2") == ([4], 1, [5], 1)
    back = with_shown(found, store, 1, LABELING, [example(number) for number in range(1, 8)], "v1")
    assert groups(back, "v1") == ([2, 6], 2, [1, 3, 7], 3), "after a rollback"
    assert groups(back, "v2") == groups(found, "v2")


def test_a_label_that_came_while_the_round_ran_counts_for_none(store: Store) -> None:
    history = with_missed(made(store, "v1"), "v1", {2, 3})
    found = with_shown(history, store, 1, LABELING, [example(number) for number in (1, 2, 3, 4)], "v1")
    assert groups(found, "v1") == ([4], 1, [1], 1)


def test_a_changed_label_is_judged_anew_and_one_taken_back_waits(store: Store) -> None:
    found = with_shown(made(store, "v1"), store, 1, LABELING, [example(1), example(2)], "v1")
    found = with_shown(found, store, 1, LABELING, [example(2, DOG)], "v1")
    assert groups(found, "v1") == ([2], 0, [], 0)


def test_what_was_counted_outlives_the_versions_files(store: Store) -> None:
    found = with_shown(made(store, "v1"), store, 1, LABELING, [example(2)], "v1")
    store.delete(1, "v1")
    assert with_shown(found, store, 1, LABELING, [example(2, DOG), example(4)], "v1") == found
    other = with_shown(found, store, 1, LABELING, [example(2)], None)
    assert other == found


def test_the_newest_versions_with_enough_images_make_the_estimate() -> None:
    history = made_up([0, 3, 4, 0, 5])
    assert [record.version for record in newest_with_enough(history, 6)] == ["v3", "v5"]
    assert [record.version for record in newest_with_enough(history, 99)] == ["v2", "v3", "v5"]
    assert newest_with_enough([], 6) == []


def made_up(counts: list[int]) -> list[VersionRecord]:
    plain = {"created": "2026-01-01T00:00:00Z", "labels": {}, "images": 0}
    return [
        VersionRecord.model_validate(plain | {"version": f"v{number}", "drawn": Group(tasks=list(range(count)))})
        for number, count in enumerate(counts, 1)
    ]


def test_the_share_drawn_estimates_the_accuracy_on_the_pool_where_the_chosen_do_not(store: Store) -> None:
    """Forty pools of which the queue puts first what its version names wrongly; ten labels each."""
    order = random.Random(0)
    drawn, chosen = [], []
    for number in range(1, 41):
        wrong = set(order.sample(range(1, 101), 30))
        marked = set(order.sample(range(1, 101), 10))
        queue = sorted(range(1, 101), key=lambda task: (task not in wrong, task))
        front = [*[task for task in queue if task not in marked][:8], *sorted(marked)[:2]]
        tasks = [(task, f"/{task}.png") for task in range(1, 101)]
        manifest = save_version(store, number, "v1", tasks=tasks, random=marked)
        history = with_version(History(), manifest, pool_scores(tasks, random=marked), dict(tasks))
        labelled = [example(task, DOG if task in wrong else CAT) for task in front]
        record = with_shown(history, store, number, LABELING, labelled, "v1").versions[0]
        drawn.append(record.drawn.agreed / 2)
        chosen.append(record.chosen.agreed / 8)
    assert np.mean(drawn) == pytest.approx(0.7, abs=0.11)
    assert np.mean(chosen) < 0.1


def test_a_learner_counts_for_the_queue_that_it_has_shown(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.label(10)

    def meanwhile() -> None:
        stage.during = lambda: None
        stage.label(2, first=10)

    stage.during = meanwhile
    stage.look()
    stage.label(8, first=12)
    stage.look()
    first, second = read_history(stage.store, stage.project).versions
    assert first.missed == stage.tasks[10:12]
    assert first.chosen.tasks == stage.tasks[12:20]
    assert first.chosen.agreed == first.chosen.classes["cat"] == 4
    assert (second.chosen.tasks, second.missed) == ([], [])
