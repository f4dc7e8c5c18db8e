"""The bell: rung twice is one job, rung during a job is one more; lost bells are rung again by the sweep."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huey import Huey
from huey.registry import Message

from lplgrad_backend.errors import StoreError
from lplgrad_backend.jobs import Jobs, JsonSerializer, memory_queue, open_queue, work


class QueueContract:
    """What every storage must do."""

    @pytest.fixture
    def answered(self) -> list[int]:
        return []

    @pytest.fixture
    def jobs(self, queue: Huey, answered: list[int]) -> Jobs:
        return Jobs(queue, answered.append)

    def test_an_empty_queue_has_no_step(self, jobs: Jobs) -> None:
        assert jobs.step() is False

    def test_two_rings_are_one_job(self, jobs: Jobs, answered: list[int]) -> None:
        jobs.ring(1)
        jobs.ring(1)
        assert jobs.waiting() == [1]
        assert jobs.step() and not jobs.step()
        assert answered == [1]

    def test_projects_take_turns(self, jobs: Jobs, answered: list[int]) -> None:
        for project in (3, 1, 3, 2):
            jobs.ring(project)
        while jobs.step():
            pass
        assert answered == [3, 1, 2]

    def test_a_ring_during_the_job_is_one_more_job(self, queue: Huey) -> None:
        answered: list[int] = []

        def answer(project: int) -> None:
            answered.append(project)
            if len(answered) == 1:
                jobs.ring(project)
                jobs.ring(project)

        jobs = Jobs(queue, answer)
        jobs.ring(5)
        while jobs.step():
            pass
        assert answered == [5, 5]

    def test_a_failing_job_does_not_silence_the_bell(self, queue: Huey) -> None:
        answered: list[int] = []

        def answer(project: int) -> None:
            answered.append(project)
            raise RuntimeError("on purpose")

        jobs = Jobs(queue, answer)
        for _ in range(2):
            jobs.ring(1)
            assert jobs.step()
        assert answered == [1, 1]

    def test_a_lost_job_is_rung_anew(self, queue: Huey, jobs: Jobs, answered: list[int]) -> None:
        jobs.ring(1)
        queue.dequeue()  # taken by a worker that was killed before it began
        jobs.ring(1)
        assert not jobs.step()
        jobs.ring_anew(1)
        jobs.ring_anew(1)
        assert jobs.step() and not jobs.step()
        assert answered == [1]


class TestMemoryQueue(QueueContract):
    @pytest.fixture
    def queue(self) -> Huey:
        return memory_queue()


class TestFileQueue(QueueContract):
    @pytest.fixture
    def queue(self, tmp_path: Path) -> Iterator[Huey]:
        queue = open_queue(None, tmp_path / "models")
        yield queue
        queue.storage.close()

    def test_another_process_sees_the_bell(self, tmp_path: Path, queue: Huey) -> None:
        web, worker = Jobs(queue, lambda project: None), open_queue(None, tmp_path / "models")
        web.ring(4)
        assert Jobs(worker, lambda project: None).waiting() == [4]
        worker.storage.close()


def test_messages_are_json_and_nothing_is_unpickled() -> None:
    serializer = JsonSerializer()
    message = Message(id="x", name="huey.reconcile", args=(3,), kwargs={}, retries=0)
    data = serializer.serialize(message)
    assert data.startswith(b"{")
    again = serializer.deserialize(data)
    assert (again.id, again.name, again.args) == ("x", "huey.reconcile", (3,))
    assert serializer.deserialize(serializer.serialize([1, "two"])) == [1, "two"]


def test_work_sweeps_at_start_and_by_the_clock() -> None:
    answered: list[int] = []
    stop, time = threading.Event(), iter(range(100))

    def answer(project: int) -> None:
        answered.append(project)
        if len(answered) == 6:
            stop.set()

    work(Jobs(memory_queue(), answer), lambda: [1, 2], 3, stop, clock=lambda: float(next(time)))
    assert answered == [1, 2, 1, 2, 1, 2]


def test_work_survives_a_broken_sweep() -> None:
    stop, calls = threading.Event(), []

    def sweep() -> list[int]:
        calls.append(1)
        if len(calls) == 2:
            stop.set()
        raise OSError("no disk")

    work(Jobs(memory_queue(), lambda project: None), sweep, 0.0, stop)
    assert len(calls) == 2


def test_a_queue_that_cannot_be_used_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "queue.db").write_bytes(b"no database " * 1000)
    with pytest.raises(StoreError, match=r"queue\.db"):
        open_queue(None, tmp_path)
    lost = Jobs(open_queue("redis://127.0.0.1:1/0", tmp_path), [].append)
    for act in (lambda: lost.ring(1), lost.waiting):
        with pytest.raises(StoreError, match="LPLGRAD_QUEUE_URL"):
            act()
