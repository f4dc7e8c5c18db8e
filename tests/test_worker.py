"""The worker as a process: when it works, when it waits, when it leaves, and what it has not in its memory."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest
from fake_label_studio import Asked, FakeLabelStudio
from learner_stage import CONFIG, choice
from programs import Program

from lplgrad_backend.locks import file_lock
from lplgrad_backend.service import build_service
from lplgrad_backend.settings import read_settings
from lplgrad_backend.status import Mark, StatusFolder

MODULE = ("-m", "lplgrad_backend.worker")


def worker(folder: Path, arguments: tuple[str, ...] = MODULE, **environ: str) -> Program:
    # LABEL_STUDIO_URL from a person's own environment or .env is not for tests
    known = {"MODEL_DIR": str(folder), "LABEL_STUDIO_URL": "", "LABEL_STUDIO_API_KEY": "", "LOG_LEVEL": "INFO"}
    return Program(arguments, {**known, **environ})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_leaves_when_asked(tmp_path: Path, number: int) -> None:
    with worker(tmp_path) as program:
        program.wait_for("worker ready, 0 project(s) known")
        program.send(number)
        assert program.end() == 0
        assert "worker ends" in program.lines[-1]


def test_it_leaves_with_whoever_started_it(tmp_path: Path) -> None:
    with worker(tmp_path) as program:
        program.wait_for("worker ready")
        program.let_go()
        assert program.end() == 0


def test_one_at_a_time_works_and_the_next_takes_over(tmp_path: Path) -> None:
    with worker(tmp_path) as first:
        first.wait_for("worker ready")
        with worker(tmp_path) as second, worker(tmp_path / "other") as elsewhere:
            second.wait_for("another worker is at")
            elsewhere.wait_for("worker ready")
            first.send(signal.SIGKILL)
            second.wait_for("worker ready")
            for program in (second, elsewhere):
                program.send(signal.SIGTERM)
                assert program.end() == 0


def test_it_leaves_also_while_it_waits(tmp_path: Path) -> None:
    with file_lock(tmp_path / "worker.lock") as ours, worker(tmp_path) as program:
        assert ours
        program.wait_for("another worker is at")
        program.send(signal.SIGTERM)
        assert program.end() == 0
        assert not any("ready" in line for line in program.lines)


@pytest.mark.parametrize(
    ("environ", "said"), [({"MODEL_DIR": "/dev/null/models"}, "MODEL_DIR"), ({"LPLGRAD_SEED": "odd"}, "LPLGRAD_SEED")]
)
def test_what_it_cannot_use_is_said_in_a_sentence(tmp_path: Path, environ: dict[str, str], said: str) -> None:
    with worker(tmp_path, **environ) as program:
        assert program.end() == 1
        assert said in program.lines[-1]
        assert not any("Traceback" in line for line in program.lines)


class WatchedLabelStudio(FakeLabelStudio):
    """Tells when it was asked for annotations."""

    def __init__(self) -> None:
        super().__init__()
        self.exported = threading.Event()

    def answer(self, asked: Asked) -> object:
        if asked.path.endswith("/export") or "fields" in asked.query:
            self.exported.set()
        return super().answer(asked)


def test_it_looks_at_the_project_whose_bell_is_rung_without_torch_in_its_memory(tmp_path: Path) -> None:
    fake = WatchedLabelStudio()
    project = int(fake.add_project("Pets", CONFIG)["id"])
    tasks = fake.import_tasks(project, [{"data": {"image": f"/{number}.png"}} for number in range(4)])
    for task, label in zip(tasks, ("cat", "dog", "cat"), strict=False):
        fake.annotate(task, {"result": choice(label)}, "me@example.com")
    program = """
import os, sys
from lplgrad_backend.worker import main
main()
print("torch" in sys.modules, file=sys.stderr)
"""
    with fake.serving() as url:
        environ = {"LABEL_STUDIO_URL": url, "LABEL_STUDIO_API_KEY": fake.legacy_token(), "LPLGRAD_COLD_START": "false"}
        service = build_service(read_settings({"MODEL_DIR": str(tmp_path), **environ}, None))
        service.ask(project, Mark.ANNOTATIONS)
        with worker(tmp_path, ("-c", program), **environ) as running:
            running.wait_for("worker ready")
            assert fake.exported.wait(60)
            running.let_go()
            assert running.end() == 0
            assert running.lines[-1] == "False"
    status = StatusFolder(tmp_path).read(project)
    assert (status.due, status.last_error) == ("7 more label(s)", None)
    assert service.jobs.waiting() == []


def test_a_project_is_known_by_its_folder(tmp_path: Path) -> None:
    StatusFolder(tmp_path).remember(5, None)
    with worker(tmp_path) as program:
        program.wait_for("worker ready, 1 project(s) known")
        program.wait_for("project 5: LABEL_STUDIO_URL or LABEL_STUDIO_API_KEY is missing")
    assert set(StatusFolder(tmp_path).marks(5)) == {Mark.TASKS}
