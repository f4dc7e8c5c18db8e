"""Whom the backend lets in and who lets it in: basic auth, personal access tokens, Label Studio's network settings."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from conftest import SETTINGS, UPDATES_PER_ROUND
from digits_project import DigitsProject

from lplgrad_backend.connection import connect
from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.demo.dataset import Digits
from lplgrad_backend.demo.person import Person
from lplgrad_backend.demo.server import LabelStudioServer
from lplgrad_backend.errors import LPLGradError
from lplgrad_backend.labelstudio import LabelStudio

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

BASIC_AUTH = ("label-studio", "only for this test")


@pytest.fixture(scope="module")
def colleague(label_studio: LabelStudioServer) -> Iterator[Person]:
    """A second user of the shared Label Studio."""
    with Person(label_studio.url, "colleague@example.com", "a long 9 password", new=True) as person:
        yield person


@pytest.fixture(scope="module")
def token(colleague: Person) -> str:
    """The colleague's personal access token: a JWT that must be exchanged before it is of use."""
    return colleague.create_personal_token()


@pytest.fixture(scope="module")
def guarded(label_studio: LabelStudioServer, token: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend behind basic auth, with a personal access token."""
    folder = tmp_path_factory.mktemp("guarded")
    user, password = BASIC_AUTH
    settings = SETTINGS | {
        "LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": token, "MODEL_DIR": str(folder / "models"),
        "BASIC_AUTH_USER": user, "BASIC_AUTH_PASS": password, "LPLGRAD_STRATEGY": "auto",
    }  # fmt: skip
    with Backend(settings, folder / "backend.log") as running:
        yield running


@pytest.fixture(scope="module")
def project(
    label_studio: LabelStudioServer, guarded: Backend, token: str, colleague: Person, digits: Digits
) -> DigitsProject:
    project = DigitsProject.create(colleague, "Behind basic auth", digits.pool[:30], guarded.models, digits)
    connect(LabelStudio(label_studio.url, token), project.number, guarded.url, title="LPLgrad", basic_auth=BASIC_AUTH)
    return project


def test_the_loop_runs_with_a_personal_access_token_behind_basic_auth(project: DigitsProject) -> None:
    project.label(UPDATES_PER_ROUND)
    project.wait_for_version("v1")
    order = project.order("v1")
    assert project.label(2) == order[:2]


def test_strangers_are_sent_away(guarded: Backend) -> None:
    body = {"tasks": [], "project": 1, "label_config": ""}
    for auth in (None, ("label-studio", "wrong"), ("wrong", BASIC_AUTH[1])):
        assert requests.post(f"{guarded.url}/predict", json=body, auth=auth, timeout=30).status_code == 401
        assert requests.post(f"{guarded.url}/webhook", json={}, auth=auth, timeout=30).status_code == 401
    assert requests.get(f"{guarded.url}/health", timeout=30).json()["status"] == "UP"


def test_nobody_reads_the_secrets_in_the_log(guarded: Backend, token: str, project: DigitsProject) -> None:
    log = guarded.process.log.read_text()
    assert f"project {project.number}" in log
    assert token not in log
    assert BASIC_AUTH[1] not in log


def test_a_label_studio_that_refuses_local_backends_is_explained(
    migrated_folder: Path, tmp_path: Path, label_studio_python: Path, backend: Backend
) -> None:
    folder = tmp_path / "closed"
    shutil.copytree(migrated_folder, folder)
    with LabelStudioServer(label_studio_python, folder, local_backends=False) as closed:
        account = closed.account
        with Person(closed.url, account.email, account.password) as person:
            project = person.create_project("Refused", "<View/>")
        with pytest.raises(LPLGradError, match="SSRF_PROTECTION_ENABLED=false"):
            connect(LabelStudio(closed.url, account.token), project, backend.url, title="LPLgrad")
