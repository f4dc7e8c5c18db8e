"""Status, marks and locks of projects, shared between processes through files."""

import fcntl
from pathlib import Path

import pytest

from lplgrad_backend.errors import StoreError
from lplgrad_backend.status import Mark, Phase, ProjectStatus, StatusFolder


@pytest.fixture
def statuses(tmp_path: Path) -> StatusFolder:
    return StatusFolder(tmp_path)


def test_an_unknown_project_is_idle(statuses: StatusFolder) -> None:
    assert statuses.read(7) == ProjectStatus(project=7)
    assert not statuses.read(7).busy


def test_a_status_is_read_as_it_was_written(statuses: StatusFolder) -> None:
    status = ProjectStatus(project=7, phase=Phase.TRAINING, done=3, total=9, unreadable={4: "too large"})
    statuses.write(status)
    assert statuses.read(7) == status
    assert statuses.read(7).busy


def test_a_damaged_status_reads_as_fresh(statuses: StatusFolder) -> None:
    statuses.write(ProjectStatus(project=7, rounds=3))
    (statuses.folder / "7" / "status.json").write_text('{"project": 7, "rou')
    assert statuses.read(7).rounds == 0


def test_a_served_mark_is_cleared(statuses: StatusFolder) -> None:
    statuses.set_mark(1, Mark.ROUND)
    seen = statuses.marks(1)
    assert set(seen) == {Mark.ROUND}
    statuses.clear_marks(1, seen)
    assert statuses.marks(1) == {}


def test_a_mark_set_again_meanwhile_stays(statuses: StatusFolder) -> None:
    statuses.set_mark(1, Mark.TASKS)
    seen = statuses.marks(1)
    statuses.set_mark(1, Mark.TASKS)
    statuses.clear_marks(1, seen)
    assert set(statuses.marks(1)) == {Mark.TASKS}


def test_remembering_says_what_is_new(statuses: StatusFolder) -> None:
    assert statuses.remember(1, None)
    assert not statuses.remember(1, None)
    assert statuses.remember(1, "kind")
    assert statuses.control(1) == "kind"
    assert statuses.remember(1, None)
    assert statuses.control(1) is None


def test_a_refusing_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="project 3"):
        StatusFolder(tmp_path / "models").set_mark(3, Mark.ROUND)


def test_whether_a_lock_is_held_can_be_asked_by_several_at_once(tmp_path: Path) -> None:
    statuses = StatusFolder(tmp_path)
    assert not statuses.at_work(3)  # nobody ever was
    with statuses.lock(3):
        assert statuses.at_work(3)
    lock = tmp_path / "3" / "lock"
    with lock.open("rb") as another:
        fcntl.flock(another, fcntl.LOCK_SH)  # as somebody else holds it while asking
        assert not statuses.at_work(3)
