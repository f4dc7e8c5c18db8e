"""The bell: rung twice is one job, rung during a job is one more; lost bells are rung again by the sweep."""

import gzip
import json
import os
import pickle
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from huey import Huey
from huey.registry import Message
from huey.storage import MemoryStorage
from redis_server import local_redis

from lplgrad_backend.errors import StoreError
from lplgrad_backend.jobs import AGAIN_SECONDS, Jobs, JsonSerializer, memory_queue, open_queue, work


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

    def test_a_bell_of_a_project_that_another_is_at_is_kept_until_it_lets_go(self, queue: Huey) -> None:
        calls: list[int] = []
        now = [0.0]
        jobs = Jobs(queue, lambda project: calls.append(project) or len(calls) >= 3, lambda: now[0])
        jobs.ring(1)
        assert jobs.step() and not jobs.step()
        now[0] = AGAIN_SECONDS
        assert jobs.step() and not jobs.step()
        now[0] = 2 * AGAIN_SECONDS
        assert jobs.step() and not jobs.step()
        now[0] = 3 * AGAIN_SECONDS
        assert not jobs.step()
        assert calls == [1, 1, 1]

    def test_a_look_that_failed_is_repeated_after_the_seconds_it_asks_for(self, queue: Huey) -> None:
        now, calls, wanted = [0.0], list[int](), [5.0, 10.0, True]
        jobs = Jobs(queue, lambda project: calls.append(project) or wanted[len(calls) - 1], clock=lambda: now[0])
        jobs.ring(1)
        assert jobs.step()
        for seconds, more in ((4.0, False), (5.0, True), (14.0, False), (15.0, True), (99.0, False)):
            now[0] = seconds
            assert jobs.step() is more
        assert calls == [1, 1, 1]

    def test_each_invitation_to_help_is_answered_once_and_is_no_bell(self, queue: Huey, answered: list[int]) -> None:
        helped: list[str] = []
        jobs = Jobs(queue, answered.append, assist=helped.append)
        jobs.invite("3-abc", 2)
        jobs.ring(1)
        assert jobs.waiting() == [1]
        while jobs.step():
            pass
        assert (helped, answered) == (["3-abc"] * 2, [1])

    def test_who_leaves_hands_back_what_it_owes(self, queue: Huey) -> None:
        leaving = Jobs(queue, lambda project: False)
        leaving.ring(3)
        assert leaving.step()
        assert leaving.waiting() == []
        leaving.hand_back()
        assert leaving.waiting() == [3]


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


RECONCILE = "lplgrad_backend.jobs.reconcile"


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


class TestForeignMessages:
    """What somebody else wrote into the queue's storage."""

    @pytest.fixture(params=["file", "redis"])
    def queue(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Huey]:
        if request.param == "file":
            queue = open_queue(None, tmp_path / "models")
            yield queue
            queue.storage.close()
        else:  # the storage gives back the bytes that it was given, which one in memory does as well
            queue = open_queue("redis://127.0.0.1:1/0", tmp_path)
            queue.storage = MemoryStorage("lplgrad")
            yield queue

    def test_a_pickle_is_never_executed(self, queue: Huey, tmp_path: Path) -> None:
        mark = tmp_path / "executed"
        trap = pickle.dumps(Trap(f"touch {mark}"))
        pickle.loads(trap)
        assert mark.exists(), "the trap works"
        mark.unlink()
        answered: list[int] = []
        jobs = Jobs(queue, answered.append)
        forged = json.dumps({"id": "x", "name": RECONCILE, "args": [trap.hex()]}).encode()
        for message in (trap, gzip.compress(trap), forged):
            queue.storage.enqueue(message)
        queue.storage.add_to_schedule(trap, datetime(2026, 1, 1))
        jobs.ring(3)
        assert jobs.waiting() == [3]
        while jobs.step():
            pass
        assert answered == [3]
        for key in ("bell.4", f"rt:{RECONCILE}"):  # a bell, and what says that such jobs are revoked
            queue.storage.put_data(key, trap)
        jobs.ring(5)
        while jobs.step():
            pass
        jobs.ring_anew(4)
        assert not mark.exists()

    @pytest.mark.parametrize(
        "message",
        [
            b"",
            b"\xff\xfe",
            b"{",
            b"[" * 100_000,
            b"null",
            b"7",
            b'{"name": "lplgrad_backend.jobs.reconcile"}',
            b'{"id": "x", "name": "lplgrad_backend.jobs.reconcile", "args": 7}',
            b'{"id": "x", "name": "os.system", "args": ["id"]}',
            b'{"id": "x", "name": "lplgrad_backend.jobs.reconcile", "args": ["../../etc"]}',
            b'{"id": "x", "name": "lplgrad_backend.jobs.reconcile", "args": []}',
        ],
        ids=lambda message: message[:40].decode(errors="replace"),
    )
    def test_nonsense_is_dropped_and_what_follows_is_answered(self, queue: Huey, message: bytes) -> None:
        answered: list[int] = []
        jobs = Jobs(queue, answered.append)
        queue.storage.enqueue(message)
        jobs.ring(3)
        assert jobs.waiting() == [3]
        while jobs.step():
            pass
        assert answered == [3]


class TestRedisQueue(QueueContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> Iterator[str]:
        with local_redis(tmp_path) as url:
            yield url

    @pytest.fixture
    def queue(self, url: str, tmp_path: Path) -> Iterator[Huey]:
        queue = open_queue(url, tmp_path / "models")
        yield queue
        queue.storage.pool.disconnect()

    def test_another_process_sees_the_bell(self, url: str, tmp_path: Path, queue: Huey) -> None:
        Jobs(queue, lambda project: None).ring(4)
        other = open_queue(url, tmp_path / "models")
        assert Jobs(other, lambda project: None).waiting() == [4]
        other.storage.pool.disconnect()

    def test_a_bell_is_taken_by_one_of_many(self, url: str, tmp_path: Path) -> None:
        answered: list[int] = []
        queues = [open_queue(url, tmp_path / "models") for _ in range(4)]
        workers = [Jobs(queue, answered.append) for queue in queues]
        for project in range(40):
            workers[project % 4].ring(project)
        threads = [
            threading.Thread(target=lambda jobs=jobs: [None for _ in iter(jobs.step, False)]) for jobs in workers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answered) == list(range(40))
        for queue in queues:
            queue.storage.pool.disconnect()

    def test_its_messages_are_json(self, queue: Huey) -> None:
        Jobs(queue, lambda project: None).ring(4)
        assert json.loads(queue.storage.conn.lindex("huey.redis.lplgrad", 0))["args"] == [4]


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


def test_a_queue_that_is_away_is_said_once_and_swept_for_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answered: list[int] = []
    stop = threading.Event()

    def answer(project: int) -> None:
        answered.append(project)
        stop.set()

    with local_redis(tmp_path) as url:
        queue = open_queue(url, tmp_path)
        jobs = Jobs(queue, answer)
    thread = threading.Thread(target=work, args=(jobs, lambda: [6], 1e6, stop))
    thread.start()
    while not caplog.records:
        stop.wait(0.05)
    with local_redis(tmp_path):
        thread.join()
        queue.storage.pool.disconnect()
    assert answered == [6]
    assert [record.message for record in caplog.records if "LPLGRAD_QUEUE_URL" in record.message] == [
        caplog.records[0].message
    ]


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
    lost.invite("3-abc", 2)  # nobody comes, which is no error
    for act in (lambda: lost.ring(1), lost.waiting):
        with pytest.raises(StoreError, match="LPLGRAD_QUEUE_URL"):
            act()
