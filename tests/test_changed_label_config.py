"""A label config that is changed while a queue is served: what is trained, what is published, and that nothing mixes."""

from __future__ import annotations

from pathlib import Path

import pytest
from learner_stage import CONFIG, Stage, choice

from lplgrad_backend.backend import LPLGradBackend
from lplgrad_backend.history import read_history
from lplgrad_backend.jobs import memory_queue
from lplgrad_backend.labeling import parse_label_config
from lplgrad_backend.served import roll_back
from lplgrad_backend.service import build_service
from lplgrad_backend.status import Mark

WITH_OWL = CONFIG.replace('<Choice value="dog"/>', '<Choice value="dog"/><Choice value="owl"/>')
RENAMED = CONFIG.replace('<Choice value="cat"/>', '<Choice value="Katze" alias="cat"/>')
WITHOUT_DOG = WITH_OWL.replace('<Choice value="dog"/>', "")


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path, 60)


def change(stage: Stage, config: str) -> None:
    stage.fake.update_project(stage.project, {"label_config": config})


def shown(stage: Stage, version: str) -> set[str]:
    """Classes that the predictions of a version name in Label Studio."""
    rows = stage.predictions(version).values()
    assert len(rows) >= len(stage.unlabelled()) > 0
    return {label for row in rows for part in row["result"] for label in part["value"]["choices"]}


def test_an_added_class_is_learned_with_all_labels_and_the_version_before_stays_what_it_was(stage: Stage) -> None:
    stage.label(10)
    stage.look()
    change(stage, WITH_OWL)
    assert stage.look().published == "v2"
    assert [order.labeling.classes for order in stage.orders] == [("cat", "dog"), ("cat", "dog", "owl")]
    assert len(stage.orders[1].examples) == 10
    assert all(len(example.target) == 3 for example in stage.orders[1].examples)
    before, after = (stage.store.manifest(stage.project, version) for version in ("v1", "v2"))
    assert (before.labeling.classes, after.labeling.classes) == (("cat", "dog"), ("cat", "dog", "owl"))
    assert (shown(stage, "v1"), shown(stage, "v2")) == ({"cat"}, {"owl"})
    assert stage.look().published == "v2" and len(stage.orders) == 2  # and no further round


def test_a_class_renamed_by_alias_keeps_its_labels_and_its_meaning(stage: Stage) -> None:
    """Only the word that people see is another: a round is due, and what was learned and judged before counts on."""
    stage.label(10)
    stage.look()
    change(stage, RENAMED)
    assert stage.look().published == "v2"
    assert shown(stage, "v1") == shown(stage, "v2") == {"cat"}
    assert stage.look().published == "v2" and len(stage.orders) == 2  # and no further round
    stage.label(10, first=10)  # Label Studio saves the alias
    assert stage.look().published == "v3"
    newest = stage.store.manifest(stage.project, "v3")
    assert (newest.labeling.classes, newest.labels) == (("cat", "dog"), {"cat": 10, "dog": 10})
    assert shown(stage, "v3") == {"cat"}
    judged = {record.version: record.compared for record in read_history(stage.store, stage.project).versions}
    assert judged["v2"] == 10


def test_a_removed_class_is_not_learned_again(stage: Stage) -> None:
    change(stage, WITH_OWL)
    stage.label(10)
    stage.look()
    assert shown(stage, "v1") == {"owl"}
    change(stage, CONFIG)
    assert stage.look().published == "v2"
    assert shown(stage, "v2") == {"cat"}


def test_while_too_few_labels_are_left_the_old_version_serves_without_the_removed_class(stage: Stage) -> None:
    change(stage, WITH_OWL)
    stage.label(10)
    stage.look()
    change(stage, WITHOUT_DOG)
    stage.fake.delete_model_version(stage.project, "v1")
    stage.statuses.set_mark(stage.project, Mark.TASKS)
    status = stage.look()
    assert (status.published, status.last_error, status.due) == ("v1", None, "labels of 1 more class(es)")
    assert "dog" not in shown(stage, "v1")
    assert set(stage.predictions("v1")) >= stage.unlabelled()
    for task in sorted(stage.unlabelled())[:2]:
        stage.fake.annotate(task, {"result": choice("owl")}, "me@example.com")
    assert stage.look().published == "v2"
    newest = stage.store.manifest(stage.project, "v2")
    assert (newest.labeling.classes, newest.labels) == (("cat", "owl"), {"cat": 5, "owl": 2})


def test_a_rollback_to_a_version_of_the_older_config_shows_what_both_know(stage: Stage) -> None:
    change(stage, WITH_OWL)
    stage.label(10)
    stage.look()
    change(stage, CONFIG)
    stage.look()
    roll_back(stage.store, stage.project, "v1")
    stage.fake.delete_model_version(stage.project, "v1")
    status = stage.look()
    assert (status.published, status.last_error) == ("v1", None)
    assert stage.row["model_version"] == "v1"
    assert shown(stage, "v1") == {"cat"}  # its likeliest, owl, is no class any more
    stage.label(10, first=10)
    assert stage.look().published == "v3"
    assert stage.orders[-1].labeling.classes == ("cat", "dog")
    judged = {record.version: record.compared for record in read_history(stage.store, stage.project).versions}
    assert judged["v1"] == 0  # what it said of three classes is not held against two


@pytest.mark.parametrize(("config", "rings"), [(CONFIG, False), (WITH_OWL, True), (RENAMED, True), (WITHOUT_DOG, True)])
def test_the_event_rings_where_the_classes_changed(stage: Stage, config: str, rings: bool) -> None:
    stage.label(10)
    stage.look()
    service = build_service(stage.settings, memory_queue())
    LPLGradBackend(project_id=stage.project, service=service).fit(
        "PROJECT_UPDATED", {"project": {"id": stage.project, "label_config": config}}
    )
    assert (service.jobs.waiting() == [stage.project]) is rings
    assert parse_label_config(config).classes
