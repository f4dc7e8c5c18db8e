"""What Label Studio says of the backend: the line that describes the model and the tab of suspected mistakes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fake_label_studio import Fault
from learner_stage import Stage

from lplgrad_backend.history import History, Suspect, VersionRecord
from lplgrad_backend.notice import LOOKS, TAB, Notice, line, own_row
from lplgrad_backend.status import Phase

RECORD = VersionRecord(
    version="v12", created=datetime(2026, 1, 1, tzinfo=UTC), labels={"cat": 340}, images=340, compared=100, agreed=91
)


def suspect(task: int) -> Suspect:
    return Suspect(task=task, uri="/a.png", label="cat", predicted="dog", loss=3.0, expected=0.1, excess=8.0)


HISTORY = History(versions=[RECORD], suspects=[suspect(4), suspect(7)])


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path)
    stage.fake.call = lambda *asked: (200, {"model_version": "v12"})
    stage.client.add_ml_backend({"url": "http://127.0.0.1:9090", "project": stage.project, "title": "LPLgrad"})
    return stage


def show(stage: Stage, history: History = HISTORY, training: bool = False) -> None:
    Notice(stage.client, stage.project, stage.settings).show(history, training=training)


def row(stage: Stage) -> dict[str, Any]:
    [found] = stage.client.ml_backends(stage.project)
    return found


def tab(stage: Stage) -> list[int]:
    [data] = [view["data"] for view in stage.client.views(stage.project) if view["data"]["title"] == TAB]
    assert data["filters"]["conjunction"] == "or"
    return [item["value"] for item in data["filters"]["items"]]


def test_the_line_says_version_labels_agreement_and_training() -> None:
    assert line(HISTORY, training=True) == "v12, 340 labels, 91 % agreement, training"
    assert line(HISTORY, training=False) == "v12, 340 labels, 91 % agreement"
    assert line(History(), training=True) == "no version yet, 0 labels, training"


def test_the_description_changes_and_nothing_else_of_the_row(stage: Stage) -> None:
    before = row(stage)
    show(stage, training=True)
    after = row(stage)
    assert after.pop("description").endswith("training")
    assert after == {key: value for key, value in before.items() if key != "description"}


def descriptions(stage: Stage, clock: list[float], shares: list[tuple[float, int]]) -> list[str]:
    """What the row says after each line of progress; each is (seconds, epochs of 10)."""
    notice = Notice(stage.client, stage.project, stage.settings, clock=lambda: clock[0])
    notice.show(HISTORY, training=True)
    said = []
    for seconds, done in shares:
        clock[0] = seconds
        notice.follow(Phase.TRAINING, done, 10)
        said.append(str(row(stage)["description"]).removeprefix("v12, 340 labels, 91 % agreement, training"))
    return said


def test_the_line_follows_the_training_in_steps_and_not_too_often(stage: Stage) -> None:
    assert descriptions(stage, [0.0], [(6, 1), (6, 2), (7, 5), (11, 6), (17, 7), (30, 10)]) == [
        "", " 20 %", " 20 %", " 60 %", " 60 %", " 100 %",
    ]  # fmt: skip


def test_only_training_is_followed_and_only_where_it_was_shown(stage: Stage) -> None:
    notice = Notice(stage.client, stage.project, stage.settings, clock=iter(range(0, 9999, 100)).__next__)
    notice.follow(Phase.TRAINING, 5, 10)
    assert not row(stage).get("description")
    notice.show(HISTORY, training=True)
    notice.follow(Phase.SCORING, 5, 10)
    notice.follow(Phase.TRAINING, 0, 0)
    assert row(stage)["description"].endswith("training")
    notice.show(HISTORY, training=False)
    notice.follow(Phase.TRAINING, 5, 10)
    assert row(stage)["description"].endswith("agreement")


def test_where_label_studio_refuses_the_share_the_round_goes_on_without(stage: Stage) -> None:
    notice = Notice(stage.client, stage.project, stage.settings, clock=iter(range(0, 9999, 100)).__next__)
    notice.show(HISTORY, training=True)
    stage.fake.faults.append(Fault("/api/ml", 403))
    notice.follow(Phase.TRAINING, 5, 10)
    asked = len(stage.fake.asked)
    notice.follow(Phase.TRAINING, 10, 10)
    assert len(stage.fake.asked) == asked
    assert row(stage)["description"].endswith("training")


def save_over(stage: Stage, times: int) -> None:
    """As often, Label Studio saves the line that is there now over another: someone looked at the settings meanwhile."""
    [backend] = stage.fake.backends.values()
    stale, left = backend["description"], iter(range(times))

    def answer(*asked: object) -> tuple[int, dict[str, str]]:
        if backend["description"] != stale and next(left, None) is not None:
            backend["description"] = stale
        return 200, {"model_version": "v12"}

    stage.fake.call = answer


def test_a_last_line_that_was_saved_over_is_written_again(stage: Stage) -> None:
    show(stage, training=True)
    save_over(stage, times=LOOKS - 1)
    show(stage)
    assert row(stage)["description"] == "v12, 340 labels, 91 % agreement"


def test_a_line_that_never_stays_ends_nothing(stage: Stage) -> None:
    show(stage, training=True)
    save_over(stage, times=99)
    show(stage)
    assert row(stage)["description"].endswith("training")
    assert tab(stage) == [4, 7]


def test_a_persons_own_description_stays(stage: Stage) -> None:
    address = {"url": "http://127.0.0.1:9090", "project": stage.project}
    stage.client.update_ml_backend(row(stage)["id"], {**address, "description": "Ask Ann before you change this"})
    show(stage)
    assert row(stage)["description"] == "Ask Ann before you change this"


def test_the_tab_follows_the_suspects(stage: Stage) -> None:
    show(stage)
    assert tab(stage) == [4, 7]
    show(stage, HISTORY.model_copy(update={"suspects": [suspect(5)]}))
    assert tab(stage) == [5]
    show(stage, HISTORY.model_copy(update={"suspects": []}))
    assert tab(stage) == [0]  # nobody's task, so that the tab is empty


def test_without_suspects_no_tab_is_made(stage: Stage) -> None:
    show(stage, History(versions=[RECORD]))
    assert stage.client.views(stage.project) == []


def test_a_project_that_is_not_managed_is_left_alone(tmp_path: Path) -> None:
    stage = Stage(tmp_path, LPLGRAD_MANAGE_PROJECT="false")
    show(stage)
    assert stage.fake.asked == []


def test_what_label_studio_refuses_ends_nothing(stage: Stage) -> None:
    stage.fake.faults.append(Fault("GET /api/ml", 403))
    show(stage)
    assert stage.client.views(stage.project) == []


def test_the_own_row_is_told_by_address_or_by_being_alone() -> None:
    ours, other = {"url": "http://a.b/", "model_version": "v3"}, {"url": "http://c.d", "model_version": "1.0"}
    assert own_row([other, ours], "http://a.b") is ours
    assert own_row([other], "http://a.b") is None
    assert own_row([ours], None) is ours
    assert own_row([other], None) is None
    assert own_row([ours, other], None) is None


def test_a_round_ends_with_the_line_and_says_that_it_trains(stage: Stage) -> None:
    during: list[str] = []
    stage.during = lambda: during.append(row(stage)["description"])
    stage.label(10)
    assert stage.look().last_error is None
    assert during == ["no version yet, 0 labels, training"]
    assert row(stage)["description"] == "v1, 10 labels"
