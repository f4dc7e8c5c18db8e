"""Several people at one project: each gets the best task that nobody else has."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from conftest import UPDATES_PER_ROUND
from digits_project import DigitsProject

from lplgrad_backend.demo.annotator import Annotator
from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.demo.dataset import LABEL_CONFIG
from lplgrad_backend.demo.person import Person
from lplgrad_backend.demo.server import LabelStudioServer
from lplgrad_backend.labeling import parse_label_config

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def second(label_studio: LabelStudioServer) -> Iterator[Person]:
    with Person(label_studio.url, "second-annotator@example.com", "a long 9 password", new=True) as person:
        yield person


def test_two_people_at_once_get_different_tasks_in_score_order(
    second: Person, backend: Backend, new_project: Callable[[str, int], DigitsProject]
) -> None:
    project = new_project("Two at once", 40)
    project.connect_model(backend.url)
    project.label(UPDATES_PER_ROUND)
    project.wait_for_version("v1")
    order = project.order("v1")
    held = [person.next_task(project.number) for person in (project.person, second)]
    assert [task["id"] for task in held if task] == order[:2], "both hold one, and neither has submitted"
    other = Annotator(second, project.number, parse_label_config(LABEL_CONFIG), project.digits.truth)
    served = []
    for _ in range(3):
        served += [*project.annotator.label(1), *other.label(1)]
    assert served == order[:6]
