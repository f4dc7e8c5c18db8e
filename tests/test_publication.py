"""What is pushed, what is pointed at, what is removed: decided purely."""

from pathlib import Path

from versions import LABELING, pool_scores, save_version

from lplgrad_backend.publication import (
    by_hand,
    head,
    outdated_versions,
    rows,
    sort_tasks,
    start_rows,
    unreadable_rows,
    worth_scoring,
)
from lplgrad_backend.store import Store


def test_tasks_are_sorted_by_what_the_version_scored(tmp_path: Path) -> None:
    manifest = save_version(Store(tmp_path), 1, "v3", tasks=[(1, "/a"), (2, "/b")], unreadable={4: "it is broken."})
    scores = pool_scores([(1, "/a"), (2, "/b")])
    lacking = [(1, "/a"), (2, "/moved"), (3, "/new"), (4, "/broken")]
    found = sort_tasks(iter(lacking), scores, None, manifest, limit=10)
    assert (found.scored, found.unreadable) == ([(1, 0)], [4])
    assert found.unknown == [(3, "/new"), (2, "/moved")]
    cut = sort_tasks(iter(lacking), scores, {2}, manifest, limit=10)
    assert (cut.scored, cut.unreadable) == ([], [])


def test_the_head_of_the_queue_has_the_lowest_scores() -> None:
    scores = pool_scores([(1, "/a"), (2, "/b"), (3, "/c")], [0.9, 0.2, 0.5])
    assert head(scores, 2) == {2, 3}
    assert head(scores, 3) is None


def test_new_tasks_are_always_worth_scoring() -> None:
    unknown = [(5, "/e"), (11, "/k"), (12, "/l")]
    assert worth_scoring(iter(unknown), newest_task=10, known=100, limit=100) == [(11, "/k"), (12, "/l")]
    assert worth_scoring(iter(unknown), newest_task=10, known=97, limit=100) == [(11, "/k"), (12, "/l"), (5, "/e")]
    assert worth_scoring(iter(unknown), newest_task=10, known=0, limit=1) == [(11, "/k")]


def test_rows_come_most_uncertain_first(tmp_path: Path) -> None:
    manifest = save_version(Store(tmp_path), 1, "v3")
    scores = pool_scores([(1, "/a"), (2, "/b"), (3, "/c")], [0.9, 0.2, 0.5])
    found = rows(LABELING, manifest, scores, [(1, 0), (2, 1), (3, 2)], preannotate=True)
    assert [row["task"] for row in found] == [2, 3, 1]
    assert {row["model_version"] for row in found} == {"v3"}
    assert found[0]["result"][0]["value"] == {"choices": ["cat"]}


def test_without_preannotation_no_class_is_shown(tmp_path: Path) -> None:
    manifest = save_version(Store(tmp_path), 1, "v3")
    found = rows(LABELING, manifest, pool_scores([(1, "/a")]), [(1, 0)], preannotate=False)
    assert found[0]["result"] == []
    assert 0 < found[0]["score"] < 1


def test_unreadable_images_are_last_in_line() -> None:
    found = unreadable_rows(LABELING, "v3", [4])
    assert found == [{"task": 4, "result": [], "score": 1.0, "model_version": "v3"}]


def test_only_our_own_old_versions_are_removed() -> None:
    present = {"v1": 9, "v2": 9, "v3": 9, "v4": 9, "somebody else's": 9, "untrained": 2}
    assert outdated_versions(present, ["v2", "v3", "v4"], "v4", keep=2) == ["untrained", "v2"]
    assert outdated_versions(present, ["v4"], "v4", keep=1) == ["untrained"]
    assert outdated_versions({"v4": 9}, ["v2", "v3", "v4"], "v4", keep=1) == []


def test_an_order_made_before_the_first_version_goes_with_it_or_with_the_next_such() -> None:
    present = {"start-1": 9, "start-2": 9, "untrained": 2, "startled": 4, "v1": 9}
    assert outdated_versions(present, ["v1"], "v1", keep=3) == ["untrained", "start-1", "start-2"]
    assert outdated_versions(present, [], "start-2", keep=1) == ["untrained", "start-1"]


def test_rows_of_an_order_without_a_network_show_no_class() -> None:
    found = start_rows(LABELING, "start-1", pool_scores([(1, "/a"), (2, "/b")], [0.7, 0.2]))
    assert [(row["task"], row["score"], row["result"]) for row in found] == [(2, 0.2, []), (1, 0.7, [])]
    assert {row["model_version"] for row in found} == {"start-1"}


def test_what_is_left_to_a_person_is_said() -> None:
    assert by_hand({"model_version": "v3"}, "v3") is None
    sentence = by_hand({"model_version": "LPLgrad"}, "v3")
    assert sentence is not None and "v3" in sentence and "Prediction score" in sentence
