"""One look at a project, against a fake Label Studio."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from fake_label_studio import Fault
from learner_stage import CONFIG, Stage, choice

from lplgrad_backend.errors import TrainingError
from lplgrad_backend.labelstudio import LOST_ANSWER
from lplgrad_backend.learner import Learner
from lplgrad_backend.rounds import RoundStopped
from lplgrad_backend.settings import read_settings
from lplgrad_backend.status import Mark, Phase, StatusFolder, now
from lplgrad_backend.store import Store


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


# The round


def test_too_few_labels_are_counted_down(stage: Stage) -> None:
    stage.label(4)
    assert stage.look().due == "6 more label(s)"
    stage.label(3, first=4)
    assert stage.look().due == "3 more label(s)"
    assert stage.orders == []
    assert stage.store.versions(stage.project) == []


def test_one_class_is_not_enough(stage: Stage) -> None:
    for task in stage.tasks[:12]:
        stage.fake.annotate(task, {"result": choice("cat")}, "me@example.com")
    assert "1 more class" in stage.look().due
    assert stage.orders == []


def test_a_due_round_ends_with_an_ordered_queue(stage: Stage) -> None:
    stage.label(10)
    status = stage.look()
    assert (status.phase, status.last_error, status.published) == (Phase.IDLE, None, "v1")
    assert stage.row["model_version"] == "v1"
    assert stage.row["sampling"] == "Uncertainty sampling"
    predictions = stage.predictions("v1")
    assert set(predictions) == stage.unlabelled()
    served = stage.client.next_task(stage.project)
    assert served is not None and served["id"] == min(stage.unlabelled())
    assert len(stage.orders[0].examples) == 10
    assert stage.store.check() == []


def test_nothing_changed_is_nothing_done(stage: Stage) -> None:
    stage.label(10)
    stage.look()
    before = len(stage.fake.asked)
    stage.look()
    assert len(stage.orders) == 1
    assert [asked.method for asked in stage.fake.asked[before:]] == ["GET"]


def test_the_next_round_is_due_after_as_many_changes(stage: Stage) -> None:
    stage.label(10)
    stage.look()
    stage.label(9, first=10)
    assert stage.look().due == "1 more label(s)"
    stage.label(1, first=19)
    assert stage.look().published == "v2"
    assert set(stage.predictions("v2")) == stage.unlabelled()


def test_changed_and_deleted_annotations_count(stage: Stage) -> None:
    stage.label(12)
    stage.look()
    numbers = list(stage.fake.annotations)
    for number in numbers[:5]:
        stage.fake.change_annotation(number, {"result": choice("cat", "dog")})
    for number in numbers[5:10]:
        stage.fake.delete_annotation(number)
    stage.statuses.set_mark(stage.project, Mark.ANNOTATIONS)
    assert stage.look().published == "v2"
    assert len(stage.orders[1].examples) == 7


def test_skips_do_not_count(stage: Stage) -> None:
    stage.label(9)
    for task in stage.tasks[20:25]:
        stage.fake.annotate(task, {"result": [], "was_cancelled": True}, "me@example.com")
    stage.statuses.set_mark(stage.project, Mark.ANNOTATIONS)
    assert stage.look().due == "1 more label(s)"


def test_somebody_presses_start_training(stage: Stage) -> None:
    stage.label(2)
    stage.statuses.set_mark(stage.project, Mark.ROUND)
    assert stage.look().published == "v1"
    assert stage.statuses.marks(stage.project) == {}


def test_start_training_without_labels_is_answered_in_words(stage: Stage) -> None:
    stage.statuses.set_mark(stage.project, Mark.ROUND)
    status = stage.look()
    assert status.last_error is not None and "2 more class" in status.last_error
    assert status.errors == {"NotLearnable": 1}
    assert stage.statuses.marks(stage.project) == {}
    stage.label(10)
    assert stage.look().last_error is None


def test_events_during_a_round_are_one_more_round(stage: Stage) -> None:
    stage.label(10)

    def meanwhile() -> None:
        stage.during = lambda: None
        stage.label(10, first=10)

    stage.during = meanwhile
    assert stage.look().published == "v1"
    assert set(stage.predictions("v1")) == stage.unlabelled()
    assert stage.look().published == "v2"


def test_a_changed_label_config_is_learned_as_soon_as_labels_allow(stage: Stage) -> None:
    stage.label(10)
    stage.look()
    config = CONFIG.replace('<Choice value="dog"/>', '<Choice value="dog"/><Choice value="owl"/>')
    stage.fake.update_project(stage.project, {"label_config": config})
    assert stage.look().published == "v2"
    newest = stage.store.newest(stage.project)
    assert newest is not None and newest.labeling.classes == ("cat", "dog", "owl")


def test_a_label_config_that_cannot_be_learned_is_said(stage: Stage) -> None:
    stage.label(10)
    stage.look()
    stage.fake.projects[stage.project]["label_config"] = '<View><Text name="t" value="$t"/></View>'
    error = stage.look().last_error
    assert error is not None and "Image" in error


def test_a_lost_model_dir_never_reuses_a_version(stage: Stage, tmp_path: Path) -> None:
    stage.label(10)
    stage.look()
    stage.store.delete(stage.project, "v1")
    stage.statuses.set_mark(stage.project, Mark.ANNOTATIONS)
    assert stage.look().published == "v2"


def test_old_versions_go(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 40, LPLGRAD_KEEP_VERSIONS="2", START_TRAINING_EACH_N_UPDATES="4")
    for first in range(0, 16, 4):
        stage.label(4, first=first)
        stage.look()
    assert stage.store.versions(stage.project) == ["v3", "v4"]
    assert set(stage.client.model_versions(stage.project)) == {"v3", "v4"}


def test_the_pool_limit_takes_a_random_subset(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 60, LPLGRAD_POOL_LIMIT="15")
    stage.label(10)
    stage.look()
    assert len(stage.orders[0].pool) == 15
    assert len(stage.predictions("v1")) == 15
    stage.label(10, first=10)
    stage.look()
    pools = [{entry.task for entry in order.pool} for order in stage.orders]
    assert pools[0] != pools[1]


# Publishing


def test_new_tasks_are_scored_without_a_new_round(stage: Stage) -> None:
    stage.label(10)
    stage.look()
    new = stage.add_tasks(5)
    stage.statuses.set_mark(stage.project, Mark.TASKS)
    assert stage.look().published == "v1"
    assert set(stage.predictions("v1")) >= set(new)
    assert [entry.task for entry in stage.orders[1].pool] == new
    assert stage.orders[1].version == "v1"


def test_a_task_whose_annotation_was_deleted_comes_back_into_the_queue(stage: Stage) -> None:
    stage.label(12)
    stage.look()
    stage.fake.delete_annotation(next(iter(stage.fake.annotations)))
    stage.statuses.set_mark(stage.project, Mark.TASKS)
    stage.look()
    assert set(stage.predictions("v1")) == stage.unlabelled()


def test_unreadable_images_are_last_in_line_and_listed(stage: Stage) -> None:
    stage.unreadable = {stage.tasks[20]: "it is not an image.", stage.tasks[3]: "it is gone."}
    stage.label(10)
    status = stage.look()
    assert status.unreadable == stage.unreadable
    row = stage.predictions("v1")[stage.tasks[20]]
    assert (row["score"], row["result"]) == (1.0, [])
    assert set(stage.predictions("v1")) == stage.unlabelled()
    assert len(stage.orders) == 1, "what a round could not read is not tried again at once"


def test_without_preannotation_no_class_is_shown(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 20, LPLGRAD_PREANNOTATE="false")
    stage.label(10)
    stage.look()
    assert all(row["result"] == [] for row in stage.predictions("v1").values())


def test_a_project_that_is_left_alone_gets_a_sentence(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 20, LPLGRAD_MANAGE_PROJECT="false")
    stage.label(10)
    status = stage.look()
    assert stage.row["model_version"] != "v1"
    assert set(stage.predictions("v1")) == stage.unlabelled()
    assert status.to_do_by_hand is not None and "v1" in status.to_do_by_hand


def test_a_project_pointed_elsewhere_is_pointed_back(stage: Stage) -> None:
    stage.label(10)
    stage.look()
    stage.fake.projects[stage.project]["model_version"] = "LPLgrad"  # what connecting does
    stage.look()
    assert stage.row["model_version"] == "v1"


def test_removed_predictions_are_pushed_again(stage: Stage) -> None:
    stage.label(10)
    stage.look()
    stage.fake.delete_model_version(stage.project, "v1")
    stage.statuses.set_mark(stage.project, Mark.TASKS)
    stage.look()
    assert set(stage.predictions("v1")) == stage.unlabelled()
    assert stage.row["model_version"] == "v1"
    assert len(stage.orders) == 1


# What goes wrong


@pytest.mark.parametrize("what", [500, 502, 403, 404, "cut"])
@pytest.mark.parametrize(
    "where",
    [
        "GET /api/projects/1/export",
        "GET /api/tasks",
        "POST /api/projects/1/import/predictions",
        "PATCH /api/projects/1/",
    ],
)
def test_a_failing_label_studio_is_an_error_and_then_made_good(stage: Stage, where: str, what: int | str) -> None:
    stage.label(10)
    stage.fake.faults.append(Fault(where, what, times=50))
    status = stage.look()
    assert status.last_error is not None and "Label Studio" in status.last_error
    assert status.phase is Phase.IDLE
    stage.fake.faults.clear()
    stage.statuses.set_mark(stage.project, Mark.TASKS)
    status = stage.look()
    assert (status.last_error, status.published) == (None, "v1")
    assert set(stage.predictions("v1")) == stage.unlabelled()
    assert len(stage.orders) == 1 or where.startswith("GET")


@pytest.mark.parametrize("what", ["lost", "short", 500])
def test_a_push_in_doubt_makes_no_double_predictions(stage: Stage, what: int | str) -> None:
    stage.label(10)
    stage.fake.faults.append(Fault("POST /api/projects/1/import/predictions", what))
    stage.look()
    stage.statuses.set_mark(stage.project, Mark.TASKS)
    assert stage.look().last_error is None
    assert set(stage.predictions("v1")) == stage.unlabelled()


def test_a_failing_training_is_the_last_error(stage: Stage) -> None:
    def fail() -> None:
        raise TrainingError("The loss became nan at step 7.")

    stage.during = fail
    stage.label(10)
    assert stage.look().last_error == "The loss became nan at step 7."
    stage.during = lambda: None
    assert stage.look().published == "v1"


def test_an_unexpected_error_ends_the_look_not_the_worker(stage: Stage) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    stage.during = fail
    stage.label(10)
    error = stage.look().last_error
    assert error is not None and "log" in error


def test_a_stopped_round_leaves_nothing_and_is_made_again(stage: Stage) -> None:
    def stop() -> None:
        raise RoundStopped

    stage.during = stop
    stage.label(10)
    status = stage.look()
    assert (status.phase, status.last_error) == (Phase.IDLE, None)
    assert stage.store.versions(stage.project) == []
    assert list(stage.store.scratch_folder.iterdir()) == []
    stage.during = lambda: None
    stage.statuses.set_mark(stage.project, Mark.ANNOTATIONS)
    assert stage.look().published == "v1"


def test_a_version_saved_but_not_pushed_is_pushed_without_training(stage: Stage) -> None:
    stage.label(10)
    stage.fake.faults.append(Fault("POST /api/projects/1/import/predictions", 403, times=9))
    stage.look()
    assert stage.store.versions(stage.project) == ["v1"]
    stage.fake.faults.clear()
    assert stage.look().published == "v1"
    assert len(stage.orders) == 1


def test_two_lookers_do_not_meet(stage: Stage) -> None:
    stage.label(10)
    with stage.statuses.lock(stage.project):
        stage.look()
    assert stage.orders == []
    assert stage.look().published == "v1"


def test_without_a_token_nothing_is_done(tmp_path: Path) -> None:
    learner = Learner(read_settings({}, None), Store(tmp_path), StatusFolder(tmp_path), None)
    learner.reconcile(1)
    assert Store(tmp_path).projects() == []


# Clocks and kills


def test_a_clock_set_back_makes_the_last_reading_count_for_nothing(stage: Stage) -> None:
    """A change whose event was lost is found by a full reading, which is due every hour."""
    stage.label(10)
    stage.look()
    for number in list(stage.fake.annotations):
        stage.fake.change_annotation(number, {"result": choice("cat", "dog")})
    assert stage.look().published == "v1"
    status = stage.statuses.read(stage.project)
    stage.statuses.write(status.model_copy(update={"read_at": now() + timedelta(days=2)}))
    assert stage.look().published == "v2"


def test_what_may_pass_is_marked_until_a_look_ends_well(stage: Stage) -> None:
    stage.label(10)
    stage.fake.faults.append(Fault("PATCH /api/projects", 503, times=9))
    assert stage.look().may_pass
    stage.fake.faults.clear()
    status = stage.look()
    assert (status.may_pass, status.published) == (False, "v1")
    stage.fake.faults.append(Fault("GET /api/projects", 403))
    assert not stage.look().may_pass


def test_after_a_kill_while_publishing_the_last_push_may_still_arrive(stage: Stage) -> None:
    """Label Studio goes on with a push whose sender is gone; asked at once, it lacks what it is about to have."""
    waited: list[float] = []

    class Arriving:
        def is_set(self) -> bool:
            return False

        def wait(self, timeout: float) -> bool:
            waited.append(timeout)
            return False

    stage.label(10)
    stage.look()
    stage.statuses.write(stage.statuses.read(stage.project).model_copy(update={"phase": Phase.PUBLISHING}))
    stage.learner.stop = Arriving()
    stage.look()
    assert waited == [LOST_ANSWER]
