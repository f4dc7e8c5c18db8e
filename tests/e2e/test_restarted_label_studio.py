"""The real Label Studio goes away in the middle of a push and comes back: the queue is whole and has no prediction twice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import UPDATES_PER_ROUND, backend_on
from digits_project import DigitsProject

from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.demo.dataset import Digits
from lplgrad_backend.demo.person import Person
from lplgrad_backend.demo.process import wait_for
from lplgrad_backend.demo.server import LabelStudioServer
from lplgrad_backend.status import Phase
from lplgrad_backend.store import Store

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

TASKS = 1200  # so that a push takes a while


@pytest.fixture
def folder(migrated_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(migrated_folder, tmp_path / "label-studio"))


@pytest.fixture
def first(label_studio_python: Path, folder: Path) -> Iterator[LabelStudioServer]:
    with LabelStudioServer(label_studio_python, folder) as server:
        yield server


@pytest.fixture
def backend(first: LabelStudioServer, tmp_path: Path) -> Iterator[Backend]:
    with backend_on(first, tmp_path, LPLGRAD_SWEEP_SECONDS="2") as running:
        yield running


def test_a_push_that_was_cut_is_made_whole(
    first: LabelStudioServer, folder: Path, label_studio_python: Path, backend: Backend, digits: Digits
) -> None:
    with Person(first.url, first.account.email, first.account.password) as person:
        project = DigitsProject.create(person, "Goes away", digits.pool[:50], backend.models, digits)
        shown = [{"data": task["data"]} for task in project.tasks()]
        person.import_tasks(project.number, (shown * (TASKS // len(shown)))[: TASKS - len(shown)])
        project.connect_model(backend.url)
        project.label(UPDATES_PER_ROUND)
        store = Store(backend.models)

        def is_pushing() -> bool:
            return project.status().phase is Phase.PUBLISHING and store.versions(project.number) == ["v1"]

        wait_for(is_pushing, "the push", seconds=240.0, every=0.02)
    first.stop()
    with LabelStudioServer(label_studio_python, folder, port=int(urlsplit(first.url).port or 0)) as again:
        assert again.url == first.url
        with Person(again.url, again.account.email, again.account.password) as person:
            project = DigitsProject(project.number, person, backend.models, digits)
            project.wait_for_version("v1")
            assert len(project.tasks()) == TASKS
            assert project.unlabelled() <= project.predictions("v1").keys()  # which looks that none has two
            assert project.status().last_error is None
            assert Store(backend.models).check() == []
            project.label(UPDATES_PER_ROUND)
            project.wait_for_version("v2")
            order = project.order("v2")
            assert project.label(2) == order[:2]
