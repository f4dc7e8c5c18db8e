"""Whether a worker that was invited helps, with what, and that nothing comes of an invitation that is forged or late."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis_server import local_redis
from test_shards import plan_of

from lplgrad_backend.assistance import assist
from lplgrad_backend.errors import TrainingError
from lplgrad_backend.locks import open_redis
from lplgrad_backend.logs import About, current
from lplgrad_backend.rounds import Order, Outcome, Progress, RoundStopped, Stop
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.shards import Board, Claims

PLAN = plan_of(10)


class Site:
    """A round called 3-abc, and a worker whose child is a stand-in."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.board = Board(settings.model_dir / "scratch", "3-abc", Claims(open_redis(str(settings.queue_url)), 30.0))
        self.board.round.mkdir(parents=True)
        self.orders: list[Order] = []
        self.about: list[About] = []
        self.during: Callable[[], None] = lambda: None

    def heavy(
        self, order: Order, folder: Path, settings: Settings, report: Callable[[Progress], None], stop: Stop
    ) -> Outcome:
        assert folder.is_dir() and self.board.round in folder.parents
        self.orders.append(order)
        self.about.append(current())
        self.during()
        return Outcome()

    def assist(self, name: str = "3-abc") -> None:
        assist(name, self.settings, threading.Event(), self.heavy)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with local_redis(tmp_path) as url:
        site = Site(read_settings({"MODEL_DIR": str(tmp_path / "models"), "LPLGRAD_QUEUE_URL": url}, None))
        yield site


def test_the_child_is_told_which_round_and_speaks_of_its_job(site: Site) -> None:
    site.board.publish(PLAN)
    site.assist()
    [order], [about] = site.orders, site.about
    assert (order.helps, order.project, order.labeling) == ("3-abc", 3, PLAN.labeling)
    assert (about.project, about.job) == (3, "j")


def test_who_comes_late_does_nothing(site: Site) -> None:
    site.assist()
    site.board.publish(PLAN)
    for shard in range(PLAN.count):
        site.board.write(PLAN, shard, b"")
    site.assist()
    site.board.close()
    site.assist()
    assert site.orders == []


def test_who_could_only_watch_others_does_nothing(site: Site) -> None:
    plan = plan_of(8)
    site.board.publish(plan)
    site.board.write(plan, 1, b"")
    with site.board.claim(plan, 0):
        site.assist()
    assert site.orders == []
    site.assist()
    assert len(site.orders) == 1


@pytest.mark.parametrize("name", ["", "../../etc", "3-abc/../../x", "/etc", "3-never", "\0", "3-abc\n"])
def test_a_forged_invitation_leads_nowhere(site: Site, name: str) -> None:
    site.board.publish(PLAN)
    site.assist(name)
    assert site.orders == []


def test_something_else_than_a_name_is_dropped_by_the_queue(site: Site) -> None:
    with pytest.raises(TypeError):
        site.assist(7)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [TrainingError("memory ran out"), RoundStopped()])
def test_a_child_that_fails_or_is_stopped_is_no_error_of_the_worker(site: Site, error: Exception) -> None:
    def fail() -> None:
        raise error

    site.board.publish(PLAN)
    site.during = fail
    site.assist()
    assert len(site.orders) == 1


def test_there_is_no_help_without_a_shared_queue(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "3-abc").mkdir(parents=True)
    assist("3-abc", read_settings({"MODEL_DIR": str(tmp_path)}, None), threading.Event(), None)  # type: ignore[arg-type]
