"""What people do beside labelling: skip, change, delete, import, edit the label config, press Start Training."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from conftest import UPDATES_PER_ROUND
from digits_project import DigitsProject

from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.demo.dataset import CLASSES, LABEL_CONFIG
from lplgrad_backend.demo.server import LabelStudioServer
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


NINE = '<Choice value="9"'
ADDED = LABEL_CONFIG.replace(NINE, '<Choice value="not a digit"/>' + NINE)
RENAMED = ADDED.replace(NINE, '<Choice value="nine" alias="9"')


def change(project: DigitsProject, config: str, version: str) -> None:
    """Save another label config and wait for the version that it makes due."""
    project.person.call("PATCH", f"/api/projects/{project.number}/", json={"label_config": config})
    project.wait_for_version(version)
    assert project.status().last_error is None
    assert project.unlabelled() <= project.predictions(version).keys()
    assert labels(project, version) == UPDATES_PER_ROUND


def roll_back(project: DigitsProject, label_studio: LabelStudioServer, version: str) -> None:
    """As a person does it who also has a shell."""
    settings = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.account.token}
    subprocess.run(
        [sys.executable, "-m", "lplgrad_backend", "rollback", "--project", str(project.number), "--to", version],
        env={**os.environ, **settings, "MODEL_DIR": str(project.models)}, check=True, timeout=120,
    )  # fmt: skip


def test_a_class_added_renamed_and_removed_and_back_to_an_older_version(
    project: DigitsProject, label_studio: LabelStudioServer
) -> None:
    project.label(UPDATES_PER_ROUND)
    project.wait_for_version("v1")
    change(project, ADDED, "v2")
    assert set(project.manifest("v2").labeling.classes) == {*CLASSES, "not a digit"}
    change(project, RENAMED, "v3")  # "nine" to people, "9" to what is stored
    assert set(project.manifest("v3").labeling.classes) == {*CLASSES, "not a digit"}
    change(project, LABEL_CONFIG, "v4")
    assert set(project.manifest("v4").labeling.classes) == set(CLASSES)
    roll_back(project, label_studio, "v3")
    project.wait_for_version("v3")
    named = {name for one in project.predictions("v3").values() for name in one["result"][0]["value"]["choices"]}
    assert "not a digit" not in named
    order = project.order("v3")
    assert project.label(2) == order[:2]


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
