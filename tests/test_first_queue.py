"""A project's queue before it has a version, against a fake Label Studio."""

from __future__ import annotations

from pathlib import Path

import pytest
from learner_stage import CONFIG, Stage

from lplgrad_backend.first_queue import is_wanted, said_of
from lplgrad_backend.settings import read_settings
from lplgrad_backend.status import ColdStart, Mark, Phase


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, LPLGRAD_COLD_START="true")


def test_the_first_look_orders_the_queue_without_a_network(stage: Stage) -> None:
    status = stage.look()
    assert (status.phase, status.last_error, status.published) == (Phase.IDLE, None, "start-1")
    assert status.cold_start == ColdStart(version="start-1", newest_task=max(stage.tasks), basis="colours and edges")
    assert stage.row["model_version"] == "start-1"
    assert stage.row["sampling"] == "Uncertainty sampling"
    predictions = stage.predictions("start-1")
    assert set(predictions) == stage.unlabelled()
    assert all(row["result"] == [] for row in predictions.values())
    served = stage.client.next_task(stage.project)
    assert served is not None and served["id"] == min(stage.tasks)
    assert stage.store.versions(stage.project) == []
    assert [order.cold for order in stage.orders] == [True]


def test_it_stands_while_the_first_labels_come(stage: Stage) -> None:
    stage.look()
    stage.label(9)
    stage.statuses.set_mark(stage.project, Mark.TASKS)
    assert stage.look().published == "start-1"
    assert len(stage.orders) == 1


def test_the_first_round_takes_its_place(stage: Stage) -> None:
    stage.look()
    stage.label(10)
    status = stage.look()
    assert (status.published, status.cold_start) == ("v1", None)
    assert stage.client.model_versions(stage.project).keys() == {"v1"}
    assert len(stage.orders) == 2
    assert stage.store.check() == []


def test_tasks_that_come_are_ordered_among_the_others(stage: Stage) -> None:
    stage.look()
    stage.label(2)
    new = stage.add_tasks(5)
    stage.statuses.set_mark(stage.project, Mark.TASKS)
    assert stage.look().published == "start-2"
    assert set(stage.predictions("start-2")) == stage.unlabelled() >= set(new)
    assert stage.client.model_versions(stage.project).keys() == {"start-2"}
    assert [example.task_id for example in stage.orders[1].examples] == stage.tasks[:2]


def test_of_too_many_tasks_a_part_is_ordered_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 40, LPLGRAD_COLD_START="true", LPLGRAD_POOL_LIMIT="15")
    for _ in range(3):
        stage.statuses.set_mark(stage.project, Mark.TASKS)
        stage.look()
    assert len(stage.predictions("start-1")) == 15
    assert len(stage.orders) == 1


def test_unreadable_images_are_last_in_line(stage: Stage) -> None:
    stage.unreadable = {stage.tasks[3]: "it is gone."}
    assert stage.look().unreadable == stage.unreadable
    assert stage.predictions("start-1")[stage.tasks[3]]["score"] == 1.0
    stage.statuses.set_mark(stage.project, Mark.TASKS)
    stage.look()
    assert len(stage.orders) == 1


def test_a_project_without_tasks_is_left_alone(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 0, LPLGRAD_COLD_START="true")
    status = stage.look()
    assert (status.published, status.last_error, stage.orders) == (None, None, [])


@pytest.mark.parametrize("version", ["v7", "somebody's"])
def test_predictions_of_others_stay_in_charge(stage: Stage, version: str) -> None:
    row = {"task": stage.tasks[0], "result": [], "score": 0.3, "model_version": version}
    stage.client.push_predictions(stage.project, [row])
    stage.client.update_project(stage.project, model_version=version)
    stage.look()
    assert (stage.row["model_version"], stage.orders) == (version, [])


def test_a_project_connected_again_is_pointed_back(stage: Stage) -> None:
    stage.look()
    stage.fake.projects[stage.project]["model_version"] = "LPLgrad"  # what connecting does
    stage.look()
    assert stage.row["model_version"] == "start-1"
    assert len(stage.orders) == 1


def test_predictions_that_were_removed_are_made_anew(stage: Stage) -> None:
    stage.look()
    stage.fake.delete_model_version(stage.project, "start-1")
    assert stage.look().published == "start-1"
    assert set(stage.predictions("start-1")) == stage.unlabelled()


def test_a_project_that_is_left_alone_gets_a_sentence(tmp_path: Path) -> None:
    stage = Stage(tmp_path, LPLGRAD_COLD_START="true", LPLGRAD_MANAGE_PROJECT="false")
    status = stage.look()
    assert stage.row["model_version"] != "start-1"
    assert status.to_do_by_hand is not None and "start-1" in status.to_do_by_hand


def test_a_label_config_without_two_classes_orders_nothing(stage: Stage) -> None:
    stage.fake.projects[stage.project]["label_config"] = CONFIG.replace('<Choice value="dog"/>', "")
    assert stage.look().last_error is not None
    assert stage.orders == []


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, True),
        ({"LPLGRAD_COLD_START": "false"}, False),
        ({"LPLGRAD_PRESET": "paper"}, False),
        ({"LPLGRAD_STRATEGY": "random"}, False),
        ({"LPLGRAD_STRATEGY": "badge"}, True),
    ],
)
def test_when_it_is_wanted(environ: dict[str, str], wanted: bool) -> None:
    assert is_wanted(read_settings(environ, None)) == wanted


def test_it_is_said_in_words() -> None:
    said = said_of(ColdStart(version="start-1", newest_task=3, basis="colours and edges"))
    assert said == "Until the first version typical images come first, compared by colours and edges (start-1)."
