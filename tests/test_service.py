"""The parts of a backend, joined once."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_label_studio import FakeLabelStudio
from learner_stage import CONFIG

from lplgrad_backend.errors import SettingsError, StoreError
from lplgrad_backend.jobs import memory_queue
from lplgrad_backend.service import build_service, service_of_environment
from lplgrad_backend.settings import read_settings
from lplgrad_backend.status import Mark


def test_joining_touches_nothing(tmp_path: Path) -> None:
    service = build_service(read_settings({"MODEL_DIR": str(tmp_path / "models")}, None), memory_queue())
    assert not (tmp_path / "models").exists()
    assert service.label_studio is None


def test_the_queue_is_in_the_folder_of_models(tmp_path: Path) -> None:
    build_service(read_settings({"MODEL_DIR": str(tmp_path / "models")}, None)).jobs.ring(3)
    again = build_service(read_settings({"MODEL_DIR": str(tmp_path / "models")}, None))
    assert again.jobs.waiting() == [3]
    assert build_service(read_settings({"MODEL_DIR": str(tmp_path / "others")}, None)).jobs.waiting() == []


def test_asking_leaves_marks_and_rings_once(tmp_path: Path) -> None:
    service = build_service(read_settings({"MODEL_DIR": str(tmp_path)}, None), memory_queue())
    service.ask(3, Mark.TASKS, Mark.ROUND)
    service.ask(3)
    service.ask(4, Mark.ANNOTATIONS)
    assert set(service.statuses.marks(3)) == {Mark.TASKS, Mark.ROUND}
    assert service.jobs.waiting() == [3, 4]


def test_asking_where_nothing_can_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    service = build_service(read_settings({"MODEL_DIR": str(tmp_path / "file")}, None), memory_queue())
    with pytest.raises(StoreError, match="project 3"):
        service.ask(3, Mark.ROUND)
    assert service.jobs.waiting() == []


def test_a_bell_is_answered_by_the_learner(tmp_path: Path) -> None:
    fake = FakeLabelStudio()
    project = int(fake.add_project("Pets", CONFIG)["id"])
    with fake.serving() as url:
        known = {"MODEL_DIR": str(tmp_path), "LABEL_STUDIO_URL": url, "LABEL_STUDIO_API_KEY": fake.legacy_token()}
        service = build_service(read_settings(known, None), memory_queue())
        service.ask(project, Mark.ANNOTATIONS)
        assert service.jobs.step() and not service.jobs.step()
    status = service.statuses.read(project)
    assert (status.due, status.last_error) == ("labels of 2 more class(es)", None)
    assert service.statuses.marks(project) == {}
    assert service.predictor.version(project) == "untrained"


def test_the_environments_service_is_joined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no .env is
    monkeypatch.setenv("MODEL_DIR", str(tmp_path / "models"))
    service_of_environment.cache_clear()
    try:
        first = service_of_environment()
        assert first is service_of_environment()
        assert first.settings.model_dir == tmp_path / "models"
    finally:
        service_of_environment.cache_clear()


def test_an_environment_that_cannot_be_used_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("START_TRAINING_EACH_N_UPDATES", "often")
    service_of_environment.cache_clear()
    with pytest.raises(SettingsError, match="START_TRAINING_EACH_N_UPDATES"):
        service_of_environment()
