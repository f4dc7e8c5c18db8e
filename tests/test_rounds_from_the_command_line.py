"""`train`, `score`, `status`, `versions` and `rollback`: what they say, and that an interruption harms nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from learner_stage import Stage
from test_cli import ESCAPES, ROOT, ended

from lplgrad_backend.cli import main
from lplgrad_backend.status import Mark, Phase, ProjectStatus

PROJECT = ("--project", "1")


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """v1 and v2 of a project in a fake Label Studio that the environment names."""
    stage = Stage(tmp_path / "models", 40)
    for first in (0, 10):
        stage.label(10, first=first)
        assert stage.look().last_error is None
    monkeypatch.chdir(tmp_path)
    with stage.fake.serving() as url:
        environ = {"MODEL_DIR": str(tmp_path / "models"), "LABEL_STUDIO_URL": url, "COLUMNS": "200"}
        for name, value in (environ | {"LABEL_STUDIO_API_KEY": stage.fake.legacy_token()}).items():
            monkeypatch.setenv(name, value)
        yield stage


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    def command(given: Sequence[str]) -> None:
        main(given)
        sys.exit(0)

    return ended(capsys, command, arguments)


def test_rollback_publishes_and_versions_and_status_say_so(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.fake.delete_model_version(stage.project, "v1")
    status, out, _ = run(capsys, "rollback", *PROJECT, "--to", "v1")
    assert status == 0
    assert "v2 was rolled back to v1" in out
    assert stage.row["model_version"] == "v1"
    assert set(stage.predictions("v1")) == stage.unlabelled()
    _, listed, _ = run(capsys, "versions")
    rows = {row.split()[1]: row for row in listed.splitlines() if re.search(r"\bv\d\b", row) and "rolled" not in row}
    assert "published" in rows["v1"]
    assert "published" not in rows["v2"]
    _, said, _ = run(capsys, "status", *PROJECT)
    assert "Served: v1, 10 labels." in said
    assert "10 more label(s)" in said


def test_a_version_that_is_not_there_is_named(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    for to in ("v7", "seven"):
        status, _, err = run(capsys, "rollback", *PROJECT, "--to", to)
        assert status == 1
        assert to in err
    assert stage.row["model_version"] == "v2"


def test_score_pushes_what_is_missing(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.fake.delete_model_version(stage.project, "v2")
    assert run(capsys, "score", *PROJECT)[0] == 0
    assert set(stage.predictions("v2")) == stage.unlabelled()
    status, _, err = run(capsys, "score", "--project", "77")
    assert status == 1
    assert "no version" in err


@pytest.mark.parametrize("command", [("train",), ("score",), ("rollback", "--to", "v1")])
def test_a_worker_that_is_at_it_is_said(
    stage: Stage, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    stage.statuses.write(ProjectStatus(project=1, phase=Phase.TRAINING, done=3, total=20))
    with stage.statuses.lock(1):
        status, _, err = run(capsys, command[0], *PROJECT, *command[1:])
        assert status == 1
        assert "A worker is at project 1 (training, 3 of 20)" in err
        assert "training, 3 of 20" in run(capsys, "status")[1]
    assert "was interrupted while training" in run(capsys, "status")[1]
    assert Mark.ROUND not in stage.statuses.marks(1)
    assert stage.row["model_version"] == "v2"


@pytest.mark.parametrize(
    ("command", "number"),
    [("train", signal.SIGINT), ("score", signal.SIGTERM)],
    ids=["train by Ctrl-C", "score by SIGTERM"],
)
def test_an_interrupted_round_loses_itself_alone(stage: Stage, tmp_path: Path, command: str, number: int) -> None:
    """A real child that loads torch; SIGINT goes to the whole foreground group, as from a terminal."""
    stage.add_tasks(3)  # which only a child could score
    first = {"train": Phase.LOADING, "score": Phase.PUBLISHING}[command]
    program = subprocess.Popen(
        [sys.executable, "-u", "-m", "lplgrad_backend", command, *PROJECT],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
    )  # fmt: skip
    with program:
        assert program.stdout is not None
        said = ""
        for line in program.stdout:
            said += line
            if first.value in line:
                (os.killpg if number == signal.SIGINT else os.kill)(program.pid, number)
                break
        said += ESCAPES.sub("", program.stdout.read())
        assert program.wait(60) == 130, said
    assert "Traceback" not in said
    assert said.rstrip().endswith("Stopped.")
    assert stage.store.check() == []
    assert stage.store.versions(1) == ["v1", "v2"]
    assert not list(stage.store.scratch_folder.iterdir())
    assert stage.statuses.read(1).phase is Phase.IDLE
    assert stage.statuses.marks(1) == {}, "the worker does not make the round after all"
    assert not stage.statuses.at_work(1)
