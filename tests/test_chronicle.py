"""The history keeps in step with the versions, also where a process was killed between the two."""

from __future__ import annotations

from pathlib import Path

import pytest
from learner_stage import Stage
from versions import save_version

from lplgrad_backend.chronicle import Chronicle
from lplgrad_backend.history import read_history
from lplgrad_backend.store import WEIGHTS, Store

PROJECT = 3


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def noted(store: Store, project: int = PROJECT) -> list[str]:
    return [record.version for record in read_history(store, project).versions]


def test_versions_that_were_saved_and_not_noted_are_noted(store: Store) -> None:
    for version in ("v1", "v2"):
        save_version(store, PROJECT, version, metrics={"images": 7, "held_out_accuracy": 0.5})
    Chronicle(store, PROJECT).catch_up()
    assert noted(store) == ["v1", "v2"]
    newest = read_history(store, PROJECT).newest
    assert newest is not None
    assert (newest.images, newest.metrics["held_out_accuracy"]) == (7, 0.5)
    assert read_history(store, PROJECT).queries == []  # nobody knows their addresses any more


def test_what_is_noted_stays_as_it_is(store: Store) -> None:
    save_version(store, PROJECT, "v1")
    chronicle = Chronicle(store, PROJECT)
    chronicle.version_made(store.manifest(PROJECT, "v1"), store.scores(PROJECT, "v1"), {1: "/a.png"}, (), 8)
    before = chronicle.read()
    chronicle.catch_up()
    assert chronicle.read() == before
    store.delete(PROJECT, "v1")
    chronicle.catch_up()
    assert chronicle.read() == before


def test_a_damaged_version_is_none_and_nothing_is_written_where_nothing_is_known(store: Store) -> None:
    Chronicle(store, PROJECT).catch_up()
    assert not store.project_folder(PROJECT).exists()
    save_version(store, PROJECT, "v1")
    file = store.project_folder(PROJECT) / "v1" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1])
    Chronicle(store, PROJECT).catch_up()
    assert noted(store) == []


def test_the_next_look_notes_what_a_killed_one_could_not(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.label(10)
    stage.look()
    history = stage.store.project_folder(stage.project) / "history.json"
    before = history.read_bytes()
    stage.label(10, first=10)
    stage.look()
    history.write_bytes(before)  # as if it was killed after the rename of v2
    assert noted(stage.store, stage.project) == ["v1"]
    stage.label(10, first=20)
    stage.look()
    assert noted(stage.store, stage.project) == ["v1", "v2", "v3"]
    compared = {one.version: one.compared for one in read_history(stage.store, stage.project).versions}
    assert compared["v2"] == 10
