"""Which version people are served."""

from __future__ import annotations

from pathlib import Path

import pytest
from learner_stage import CONFIG, Stage
from versions import save_version

from lplgrad_backend.errors import VersionNotFound
from lplgrad_backend.served import ROLLBACK, read_rollback, roll_back, served, why_not_newest
from lplgrad_backend.status import Mark
from lplgrad_backend.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def add(store: Store, *versions: str, held_back: str = "") -> None:
    for version in versions:
        save_version(store, 1, version, held_back=held_back)


def shown(store: Store) -> str | None:
    manifest = served(store, 1)
    return manifest.version if manifest else None


def test_the_newest_is_served(store: Store) -> None:
    assert shown(store) is None
    add(store, "v1", "v2")
    assert shown(store) == "v2"


def test_what_was_held_back_is_passed_over(store: Store) -> None:
    add(store, "v1", held_back="worse.")
    assert shown(store) == "v1", "there is nothing else"
    add(store, "v2")
    add(store, "v3", "v4", held_back="worse.")
    assert shown(store) == "v2"
    newest, served_now = store.newest(1), served(store, 1)
    assert newest and served_now
    assert why_not_newest(newest, served_now) == "v4 is kept and not published: worse."
    assert why_not_newest(served_now, served_now) is None


def test_a_rollback_holds_until_a_newer_version_is_published(store: Store) -> None:
    add(store, "v1", "v2", "v3")
    roll_back(store, 1, "v1")
    assert shown(store) == "v1"
    add(store, "v4", held_back="worse.")
    assert shown(store) == "v1"
    add(store, "v5")
    assert shown(store) == "v5"


def test_a_version_held_back_can_be_chosen(store: Store) -> None:
    add(store, "v1")
    add(store, "v2", held_back="worse.")
    roll_back(store, 1, "v2")
    assert shown(store) == "v2"


def test_one_rollback_replaces_another(store: Store) -> None:
    add(store, "v1", "v2", "v3")
    for version in ("v1", "v2", "v3"):
        roll_back(store, 1, version)
        assert shown(store) == version
    assert store.check() == []


def test_a_version_that_is_not_there_cannot_be_chosen(store: Store) -> None:
    add(store, "v1")
    with pytest.raises(VersionNotFound, match="v9"):
        roll_back(store, 1, "v9")
    assert read_rollback(store, 1) is None


@pytest.mark.parametrize("content", ["", "{}", '{"version": "v1", "instead_of": "x"}'])
def test_an_unreadable_rollback_is_none(store: Store, content: str) -> None:
    add(store, "v1", "v2")
    (store.project_folder(1) / ROLLBACK).write_text(content)
    assert shown(store) == "v2"


def test_a_rollback_to_a_version_that_is_damaged_later_falls_back_to_the_newest(store: Store) -> None:
    add(store, "v1", "v2", "v3")
    roll_back(store, 1, "v1")
    store.weights_path(1, "v1").write_bytes(b"rot")
    assert shown(store) == "v3"


# In a look


@pytest.fixture
def rolled_back(tmp_path: Path) -> Stage:
    """v2 of 20 labels, rolled back to v1 of 10; Label Studio has lost the predictions of v1."""
    stage = Stage(tmp_path, 40)
    for first in (0, 10):
        stage.label(10, first=first)
        stage.look()
    stage.fake.delete_model_version(stage.project, "v1")
    roll_back(stage.store, stage.project, "v1")
    assert stage.look().published == "v1"
    return stage


def test_a_rollback_pushes_the_old_scores_again(rolled_back: Stage) -> None:
    stage = rolled_back
    assert stage.row["model_version"] == "v1"
    assert set(stage.predictions("v1")) == stage.unlabelled()
    scores = stage.store.scores(stage.project, "v1")
    for task, row in stage.predictions("v1").items():
        at = scores.position(task, stage.fake.tasks[task]["data"]["image"])
        assert at is not None
        assert row["score"] == pytest.approx(float(scores.scores[at]))
    assert len(stage.orders) == 2, "nothing was trained or scored"
    said = stage.statuses.read(stage.project).not_published
    assert said is not None and "rolled back to v1" in said


def test_no_look_undoes_a_rollback_before_labels_do(rolled_back: Stage) -> None:
    stage = rolled_back
    for mark in (Mark.TASKS, Mark.ANNOTATIONS):
        stage.statuses.set_mark(stage.project, mark)
        assert stage.look().published == "v1"
    stage.label(9, first=20)
    assert stage.look().published == "v1"
    stage.label(1, first=29)
    status = stage.look()
    assert (status.published, status.not_published) == ("v3", None)
    assert len(stage.orders) == 3


def test_the_version_served_is_never_removed(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 40, LPLGRAD_KEEP_VERSIONS="1", START_TRAINING_EACH_N_UPDATES="4")
    stage.label(4)
    stage.look()
    save_version(stage.store, stage.project, "v2", held_back="worse.")
    save_version(stage.store, stage.project, "v3", held_back="worse.")
    stage.look()
    assert stage.store.versions(stage.project) == ["v1", "v3"]
    assert stage.row["model_version"] == "v1"


def test_a_changed_label_config_ends_a_rollback_and_mixes_nothing(rolled_back: Stage) -> None:
    stage = rolled_back
    config = CONFIG.replace('<Choice value="dog"/>', '<Choice value="dog"/><Choice value="owl"/>')
    stage.fake.update_project(stage.project, {"label_config": config})
    assert stage.look().published == "v3"
    newest = stage.store.newest(stage.project)
    assert newest is not None and newest.labeling.classes == ("cat", "dog", "owl")
