"""One process at a time at a project: the same contract for files and Redis, and what a lost hold must not do."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from redis import Redis
from redis_server import redis_server

from lplgrad_backend.errors import HoldLost, StoreError
from lplgrad_backend.locks import FileLocks, Locks, RedisLocks, elapsed, open_locks, open_redis
from lplgrad_backend.settings import Settings, read_settings

PROJECT = 7
SECONDS = 3  # after which a key in Redis runs out


class LockContract:
    """What every kind of lock must do. `settings` names it, so that other processes can open the same one."""

    @pytest.fixture
    def locks(self, settings: Settings) -> Locks:
        return open_locks(settings)

    def test_a_project_is_held_by_one_at_a_time(self, settings: Settings, locks: Locks) -> None:
        with locks.hold(PROJECT) as ours, open_locks(settings).hold(PROJECT) as theirs, locks.hold(PROJECT) as again:
            assert ours is not None and not ours.lost
            ours.confirm()
            assert theirs is None and again is None
            assert locks.held(PROJECT) and not locks.held(PROJECT + 1)
        assert not locks.held(PROJECT)
        with open_locks(settings).hold(PROJECT) as theirs:
            assert theirs is not None

    def test_projects_do_not_hold_each_other_up(self, locks: Locks) -> None:
        with locks.hold(1) as one, locks.hold(2) as two:
            assert one is not None and two is not None

    def test_it_is_let_go_when_the_work_fails(self, locks: Locks) -> None:
        with pytest.raises(RuntimeError, match="on purpose"), locks.hold(PROJECT):
            raise RuntimeError("on purpose")
        with locks.hold(PROJECT) as ours:
            assert ours is not None

    def test_it_is_free_again_when_its_holder_is_killed(self, settings: Settings, locks: Locks) -> None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        holder = context.Process(target=hold_until_told, args=(settings.environ(), there))
        holder.start()
        assert here.recv() is True
        with locks.hold(PROJECT) as ours:
            assert ours is None
        holder.kill()
        holder.join()
        assert taken(locks)
        here.close()
        there.close()

    def test_it_is_held_for_as_long_as_the_work_takes(self, locks: Locks) -> None:
        with locks.hold(PROJECT) as ours:
            end = elapsed() + 1.5 * SECONDS
            while elapsed() < end:
                with locks.hold(PROJECT) as theirs:
                    assert theirs is None
                threading.Event().wait(0.05)
            assert ours is not None and not ours.lost
            ours.confirm()

    def test_many_at_once_are_one_after_the_other(self, settings: Settings) -> None:
        inside, most, done = 0, 0, 0

        def work() -> None:
            nonlocal inside, most, done
            mine, turns = open_locks(settings), 0
            while turns < 5:
                with mine.hold(PROJECT) as ours:
                    if ours is not None:
                        inside += 1
                        most = max(most, inside)
                        threading.Event().wait(0.002)
                        inside, done, turns = inside - 1, done + 1, turns + 1

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (most, done) == (1, 30)


def hold_until_told(environ: dict[str, str], pipe: Connection) -> None:
    with open_locks(read_settings(environ, None)).hold(PROJECT) as ours:
        pipe.send(ours is not None)
        pipe.recv()


def taken(locks: Locks, turns: int = 400) -> bool:
    """Whether the project could be taken, sooner or later."""
    for _ in range(turns):
        with locks.hold(PROJECT) as ours:
            if ours is not None:
                return True
        threading.Event().wait(0.05)
    return False


class TestFileLocks(LockContract):
    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        return read_settings({"MODEL_DIR": str(tmp_path)}, None)

    def test_a_folder_that_cannot_be_made_is_a_sentence(self) -> None:
        with pytest.raises(StoreError, match="MODEL_DIR"), FileLocks(Path("/dev/null")).hold(1):
            pass


class TestRedisLocks(LockContract):
    @pytest.fixture
    def settings(self, tmp_path: Path) -> Iterator[Settings]:
        with redis_server(["--port", "0", "--unixsocket", str(tmp_path / "redis.sock")], tmp_path) as process:
            self.process = process
            yield read_settings(
                {"LPLGRAD_QUEUE_URL": f"unix://{tmp_path}/redis.sock", "LPLGRAD_LOCK_SECONDS": str(SECONDS)}, None
            )

    @pytest.fixture
    def client(self, settings: Settings) -> Redis:
        return open_redis(str(settings.queue_url))

    @pytest.fixture
    def now(self) -> list[float]:
        return [0.0]

    @pytest.fixture
    def by_hand(self, client: Redis, now: list[float]) -> RedisLocks:
        """Whose clock is `now`, and which asks for so long a time that no renewal comes in between."""
        return RedisLocks(client, 1000.0, lambda: now[0])

    def test_what_another_took_is_lost_and_not_let_go_for_it(self, client: Redis, by_hand: RedisLocks) -> None:
        with by_hand.hold(PROJECT) as ours:
            assert ours is not None
            client.delete(f"lplgrad.lock.{PROJECT}")  # as a Redis that came back without its memory
            with by_hand.hold(PROJECT) as theirs:
                assert theirs is not None
                with pytest.raises(HoldLost):
                    ours.confirm()
                assert ours.lost
                theirs.confirm()

    def test_one_that_ran_out_is_not_taken_back(self, client: Redis, by_hand: RedisLocks) -> None:
        """Another may have begun and ended meanwhile."""
        with by_hand.hold(PROJECT) as ours:
            assert ours is not None
            client.delete(f"lplgrad.lock.{PROJECT}")
            with pytest.raises(HoldLost):
                ours.confirm()
            assert not client.exists(f"lplgrad.lock.{PROJECT}")

    def test_a_holder_that_slept_knows_without_asking(self, by_hand: RedisLocks, now: list[float]) -> None:
        with by_hand.hold(PROJECT) as ours:
            assert ours is not None
            now[0] = 999.0
            assert not ours.lost
            ours.confirm()
            now[0] = 1998.0
            assert not ours.lost
            now[0] = 1999.0
            assert ours.lost
            with pytest.raises(HoldLost):
                ours.confirm()

    def test_a_redis_that_hangs_costs_the_hold_in_time(self, locks: Locks) -> None:
        with ExitStack() as stack:
            ours = stack.enter_context(locks.hold(PROJECT))
            assert ours is not None
            self.process.send_signal(signal.SIGSTOP)
            stack.callback(self.process.send_signal, signal.SIGCONT)
            while not ours.lost:
                threading.Event().wait(0.05)
            with pytest.raises(HoldLost):
                ours.confirm()

    def test_a_redis_that_hangs_is_a_sentence_to_who_asks(self, locks: Locks) -> None:
        self.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(StoreError, match="LPLGRAD_QUEUE_URL"), locks.hold(PROJECT):
                pass
        finally:
            self.process.send_signal(signal.SIGCONT)

    def test_it_is_the_key_that_is_asked_for(self, client: Redis, by_hand: RedisLocks) -> None:
        with by_hand.hold(PROJECT):
            assert client.keys() == [f"lplgrad.lock.{PROJECT}".encode()]
            left: Callable[[str], int] = client.pttl  # milliseconds
            assert 0 < left(f"lplgrad.lock.{PROJECT}") <= 1_000_000
        assert client.keys() == []


def test_a_redis_that_is_not_there_is_a_sentence() -> None:
    locks = open_locks(read_settings({"LPLGRAD_QUEUE_URL": "redis://127.0.0.1:1/0"}, None))
    with pytest.raises(StoreError, match="LPLGRAD_QUEUE_URL"), locks.hold(1):
        pass
