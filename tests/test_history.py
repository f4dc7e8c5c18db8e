"""What is kept of versions after their files are gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from learner_stage import Stage
from versions import LABELING, pool_scores, save_version

from lplgrad_backend.errors import StoreError
from lplgrad_backend.history import (
    History,
    Suspect,
    choices,
    read_history,
    with_choices,
    with_version,
    write_history,
)
from lplgrad_backend.labeling import Example, Labeling
from lplgrad_backend.store import Store

TASKS = ((1, "/a.png"), (2, "/b.png"), (3, "/c.png"))
SUSPECT = Suspect(task=9, uri="/i.png", label="cat", predicted="dog", loss=3.0, expected=0.1, excess=8.0)


def history_of(store: Store, version: str = "v1") -> History:
    manifest = save_version(store, 3, version, tasks=TASKS)
    addresses = dict(TASKS)
    return with_version(read_history(store, 3), manifest, pool_scores(TASKS), addresses, [SUSPECT], 16)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    history = history_of(store)
    write_history(store, 3, history)
    assert read_history(store, 3) == history


def test_damage_and_absence_are_an_empty_history(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert read_history(store, 3) == History()
    history_of(store)
    (tmp_path / "3/history.json").write_text('{"versions": [{"version')
    assert read_history(store, 3) == History()


def test_what_a_newer_release_added_is_no_obstacle(tmp_path: Path) -> None:
    store = Store(tmp_path)
    history_of(store)
    (tmp_path / "3/history.json").write_text('{"queries": [{"task": 1, "uri": "/a", "new": 1}], "colour": "blue"}')
    assert [query.task for query in read_history(store, 3).queries] == [1]


def test_a_refusing_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"history\.json of project 3"):
        write_history(Store(tmp_path / "nowhere"), 3, History())


def test_the_front_of_the_queue_is_kept_without_what_was_labelled(tmp_path: Path) -> None:
    store = Store(tmp_path)
    history = history_of(store)
    assert [query.task for query in history.queries] == [1, 2, 3]
    labelled = [Example(2, "/b.png", (1.0, 0.0))]
    assert [query.task for query in with_choices(history, store, 3, LABELING, labelled).queries] == [1, 3]


def test_the_queues_of_earlier_versions_are_kept_for_one_of_them_may_be_served(tmp_path: Path) -> None:
    store = Store(tmp_path)
    history = history_of(store)
    for number in range(2, 9):
        manifest = save_version(store, 3, f"v{number}", tasks=TASKS)
        first = [0.9, 0.5, 0.1] if number == 8 else None
        history = with_version(history, manifest, pool_scores(TASKS, first), dict(TASKS))
    assert [query.task for query in history.queue("v8")] == [3, 2, 1]
    assert [query.task for query in history.queue("v7")] == [1, 2, 3]
    assert history.queue("v2") == []
    after = with_choices(history, store, 3, LABELING, [Example(1, "/a.png", (1.0, 0.0))])
    assert [[query.task for query in after.queue(version)] for version in ("v8", "v7")] == [[3, 2], [2, 3]]
    assert after.addresses == {2: "/b.png", 3: "/c.png"}


def test_only_tasks_predicted_before_they_were_labelled_are_compared(tmp_path: Path) -> None:
    store = Store(tmp_path)
    labelled = [
        Example(1, "/a.png", (1.0, 0.0)),  # predicted cat
        Example(2, "/b.png", (0.0, 1.0)),  # predicted cat
        Example(3, "/another.png", (1.0, 0.0)),  # its image was changed after the prediction
        Example(8, "/h.png", (1.0, 0.0)),  # was not in the pool
    ]
    [record] = with_choices(history_of(store), store, 3, LABELING, labelled).versions
    assert (record.compared, record.agreed) == (2, 1)
    assert [(one.predicted, one.chosen, one.count) for one in record.choices] == [("cat", "cat", 1), ("cat", "dog", 1)]


def test_counts_outlive_the_version(tmp_path: Path) -> None:
    store = Store(tmp_path)
    compared = with_choices(history_of(store), store, 3, LABELING, [Example(1, "/a.png", (1.0, 0.0))])
    store.delete(3, "v1")
    assert with_choices(compared, store, 3, LABELING, []).versions == compared.versions


def test_of_several_classes_all_must_be_as_predicted() -> None:
    labeling = Labeling("kind", "image", "image", ("cat", "dog"), multiple=True)
    labelled = [Example(1, "/a.png", (1.0, 0.0)), Example(2, "/b.png", (1.0, 1.0))]
    assert [said == chosen for said, chosen in choices(pool_scores(TASKS), labeling, labelled)] == [True, False]


def test_a_round_keeps_history_and_compares_the_version_before(tmp_path: Path) -> None:
    stage = Stage(tmp_path, LPLGRAD_KEEP_VERSIONS="1")
    stage.label(10)
    stage.look()
    stage.label(10, first=10)
    stage.look()
    history = read_history(stage.store, stage.project)
    assert [record.version for record in history.versions] == ["v1", "v2"]
    assert stage.store.versions(stage.project) == ["v2"]
    assert (history.versions[0].compared, history.versions[0].agreed) == (10, 5)  # always cat against every other dog
    assert {query.task for query in history.queries} == stage.unlabelled()
