"""Whom the backend lets in and who lets it in: basic auth, personal access tokens, Label Studio's network settings."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from conftest import UPDATES_PER_ROUND, backend_on
from digits_project import DigitsProject

from lplgrad_backend.connection import connect, verify
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
    with backend_on(
        label_studio, tmp_path_factory.mktemp("guarded"), LABEL_STUDIO_API_KEY=token,
        BASIC_AUTH_USER=BASIC_AUTH[0], BASIC_AUTH_PASS=BASIC_AUTH[1], LPLGRAD_STRATEGY="auto",
    ) as running:  # fmt: skip
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


WITHOUT_A_DOT = "2130706433"  # 127.0.0.1 as one number, which resolves everywhere


def test_a_host_name_without_a_dot_gets_no_webhook_and_is_explained(
    client: LabelStudio, backend: Backend, new_project: Callable[[str, int], DigitsProject]
) -> None:
    project = new_project("Without a dot", 12)
    url = backend.url.replace("127.0.0.1", WITHOUT_A_DOT)
    [problem] = connect(client, project.number, url).problems
    assert client.ml_backends(project.number)[0]["state"] == "CO"
    assert client.webhooks(project.number) == []
    assert f"'{WITHOUT_A_DOT}', a host name without a dot" in problem and "lplgrad.local" in problem
    [row] = client.ml_backends(project.number)
    client.delete_ml_backend(row["id"])
    assert connect(client, project.number, backend.url).problems == ()
    assert len(client.webhooks(project.number)) == 1


def test_a_missing_webhook_is_said_and_made_again(
    client: LabelStudio, backend: Backend, new_project: Callable[[str, int], DigitsProject]
) -> None:
    project = new_project("Webhook lost", 12)
    assert connect(client, project.number, backend.url).problems == ()
    [webhook] = client.webhooks(project.number)
    client.delete_webhook(webhook["id"])
    assert verify(client, project.number, backend.url) == [
        f"The webhook to {backend.url}/webhook is missing, doubled or changed: run `connect`."
    ]
    assert connect(client, project.number, backend.url).problems == ()
    assert verify(client, project.number, backend.url) == []
    [again] = client.webhooks(project.number)
    assert again["url"] == webhook["url"]


def test_a_refused_token_is_explained(
    label_studio: LabelStudioServer, backend: Backend, new_project: Callable[[str, int], DigitsProject]
) -> None:
    project = new_project("Token refused", 12)
    stranger = LabelStudio(label_studio.url, "0" * 40)
    with pytest.raises(
        LPLGradError, match=r"the token is refused .* Set LABEL_STUDIO_API_KEY to a token of this Label"
    ):
        connect(stranger, project.number, backend.url)
