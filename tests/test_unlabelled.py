"""Which tasks a round scores: all, or of too many each with the same chance."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from learner_stage import Stage

from lplgrad_backend.status import Mark
from lplgrad_backend.unlabelled import pool_of


def test_a_pool_in_its_limit_is_all_tasks_in_their_order() -> None:
    tasks = [(task, f"/{task}.png") for task in (3, 5, 9)]
    found = pool_of(iter(tasks), 3)
    assert [(entry.task, entry.uri) for entry in found.tasks] == tasks
    assert (found.total, found.newest) == (3, 9)


def test_without_tasks_there_is_nothing_to_score() -> None:
    assert pool_of([], 3).tasks == []
    assert (pool_of([], 3).total, pool_of([], 3).newest) == (0, 0)


def test_of_too_many_each_has_the_same_chance() -> None:
    tasks, rounds = [(task, "") for task in range(10)], 3000
    drawn = Counter(entry.task for _ in range(rounds) for entry in pool_of(iter(tasks), 4).tasks)
    # binomial(3000, 0.4) has deviation 27; six of them are met by chance once in 10^8 draws
    assert all(abs(drawn[task] - 1200) < 160 for task in range(10))
    assert sum(drawn.values()) == 4 * rounds


def test_of_too_many_none_comes_twice_and_the_newest_is_known() -> None:
    found = pool_of(((task, "") for task in range(1, 5001)), 100)
    assert len({entry.task for entry in found.tasks}) == 100
    assert (found.total, found.newest) == (5000, 5000)


# Pools larger than the limits


def test_only_the_head_of_the_queue_is_published(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 60, LPLGRAD_PUBLISH_LIMIT="20")
    stage.label(10)
    assert stage.look().last_error is None
    # the stand-in's scores rise with the number
    assert sorted(stage.predictions("v1")) == sorted(stage.unlabelled())[:20]
    served = stage.client.next_task(stage.project)
    assert served is not None and served["id"] == min(stage.unlabelled())
    stage.statuses.set_mark(stage.project, Mark.TASKS)
    stage.look()
    assert len(stage.predictions("v1")) == 20 and len(stage.orders) == 1
    new = stage.add_tasks(3)
    stage.statuses.set_mark(stage.project, Mark.TASKS)
    stage.look()
    assert set(new) <= set(stage.predictions("v1")) and len(stage.predictions("v1")) == 23
    stage.statuses.set_mark(stage.project, Mark.TASKS)
    stage.look()
    assert len(stage.orders) == 2


def test_of_a_large_pool_the_subset_is_asked_for_by_number_and_the_whole_is_not_read_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 60, LPLGRAD_POOL_LIMIT="20", LPLGRAD_PUBLISH_LIMIT="15")
    stage.label(10)
    assert stage.look().last_error is None
    assert len(stage.orders[0].pool) == 20
    published = stage.predictions("v1")
    scored = sorted(entry.task for entry in stage.orders[0].pool)
    assert sorted(published) == scored[:15]
    new = stage.add_tasks(2)
    before = len(stage.fake.asked)
    stage.statuses.set_mark(stage.project, Mark.TASKS)
    stage.look()
    assert set(stage.predictions("v1")) == {*published, *new}
    listed = [asked for asked in stage.fake.asked[before:] if asked.path == "/api/tasks"]
    queries = [asked.query["query"] for asked in listed]
    assert all("in_list" in query or f'"value":{max(stage.tasks)}' in query for query in queries)
    assert len(listed) == 2


def test_a_first_queue_is_limited_too(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 30, LPLGRAD_PUBLISH_LIMIT="12", LPLGRAD_COLD_START="true")
    stage.look()
    assert len(stage.predictions("start-1")) == 12
    stage.statuses.set_mark(stage.project, Mark.TASKS)
    stage.look()
    assert len(stage.orders) == 1
