"""Before the first version, on the real Label Studio: typical images first, and nothing of it left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import UPDATES_PER_ROUND
from digits_project import DigitsProject

from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.demo.dataset import write_digits
from lplgrad_backend.demo.person import Person
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.publication import SAMPLING

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
SHOWN, LATER = 40, 10


def ordered_by(project: DigitsProject, version: str) -> bool:
    row = project.row()
    return (row["model_version"], row["sampling"]) == (version, SAMPLING) and not project.status().busy


def test_the_first_labels_come_in_an_order_of_their_own(
    backend: Backend, new_project: Callable[[str, int], DigitsProject]
) -> None:
    project = new_project("First labels", SHOWN)
    project.connect_model(backend.url)
    project.wait_until(lambda: ordered_by(project, "start-1"), "an order before the first version")
    predictions = project.predictions("start-1")
    assert predictions.keys() == project.unlabelled()
    assert all(row["result"] == [] and 0 < row["score"] < 1 for row in predictions.values())
    assert len({row["score"] for row in predictions.values()}) == SHOWN
    order = project.order("start-1")
    assert project.label(3) == order[:3]

    shown = {digit.file for digit in project.digits.pool[:SHOWN]}
    later = [digit.file for digit in project.digits.pool if digit.file not in shown][:LATER]
    project.person.upload(project.number, later)
    project.wait_until(lambda: ordered_by(project, "start-2"), "an order with the tasks that came")
    order = project.order("start-2")
    assert len(order) == SHOWN + LATER - 3
    assert project.label(2) == order[:2]

    project.label(UPDATES_PER_ROUND - 5)
    project.wait_for_version("v1")
    starts = ("start-1", "start-2")
    project.wait_until(lambda: not any(map(project.predictions, starts)), "what came before to be removed")
    assert project.status().cold_start is None


def test_more_than_a_thousand_uploaded_images_get_one_too(
    owner: Person, client: LabelStudio, backend: Backend, tmp_path: Path
) -> None:
    many = write_digits(tmp_path, pool=1100, held_out=0)
    project = DigitsProject.create(owner, "Many uploads", many.pool, backend.models, many)
    assert len({task for task, _ in client.unlabelled_tasks(project.number)}) == 1100
    project.connect_model(backend.url)
    project.wait_until(lambda: ordered_by(project, "start-1"), "an order before the first version")
    scores = [score for _, _, score in client.unlabelled_scores(project.number)]
    assert len(scores) == 1100 and None not in scores
