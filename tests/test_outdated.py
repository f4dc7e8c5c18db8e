"""Old versions' predictions go after the queue is in order, hold nobody up, and go also after a restart."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_label_studio import Asked, FakeLabelStudio, Fault
from learner_stage import CONFIG, Stage, choice
from programs import Program
from test_hosts import SLOW, await_

from lplgrad_backend.jobs import Jobs, open_queue
from lplgrad_backend.outdated import AGAIN_SECONDS, Outdated, Remover
from lplgrad_backend.status import Phase, StatusFolder

NEVER = threading.Event()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A project that keeps one version; its learner notes what is outdated and removes nothing."""
    stage = Stage(tmp_path, 40, LPLGRAD_KEEP_VERSIONS="1", START_TRAINING_EACH_N_UPDATES="4")
    stage.learner._afterwards = lambda project: None
    return stage


def two_rounds(stage: Stage) -> Outdated:
    for first in (0, 4):
        stage.label(4, first=first)
        stage.look()
    return stage.learner.outdated


def test_a_look_that_ends_has_noted_what_is_outdated_and_removed_it_from_the_disk_alone(stage: Stage) -> None:
    outdated = two_rounds(stage)
    assert stage.row["model_version"] == "v2"
    assert stage.store.versions(stage.project) == ["v2"]
    assert outdated.noted(stage.project) == ["v1"]
    assert stage.client.model_versions(stage.project).keys() == {"v1", "v2"}
    assert stage.store.check() == []
    outdated.remove(stage.project, NEVER)
    assert stage.client.model_versions(stage.project).keys() == {"v2"}
    assert outdated.noted(stage.project) == []


def test_what_label_studio_does_not_remove_stays_noted(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    outdated = two_rounds(stage)
    stage.fake.faults.append(Fault("DELETE", 403))
    outdated.remove(stage.project, NEVER)
    assert outdated.noted(stage.project) == ["v1"] and "not removed yet" in caplog.text
    outdated.remove(stage.project, NEVER)
    assert stage.client.model_versions(stage.project).keys() == {"v2"}


def test_neither_what_is_served_nor_what_is_still_on_disk_is_removed(stage: Stage) -> None:
    outdated = two_rounds(stage)
    outdated.note(stage.project, ["v2"])
    outdated.remove(stage.project, NEVER)
    assert stage.client.model_versions(stage.project).keys() == {"v2"}
    assert outdated.noted(stage.project) == ["v2"]
    stage.store.delete(stage.project, "v2")
    outdated.remove(stage.project, NEVER)
    assert stage.client.model_versions(stage.project).keys() == {"v2"}, "the project is pointed at it"
    assert outdated.noted(stage.project) == []


def test_a_project_that_is_not_there_is_no_error(stage: Stage) -> None:
    outdated, row = two_rounds(stage), stage.fake.projects.pop(stage.project)
    outdated.remove(stage.project, NEVER)
    assert outdated.noted(stage.project) == ["v1"]
    stage.fake.projects[stage.project] = row
    outdated.remove(stage.project, NEVER)
    assert outdated.noted(stage.project) == []


def test_who_is_told_to_stop_begins_with_nothing(stage: Stage) -> None:
    outdated, stop = two_rounds(stage), threading.Event()
    stop.set()
    outdated.remove(stage.project, stop)
    assert outdated.noted(stage.project) == ["v1"]


@pytest.mark.parametrize("name", ["outdated.", "outdated.v1.x", "outdated.people", "outdated.v0", "outdated.."])
def test_only_names_of_ours_are_notes(stage: Stage, name: str) -> None:
    folder = stage.store.project_folder(stage.project)
    folder.mkdir(parents=True)
    (folder / name).touch()
    assert stage.learner.outdated.noted(stage.project) == []


def test_a_thread_removes_at_its_start_and_when_it_is_called(stage: Stage) -> None:
    outdated, stop = two_rounds(stage), threading.Event()
    remover = Remover(outdated, stage.store, stop)
    with remover.at_work():
        await_(lambda: outdated.noted(stage.project) == [], "what was noted before it began")
        stage.label(4, first=8)
        stage.look()
        assert AGAIN_SECONDS > 30
        remover.call(stage.project)
        await_(lambda: outdated.noted(stage.project) == [], "what came later")
        stop.set()
    assert stage.client.model_versions(stage.project).keys() == {"v3"}


class Slow(FakeLabelStudio):
    """Takes its time to remove predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.removing, self.may_go_on = threading.Event(), threading.Event()

    def answer(self, asked: Asked):  # type: ignore[no-untyped-def]  # noqa: ANN201
        if asked.method == "DELETE":
            self.removing.set()
            self.may_go_on.wait()
        return super().answer(asked)


@pytest.fixture
def slow() -> Iterator[Slow]:
    fake = Slow()
    with fake.serving():
        yield fake
        fake.may_go_on.set()


def test_rounds_go_on_while_label_studio_removes_and_a_restart_goes_on_with_that(tmp_path: Path, slow: Slow) -> None:
    """With real workers: two rounds are published while the first version's removal hangs, then the worker is killed."""
    models = tmp_path / "models"
    project = int(slow.add_project("Pets", CONFIG)["id"])
    tasks = slow.import_tasks(project, [{"data": {"image": f"/{number}.png"}} for number in range(40)])
    environ = {
        "MODEL_DIR": str(models), "LABEL_STUDIO_URL": slow.url, "LABEL_STUDIO_API_KEY": slow.legacy_token(),
        "SLOW_NAME": "a", "LPLGRAD_KEEP_VERSIONS": "1", "LPLGRAD_SWEEP_SECONDS": "1000000", "LOG_LEVEL": "INFO",
        "LPLGRAD_QUEUE_URL": "", "LPLGRAD_COLD_START": "false",
    }  # fmt: skip
    statuses = StatusFolder(models)
    models.mkdir()
    (models / "a.go").touch()

    def round_(first: int, version: str) -> None:
        for at, task in enumerate(tasks[first : first + 10]):
            slow.annotate(task, {"result": choice("cat" if at % 2 else "dog")}, "me@example.com")
        queue = open_queue(None, models)
        Jobs(queue, lambda project: None).ring(project)
        queue.storage.close()
        await_(lambda: statuses.read(project).published == version, f"{version} to be published")
        await_(lambda: statuses.read(project).phase is Phase.IDLE, "the look's end")

    with Program(SLOW, environ) as worker:
        worker.wait_for("worker ready")
        round_(0, "v1")
        round_(10, "v2")
        assert slow.removing.wait(60)
        round_(20, "v3")
        assert slow.projects[project]["model_version"] == "v3"
        assert slow.model_versions(project).keys() == {"v1", "v2", "v3"}
        worker.send(signal.SIGKILL)
        worker.end()
    slow.may_go_on.set()
    with Program(SLOW, environ) as worker:
        worker.wait_for("worker ready")
        await_(lambda: slow.model_versions(project).keys() == {"v3"}, "the removal")
        worker.send(signal.SIGTERM)
        assert worker.end() == 0
