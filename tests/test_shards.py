"""Shards of a pool: which tasks each has, who may score it, and that all come back in order whoever scored them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis_server import local_redis
from versions import LABELING

from lplgrad_backend.errors import StoreError
from lplgrad_backend.locks import open_redis
from lplgrad_backend.logs import About
from lplgrad_backend.shards import LOOK_SECONDS, Board, Claims, Plan, Tasks, gather, shard_size

SECONDS = 30.0


def plan_of(count: int, size: int = 4, attempt: str = "a") -> Plan:
    return Plan(
        attempt=attempt, project=3, labeling=LABELING, about=About(job="j"), architecture={}, trained="all", frozen=False,
        ladder=(1.0,), confidence=1.0, batch=2, size=size, tasks=tuple((n, f"/\udc80{n}.png") for n in range(count)),
    )  # fmt: skip


@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 64))
def test_every_task_is_in_one_shard_and_shards_are_whole_batches(count: int, wanted: int, batch: int) -> None:
    size = shard_size(wanted, batch)
    assert wanted <= size < wanted + batch and size % batch == 0
    plan = plan_of(count, size)
    parts = [plan.part(shard) for shard in range(plan.count)]
    assert [task for part in parts for task in part] == list(plan.tasks)
    assert all(len(part) == size for part in parts[:-1]) and all(parts)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with local_redis(tmp_path) as url:
        yield url


@pytest.fixture
def claims(url: str) -> Iterator[Claims]:
    client = open_redis(url)
    yield Claims(client, SECONDS)
    client.connection_pool.disconnect()


@pytest.fixture
def board(tmp_path: Path, claims: Claims) -> Board:
    (tmp_path / "3-abc").mkdir()
    return Board(tmp_path, "3-abc", claims)


class TestClaims:
    def test_one_of_two_gets_a_shard_and_lets_it_go(self, claims: Claims) -> None:
        with claims.claim("r.0") as first, claims.claim("r.0") as second, claims.claim("r.1") as other:
            assert (first, second, other) == (True, False, True)
            assert claims.claimed("r.0")
        assert not claims.claimed("r.0")
        with claims.claim("r.0") as again:
            assert again

    def test_one_whose_holder_is_gone_runs_out(self, url: str) -> None:
        client = open_redis(url)
        client.set("lplgrad.shard.r.0", "somebody else", px=200)
        claims = Claims(client, SECONDS)
        tries = 0
        while True:
            with claims.claim("r.0") as ours:
                if ours:
                    break
            tries += 1
            threading.Event().wait(0.02)
        assert tries > 0
        client.connection_pool.disconnect()

    def test_without_redis_everybody_may_do_everything(self, caplog: pytest.LogCaptureFixture) -> None:
        claims = Claims(open_redis("redis://127.0.0.1:1/0"), SECONDS)
        with claims.claim("r.0") as ours:
            assert ours
        assert not claims.claimed("r.0")
        assert "cannot be asked for" in caplog.text


class TestBoard:
    @pytest.mark.parametrize(
        "name", ["", "..", "3", "3-", "../3-abc", "3-abc/..", "3-a.b", "-abc", "3-abc\n", "x" * 999]
    )
    def test_no_other_folder_can_be_named(self, tmp_path: Path, claims: Claims, name: str) -> None:
        with pytest.raises(StoreError, match="not the name of a round"):
            Board(tmp_path, name, claims)

    def test_a_plan_is_read_as_it_was_published(self, board: Board) -> None:
        assert board.plan() is None and not board.is_open
        board.publish(plan_of(9))
        assert board.plan() == plan_of(9) and board.is_open and board.wants(plan_of(9))
        board.publish(plan_of(9, attempt="again"))
        assert board.is_open and not board.wants(plan_of(9))
        board.close()
        assert board.plan() is None and not board.is_open and not board.wants(plan_of(9))

    @pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]"])
    def test_half_a_plan_is_none(self, board: Board, content: bytes) -> None:
        board.publish(plan_of(9))
        (board.round / "shards" / "plan.json").write_bytes(content)
        assert board.plan() is None

    def test_what_is_done_is_not_claimed_and_another_attempts_shards_are_others(self, board: Board) -> None:
        plan = plan_of(8)
        board.publish(plan)
        assert board.has_work(plan)
        for shard in range(plan.count):
            with board.claim(plan, shard) as ours:
                assert ours
                board.write(plan, shard, b"found")
            with board.claim(plan, shard) as ours:
                assert not ours
        assert not board.has_work(plan)
        assert board.has_work(plan_of(8, attempt="b"))

    def test_what_is_being_scored_is_no_work(self, board: Board) -> None:
        plan = plan_of(8)
        board.publish(plan)
        with board.claim(plan, 0), board.claim(plan, 1):
            assert not board.has_work(plan)

    def test_a_shard_of_a_round_that_is_over_is_dropped(self, board: Board) -> None:
        plan = plan_of(8)
        board.publish(plan)
        board.round.rename(board.round.with_name("away"))
        board.write(plan, 0, b"found")
        with pytest.raises(StoreError, match="No more of 3-abc"):
            board.helper_folder()
        with pytest.raises(StoreError, match="cannot be written"):
            board.publish(plan)


class Owner:
    """Scores a task as its number, and notes which it scored itself."""

    def __init__(self, board: Board, plan: Plan) -> None:
        self.board, self.plan = board, plan
        self.own: list[int] = []
        self.told: list[int] = []
        self.waits = 0

    def score(self, tasks: Tasks, told: object) -> list[int]:
        self.own += [task for task, _ in tasks]
        return [task for task, _ in tasks]

    def fetch(self, shard: int) -> list[int] | None:
        words = self.board.file(self.plan, shard).read_text().split()
        return None if words == ["broken"] else [int(word) for word in words]

    def wait(self, seconds: float) -> None:
        assert seconds == LOOK_SECONDS
        self.waits += 1

    def gather(self) -> list[int]:
        parts = gather(self.board, self.plan, self.score, self.fetch, self.told.append, self.wait)
        return [one for part in parts for one in part]


@pytest.fixture
def owner(board: Board) -> Owner:
    plan = plan_of(14)
    board.publish(plan)
    return Owner(board, plan)


class TestGather:
    def test_alone_the_owner_scores_all(self, owner: Owner) -> None:
        assert owner.gather() == owner.own == list(range(14))
        assert owner.waits == 0
        assert owner.told[-1] == 14 and owner.told == sorted(owner.told)

    def test_what_others_found_is_taken_in_its_place(self, owner: Owner) -> None:
        owner.board.write(owner.plan, 1, b"104 105 106 107")
        owner.board.write(owner.plan, 3, b"112 113")
        assert owner.gather() == [0, 1, 2, 3, 104, 105, 106, 107, 8, 9, 10, 11, 112, 113]
        assert owner.own == [0, 1, 2, 3, 8, 9, 10, 11]

    def test_what_cannot_be_read_is_scored_again(self, owner: Owner) -> None:
        owner.board.write(owner.plan, 1, b"broken")
        assert owner.gather() == list(range(14))

    def test_a_shard_that_another_is_at_is_waited_for(self, owner: Owner) -> None:
        def comes_in(seconds: float) -> None:
            owner.waits += 1
            if owner.waits == 3:
                owner.board.write(owner.plan, 2, b"108 109 110 111")

        owner.wait = comes_in  # type: ignore[method-assign]
        with owner.board.claim(owner.plan, 2):
            assert owner.gather()[8:12] == [108, 109, 110, 111]
        assert owner.waits == 3

    def test_a_shard_whose_worker_died_is_scored_here(self, owner: Owner, url: str) -> None:
        client = open_redis(url)
        client.set("lplgrad.shard.a.2", "somebody who died", px=300)
        owner.wait = lambda seconds: threading.Event().wait(0.02)  # type: ignore[method-assign,assignment]
        assert owner.gather() == list(range(14))
        assert owner.own[-4:] == [8, 9, 10, 11], "the last of all, when the claim had run out"
        client.connection_pool.disconnect()

    @given(data=st.data(), count=st.integers(2, 40), size=st.integers(1, 9))
    def test_order_and_values_do_not_depend_on_who_scores(self, data: st.DataObject, count: int, size: int) -> None:
        plan = plan_of(count, size, attempt=str(data.draw(st.uuids())))
        board = _Kept(plan, data.draw(st.sets(st.integers(0, plan.count - 1))))
        owner = Owner(board, plan)  # type: ignore[arg-type]
        owner.fetch = lambda shard: [task for task, _ in plan.part(shard)]  # type: ignore[method-assign]
        assert owner.gather() == list(range(count))
        assert not set(owner.own) & {task for shard in board.others for task, _ in plan.part(shard)}


class _Kept(Board):
    """A board in memory, on which others have done some shards."""

    def __init__(self, plan: Plan, others: set[int]) -> None:
        self.others, self._done = others, set(others)
        self._claims = _Free()  # type: ignore[assignment]

    def is_done(self, plan: Plan, shard: int) -> bool:
        return shard in self._done

    def write(self, plan: Plan, shard: int, content: bytes) -> None:
        self._done.add(shard)


class _Free(Claims):
    def __init__(self) -> None:
        super().__init__(open_redis("redis://127.0.0.1:1/0"), SECONDS)

    def claim(self, name: str) -> AbstractContextManager[bool]:
        return threading.Lock()
