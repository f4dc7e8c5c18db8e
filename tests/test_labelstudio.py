"""The client's calls, on a real Label Studio and the fake one alike."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from sites import LABEL, FakeSite, RealSite, Site, row

from lplgrad_backend.errors import LabelStudioError, LabelStudioNotFound, LabelStudioRefused
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.labelstudio.client import PAGE, TASKS_PER_QUERY

UNKNOWN_LABEL = [{**LABEL[0], "value": {"choices": ["gone"]}}]


def numbers(tasks: Iterable[tuple[int, Any]]) -> list[int]:
    return [task for task, _ in tasks]


@pytest.fixture(params=["fake", pytest.param("real", marks=[pytest.mark.e2e, pytest.mark.timeout(600)])])
def site(request: pytest.FixtureRequest) -> Site:
    if request.param == "fake":
        return FakeSite()
    return RealSite(request.getfixturevalue("label_studio"), request.getfixturevalue("owner"))


class TestOnAnyLabelStudio:
    def test_it_says_who_it_is(self, site: Site) -> None:
        assert site.client.version() == "1.23.2"
        assert "@" in site.client.user()["email"]

    def test_unlabelled_tasks_come_once_each_in_order_over_several_pages(self, site: Site) -> None:
        project = site.project(PAGE + 7)
        tasks = list(site.client.unlabelled_tasks(project))
        assert [data for _, data in tasks] == [{"image": f"{number}.png"} for number in range(PAGE + 7)]
        assert numbers(tasks) == sorted(set(numbers(tasks)))

    def test_labelling_meanwhile_makes_no_task_disappear(self, site: Site) -> None:
        project = site.project(PAGE + 7)
        tasks = site.client.unlabelled_tasks(project)
        first = [next(tasks)[0] for _ in range(3)]
        for task in first:
            site.annotate(task)
        assert len(first) + len(list(tasks)) == PAGE + 7

    def test_labelled_tasks_are_left_out_and_skipped_ones_are_not(self, site: Site) -> None:
        project = site.project(4)
        labelled, skipped, *others = numbers(site.client.unlabelled_tasks(project))
        site.annotate(labelled)
        site.skip(skipped)
        assert numbers(site.client.unlabelled_tasks(project)) == [skipped, *others]

    def test_tasks_are_asked_for_by_number_and_from_a_number_on(self, site: Site) -> None:
        project = site.project(2 * TASKS_PER_QUERY + 10)
        tasks = numbers(site.client.unlabelled_tasks(project))
        site.annotate(tasks[2])
        site.client.push_predictions(project, [row(task, version="v1") for task in tasks[:2]])
        assert numbers(site.client.unlabelled_tasks(project, after=tasks[-3])) == tasks[-2:]
        asked = [*reversed(tasks[: TASKS_PER_QUERY + 5]), tasks[-1] + 1_000_000]
        left = [task for task in tasks[: TASKS_PER_QUERY + 5] if task != tasks[2]]
        assert numbers(site.client.unlabelled_tasks(project, among=asked)) == left
        assert numbers(site.client.unlabelled_tasks(project, "v1", among=asked)) == left[2:]
        assert numbers(site.client.unlabelled_tasks(project, among=[])) == []

    def test_annotated_tasks_hold_labels_and_skips(self, site: Site) -> None:
        project = site.project(4)
        labelled, skipped, *_ = numbers(site.client.unlabelled_tasks(project))
        site.annotate(labelled)
        site.skip(skipped)
        exported = {task["id"]: task["annotations"] for task in site.client.annotated_tasks(project)}
        assert exported.keys() == {labelled, skipped}
        assert [exported[labelled][0]["was_cancelled"], exported[skipped][0]["was_cancelled"]] == [False, True]
        assert exported[labelled][0]["result"] == LABEL

    def test_versions_whose_names_contain_each_other_are_told_apart(self, site: Site) -> None:
        project = site.project(6)
        tasks = numbers(site.client.unlabelled_tasks(project))
        site.client.push_predictions(project, [row(task, version="v1") for task in tasks[:2]])
        assert numbers(site.client.unlabelled_tasks(project, "v1")) == tasks[2:]
        site.client.push_predictions(project, [row(task, version="v10") for task in tasks[1:4]])
        assert numbers(site.client.unlabelled_tasks(project, "v1")) == tasks[2:]
        assert numbers(site.client.unlabelled_tasks(project, "v10")) == [tasks[0], *tasks[4:]]
        assert numbers(site.client.unlabelled_tasks(project, "V1")) == tasks
        assert site.client.model_versions(project) == {"v1": 2, "v10": 3}

    def test_dropped_rows_are_named_and_the_others_stay(self, site: Site) -> None:
        project = site.project(3)
        tasks = numbers(site.client.unlabelled_tasks(project))
        rows = [row(tasks[0]), row(tasks[1], result=UNKNOWN_LABEL), row(tasks[2], result=[])]
        with pytest.raises(LabelStudioError, match=rf"1 of 3 predictions were dropped, of tasks \[{tasks[1]}\]"):
            site.client.push_predictions(project, rows)
        assert site.client.model_versions(project) == {"v1": 2}

    @pytest.mark.parametrize("score", [-0.1, 1.1, float("nan"), float("inf")])
    def test_a_score_that_would_be_dropped_is_refused(self, site: Site, score: float) -> None:
        project = site.project(1)
        [task] = numbers(site.client.unlabelled_tasks(project))
        with pytest.raises(LabelStudioError, match=f"score of task {task} is"):
            site.client.push_predictions(project, [row(task, score)])
        assert site.client.model_versions(project) == {}

    def test_a_task_deleted_meanwhile_does_not_lose_the_batch(self, site: Site) -> None:
        project = site.project(3)
        tasks = numbers(site.client.unlabelled_tasks(project))
        site.delete_task(tasks[1])
        site.client.push_predictions(project, [row(task) for task in tasks])
        assert site.client.model_versions(project) == {"v1": 2}

    def test_the_project_serves_by_ascending_score_of_its_version(self, site: Site) -> None:
        project = site.project(5)
        tasks = numbers(site.client.unlabelled_tasks(project))
        scores = dict(zip(tasks, [0.5, 0.1, 0.9, 0.3, 0.7], strict=True))
        site.client.push_predictions(project, [row(task, score) for task, score in scores.items()])
        site.client.push_predictions(project, [row(task, 1 - score, "v0") for task, score in scores.items()])
        site.client.update_project(project, sampling="Uncertainty sampling", model_version="v1")
        served = []
        while (task := site.client.next_task(project)) is not None:
            again = site.client.next_task(project)
            assert again is not None
            assert again["id"] == task["id"], "a task stays with its user until it is submitted"
            served.append(task["id"])
            site.annotate(task["id"])
        assert served == sorted(tasks, key=lambda task: scores[task])

    def test_a_version_without_predictions_is_refused(self, site: Site) -> None:
        project = site.project(1)
        with pytest.raises(LabelStudioError, match="doesn't exist") as caught:
            site.client.update_project(project, model_version="v9")
        assert caught.value.status == 400

    def test_deleting_the_served_version_loses_the_order(self, site: Site) -> None:
        project = site.project(2)
        for version in ("v1", "v2"):
            rows = [row(task, version=version) for task in numbers(site.client.unlabelled_tasks(project))]
            site.client.push_predictions(project, rows)
        site.client.update_project(project, model_version="v2")
        site.client.delete_model_version(project, "v1")
        assert site.client.project(project)["model_version"] == "v2"
        site.client.delete_model_version(project, "v2")
        assert site.client.project(project)["model_version"] is None
        assert site.client.model_versions(project) == {}

    def test_what_is_not_there_is_said(self, site: Site) -> None:
        for ask in (site.client.project, site.client.annotated_tasks, site.client.model_versions):
            with pytest.raises(LabelStudioNotFound, match=r"999999"):
                ask(999999)

    def test_an_upload_is_read_up_to_a_limit(self, site: Site, tmp_path: Path) -> None:
        content = b"\x89PNG\r\n\x1a\n" + bytes(5000)
        path = site.upload(site.project(1), content, tmp_path)
        assert site.client.download(path, len(content)) == content
        with pytest.raises(LabelStudioError, match="more than 5007 bytes"):
            site.client.download(path, len(content) - 1)

    def test_a_wrong_token_is_refused(self, site: Site) -> None:
        session = site.fake.session() if isinstance(site, FakeSite) else None
        stranger = LabelStudio(site.client.url, "f" * 40, session=session)
        with pytest.raises(LabelStudioRefused, match="Set LABEL_STUDIO_API_KEY") as caught:
            stranger.user()
        assert caught.value.status == 401
