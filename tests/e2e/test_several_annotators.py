"""Several people at one project: each gets the best task that nobody else has, and nobody an image like one that waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import UPDATES_PER_ROUND, backend_on
from digits_project import DigitsProject
from PIL import Image

from lplgrad_backend.demo.annotator import Annotator
from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.demo.dataset import LABEL_CONFIG, Digit, Digits
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


@pytest.fixture
def everyday(label_studio: LabelStudioServer, tmp_path: Path) -> Iterator[Backend]:
    """A backend that orders as it does unless told otherwise."""
    with backend_on(label_studio, tmp_path, LPLGRAD_STRATEGY="auto", LPLGRAD_STRICT="false") as running:
        yield running


def again(digit: Digit, folder: Path) -> Digit:
    """The same picture but for one corner's grey: another file, and to people the same."""
    file = folder / f"again-{digit.file.name}"
    with Image.open(digit.file) as image:
        image.putpixel((0, 0), 16)
        image.save(file)
    return replace(digit, file=file)


def test_an_image_is_not_proposed_while_one_that_looks_like_it_waits(
    owner: Person, everyday: Backend, digits: Digits, tmp_path: Path
) -> None:
    twice = [*digits.pool[:30], *(again(digit, tmp_path) for digit in digits.pool[:30])]
    shown = Digits(tuple(twice), ())
    project = DigitsProject.create(owner, "Everything twice", twice, everyday.models, shown)
    project.connect_model(everyday.url)
    project.label(UPDATES_PER_ROUND)
    project.wait_for_version("v1")
    pictures = {
        task["id"]: Path(task["data"]["image"]).name.partition("digit-")[2]
        for task in project.tasks()
        if task["total_annotations"] == 0
    }
    places: dict[str, list[int]] = {}
    for place, task in enumerate(project.order("v1")):
        places.setdefault(pictures[task], []).append(place)
    both = [second - first for first, second in (found for found in places.values() if len(found) == 2)]
    assert len(both) >= 20
    assert min(both) >= UPDATES_PER_ROUND, both  # a round's labels are there before the other one comes
