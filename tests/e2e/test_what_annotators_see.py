"""Inside the real Label Studio: the line that describes the model, the tab of suspected mistakes, the tab of the queue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import UPDATES_PER_ROUND
from digits_project import DigitsProject

from lplgrad_backend.connection import connect
from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.history import History, Suspect
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.notice import OURS, TAB, Notice
from lplgrad_backend.settings import read_settings
from lplgrad_backend.status import Phase

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

CHANGING = ("description", "updated_at", "state", "model_version", "error_message")


@pytest.fixture(scope="module")
def project(client: LabelStudio, backend: Backend, new_project: Callable[[str, int], DigitsProject]) -> DigitsProject:
    project = new_project("What annotators see", 30)
    connect(client, project.number, backend.url)
    return project


def row(client: LabelStudio, project: DigitsProject) -> dict[str, Any]:
    [found] = client.ml_backends(project.number)
    return dict(found)


def test_a_round_tells_its_line_and_touches_nothing_else_of_the_row(
    client: LabelStudio, project: DigitsProject
) -> None:
    before = row(client, project)
    project.label(UPDATES_PER_ROUND)
    said: set[str] = set()

    def is_training() -> bool:
        said.add(str(row(client, project)["description"] or ""))
        return any("training" in one for one in said)

    project.wait_until(is_training, "the line of a training")
    project.wait_for_version("v1")
    after = row(client, project)
    assert after["description"] == f"v1, {UPDATES_PER_ROUND} labels"
    assert all(OURS.fullmatch(one) for one in said)
    assert after["state"] == "CO"
    assert {key: value for key, value in after.items() if key not in CHANGING} == {
        key: value for key, value in before.items() if key not in CHANGING
    }


def suspect(task: int) -> Suspect:
    return Suspect(task=task, uri="", label="1", predicted="7", loss=3.0, expected=0.1, excess=8.0)


@pytest.fixture
def notice(client: LabelStudio, project: DigitsProject, tmp_path: Path) -> Notice:
    seconds = iter(range(0, 99_000, 100))
    return Notice(
        client, project.number, read_settings({"MODEL_DIR": str(tmp_path)}, None), clock=lambda: next(seconds)
    )


def test_how_far_a_training_is(client: LabelStudio, project: DigitsProject, notice: Notice) -> None:
    notice.show(History(), training=True)
    notice.follow(Phase.TRAINING, 12, 20)
    assert row(client, project)["description"] == "no version yet, 0 labels, training 60 %"


def test_the_tab_of_suspected_mistakes_shows_them_alone(
    client: LabelStudio, project: DigitsProject, notice: Notice
) -> None:
    numbers = sorted(task["id"] for task in project.tasks())
    for wanted in (numbers[3:5], numbers[7:8], []):
        notice.show(History(suspects=[suspect(task) for task in wanted]), training=False)
        [tab] = [view for view in client.views(project.number) if view["data"]["title"] == TAB]
        listed = project.person.call("GET", f"/api/tasks?view={tab['id']}&project={project.number}")["tasks"]
        assert sorted(task["id"] for task in listed) == wanted


def test_the_tab_of_the_queue_lists_it_in_order(client: LabelStudio, project: DigitsProject) -> None:
    [tab] = [view for view in client.views(project.number) if view["data"]["title"] == "Most uncertain"]
    listed = project.person.call("GET", f"/api/tasks?view={tab['id']}&project={project.number}&page_size=100")["tasks"]
    assert [task["id"] for task in listed] == project.order("v1")
    assert "tasks:predictions_score" not in tab["data"]["hiddenColumns"]["explore"]
