"""The doctor on the real Label Studio: healthy, then with one thing broken after another and mended again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import UPDATES_PER_ROUND, settings_on
from digits_project import DigitsProject

from lplgrad_backend.connection import connect
from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.demo.dataset import Digits
from lplgrad_backend.demo.person import Person
from lplgrad_backend.demo.server import LabelStudioServer
from lplgrad_backend.doctor import Outcome, examine_environment
from lplgrad_backend.labelstudio import LabelStudio

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

BASIC_AUTH = ("label-studio", "for the doctor")


@pytest.fixture(scope="module")
def environ(label_studio: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    user, password = BASIC_AUTH
    folder = tmp_path_factory.mktemp("patient")
    return settings_on(label_studio, folder, BASIC_AUTH_USER=user, BASIC_AUTH_PASS=password)


@pytest.fixture(scope="module")
def patient(environ: dict[str, str]) -> Iterator[Backend]:
    """A backend of its own, since it is stopped at the end."""
    with Backend(environ, Path(environ["MODEL_DIR"]).parent / "backend.log") as running:
        yield running


@pytest.fixture(scope="module")
def project(client: LabelStudio, owner: Person, patient: Backend, digits: Digits) -> DigitsProject:
    """Connected and ordered by its first version."""
    project = DigitsProject.create(owner, "The patient", digits.pool[:30], patient.models, digits)
    connect(client, project.number, patient.url, basic_auth=BASIC_AUTH)
    project.label(UPDATES_PER_ROUND)
    project.wait_for_version("v1")
    return project


@pytest.fixture
def failures(project: DigitsProject, environ: dict[str, str]) -> Callable[..., dict[str, str]]:
    def look(**changes: str) -> dict[str, str]:
        found = examine_environment({**environ, **changes}, project.number)
        return {one.hop: one.says for one in found if one.outcome is Outcome.FAILED}

    return look


@pytest.fixture
def mend(project: DigitsProject, client: LabelStudio, patient: Backend) -> Callable[[], object]:
    return lambda: connect(client, project.number, patient.url, basic_auth=BASIC_AUTH, current_version="v1")


def test_a_connected_project_is_healthy_and_the_next_task_is_as_told(
    project: DigitsProject, environ: dict[str, str], failures: Callable[..., dict[str, str]]
) -> None:
    assert failures() == {}
    found = {one.hop: one for one in examine_environment(environ, project.number)}
    assert {hop for hop, one in found.items() if one.outcome is not Outcome.OK} == set()
    [served] = project.label(1)  # after three looks, none of which locked a task
    assert found["next task"].says.startswith(f"task {served} with the lowest score")
    assert failures() == {}


def test_sampling_and_version(
    project: DigitsProject,
    client: LabelStudio,
    failures: Callable[..., dict[str, str]],
    mend: Callable[[], object],
) -> None:
    client.update_project(project.number, sampling="Sequential sampling")
    assert failures().keys() == {"sampling", "next task"}
    client.update_project(project.number, model_version="LPLgrad")
    assert failures().keys() == {"sampling", "model version"}
    mend()
    assert failures() == {}


def test_webhooks(
    project: DigitsProject,
    client: LabelStudio,
    failures: Callable[..., dict[str, str]],
    mend: Callable[[], object],
    tmp_path: Path,
) -> None:
    [webhook] = client.webhooks(project.number)
    client.add_webhook({"project": project.number, "url": webhook["url"], "headers": webhook["headers"]})
    assert failures().keys() == {"webhook"}
    mend()
    client.update_webhook(client.webhooks(project.number)[0]["id"], {"url": webhook["url"], "headers": {}})
    assert failures().keys() == {"webhook", "webhook answer"}
    mend()
    assert failures(MODEL_DIR=str(tmp_path)).keys() == {"worker", "webhook arrival"}  # as if another backend were there
    for row in client.webhooks(project.number):
        client.delete_webhook(row["id"])
    assert failures().keys() == {"webhook"}
    assert client.webhooks(project.number) == []
    mend()
    assert failures() == {}


def test_a_refused_token(failures: Callable[..., dict[str, str]]) -> None:
    assert failures(LABEL_STUDIO_API_KEY="0" * 40).keys() == {"token"}


def test_a_missing_prediction(project: DigitsProject, failures: Callable[..., dict[str, str]]) -> None:
    last = project.order("v1")[-1]
    prediction = project.predictions("v1")[last]["id"]
    project.person.call("DELETE", f"/api/predictions/{prediction}/")
    said = failures()
    assert said.keys() == {"predictions"}
    assert f"[{last}]" in said["predictions"]


def test_network_settings_of_a_label_studio_started_anew_without_them(
    migrated_folder: Path, tmp_path: Path, label_studio_python: Path, patient: Backend, environ: dict[str, str]
) -> None:
    folder = tmp_path / "closed"
    shutil.copytree(migrated_folder, folder)
    with LabelStudioServer(label_studio_python, folder, local_backends=False) as closed:
        with Person(closed.url, closed.account.email, closed.account.password) as person:
            number = person.create_project("Refused", "<View/>")
        changed = {"LABEL_STUDIO_URL": closed.url, "LABEL_STUDIO_API_KEY": closed.account.token,
                   "LPLGRAD_BACKEND_URL": patient.url}  # fmt: skip
        found = examine_environment({**environ, **changed}, number)
        said = {one.hop: one.says for one in found if one.outcome is Outcome.FAILED}
        assert "ML_BLOCK_LOCAL_IP=false" in said["network settings"]
        assert LabelStudio(closed.url, closed.account.token).webhooks(number) == []


def test_a_stopped_backend(patient: Backend, failures: Callable[..., dict[str, str]]) -> None:
    patient.stop()
    said = failures()
    assert {"worker", "ml backend", "webhook answer"} <= said.keys()
    assert "lplgrad_backend serve" in said["worker"]
