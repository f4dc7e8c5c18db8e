"""What people do beside labelling: skip, change, delete, import, edit the label config, press Start Training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import UPDATES_PER_ROUND
from digits_project import DigitsProject

from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.demo.dataset import LABEL_CONFIG
from lplgrad_backend.publication import SAMPLING

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def project(backend: Backend, new_project: Callable[[str, int], DigitsProject]) -> DigitsProject:
    """Connected the way *Settings > Model > Connect Model* does it, and in no other."""
    project = new_project("What people do", 40)
    project.connect_model(backend.url)
    return project


def labels(project: DigitsProject, version: str) -> int:
    return sum(project.manifest(version).labels.values())


def test_connecting_in_the_pages_is_enough(project: DigitsProject) -> None:
    assert project.row()["sampling"] != SAMPLING
    project.label(UPDATES_PER_ROUND)
    project.wait_for_version("v1")
    assert project.row()["sampling"] == SAMPLING
    assert project.unlabelled() <= project.predictions("v1").keys()
    order = project.order("v1")
    assert project.label(2) == order[:2]


def test_skipping_changing_and_deleting(project: DigitsProject) -> None:
    person, annotator = project.person, project.annotator
    labelled = project.label(UPDATES_PER_ROUND)
    project.wait_for_version("v1")
    skipped = person.next_task(project.number)
    assert skipped
    person.skip(skipped["id"])
    annotations = {task["id"]: task["annotations"][0]["id"] for task in project.tasks() if task["annotations"]}
    for task, label in zip(labelled[:6], "001111", strict=True):
        person.change(annotations[task], annotator.result(label))
    for task in labelled[6:]:
        person.delete(annotations[task])
    project.wait_for_version("v2")
    assert project.manifest("v2").labels == {"0": 2, "1": 4}
    assert project.unlabelled() <= project.predictions("v2").keys()


def test_importing_annotated_and_new_tasks(project: DigitsProject) -> None:
    tasks = project.tasks()
    project.person.import_tasks(
        project.number,
        [
            {
                "data": task["data"],
                "annotations": [{"result": project.annotator.result(project.annotator.true_label(task))}],
            }
            for task in tasks[:20]
        ],
    )
    project.wait_for_version("v1")
    assert labels(project, "v1") == 20
    project.person.import_tasks(project.number, [{"data": task["data"]} for task in tasks[20:35]])
    project.wait_until(lambda: project.unlabelled() <= project.predictions("v1").keys(), "scores of new tasks")
    assert len(project.unlabelled()) == 55
    assert project.version() == "v1"
    assert project.status().rounds == 1


def test_a_changed_label_config(project: DigitsProject) -> None:
    project.label(UPDATES_PER_ROUND)
    project.wait_for_version("v1")
    changed = LABEL_CONFIG.replace('<Choice value="9"', '<Choice value="not a digit"/><Choice value="9"')
    project.person.call("PATCH", f"/api/projects/{project.number}/", json={"label_config": changed})
    project.wait_for_version("v2")
    assert "not a digit" in project.manifest("v2").labeling.classes
    assert project.unlabelled() <= project.predictions("v2").keys()


def test_start_training_does_not_wait_for_more_labels(project: DigitsProject) -> None:
    project.label(4)
    project.start_training()
    project.wait_for_version("v1")
    assert labels(project, "v1") == 4


def test_two_projects_at_the_same_time(
    project: DigitsProject, backend: Backend, new_project: Callable[[str, int], DigitsProject]
) -> None:
    other = new_project("At the same time", 30)
    other.connect_model(backend.url)
    for _ in range(UPDATES_PER_ROUND):
        project.label(1)
        other.label(1)
    for one in (project, other):
        one.wait_for_version("v1")
        assert one.unlabelled() <= one.predictions("v1").keys()
        assert one.manifest("v1").project == one.number
