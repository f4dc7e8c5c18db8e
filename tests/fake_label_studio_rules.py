"""What Label Studio does with projects, tasks, annotations, predictions and backends, in memory.

As Label Studio Community 1.23.2 on SQLite was seen to behave; only what this project uses. Each public method is one
request of its API (fake_label_studio.py gives them addresses) and may raise `Refusal`.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any

from fake_label_studio_checks import (
    NETWORK_REFUSAL,
    Refusal,
    basic,
    choices,
    http_error,
    is_importable,
    is_valid_address,
    row_of,
    rows_of,
    shown_backend,
)

Row = dict[str, Any]
Call = Callable[[str, str, object, Mapping[str, str]], tuple[int, Any]]
"""(method, url, JSON body, headers) -> (status, JSON body). OSError: not reached."""

LABEL_CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="choice" toName="image">'
    '<Choice value="A"/><Choice value="B"/></Choices></View>'
)
ORDERED_BY_SCORE = "Uncertainty sampling"


class Rules:
    """The state and what changes it. Requests may come from several threads, and backends may ask back meanwhile.

    Args:
        call: reaches connected backends, for /health, /setup and webhooks.
        refuses: which addresses on this machine Label Studio's network settings refuse: "nothing", "webhooks" (with
            ML_BLOCK_LOCAL_IP=false alone) or "backends" too (the default of Label Studio).
        seed: of what Label Studio chooses at random.
    """

    def __init__(self, call: Call, refuses: str = "nothing", seed: int = 0) -> None:
        self.call, self.refuses = call, refuses
        self.lock = threading.RLock()
        self.projects: dict[int, Row] = {}
        self.tasks: dict[int, Row] = {}
        self.annotations: dict[int, Row] = {}
        self.predictions: dict[int, Row] = {}
        self.backends: dict[int, Row] = {}
        self.webhooks: dict[int, Row] = {}
        self.views: dict[int, Row] = {}
        self.uploads: dict[str, bytes] = {}
        self.served: dict[int, str] = {}  # task -> the user for whom it is locked
        self.numbers = count(1)
        self._random = random.Random(seed)

    # Projects

    def add_project(self, title: str, label_config: str) -> Row:
        number = next(self.numbers)
        self.projects[number] = {
            "id": number, "title": title, "label_config": label_config, "sampling": "Sequential sampling",
            "model_version": "", "show_collab_predictions": True, "min_annotations_to_start_training": 0,
            "created_at": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        return self.project(number)

    def project(self, number: int) -> Row:
        row = row_of(self.projects, number, "Project")
        tasks = self._tasks_of(number)
        annotations = [row for row in self._annotations_of(tasks) if not row["was_cancelled"]]
        return {
            **row,
            "task_number": len(tasks),
            "num_tasks_with_annotations": len({row["task"] for row in annotations}),
            "total_annotations_number": len(annotations),
            "total_predictions_number": sum(row["project"] == number for row in rows_of(self.predictions)),
        }

    def update_project(self, number: int, fields: Row) -> Row:
        row = row_of(self.projects, number, "Project")
        version = fields.get("model_version", row["model_version"])
        if version not in ("", row["model_version"]) and not (
            any(backend["title"] == version for backend in self.ml_backends_of(number))
            or any(p["project"] == number and p["model_version"] == version for p in rows_of(self.predictions))
        ):
            reason = "Model version doesn't exist either as live model or as static predictions."
            raise Refusal(400, "Validation error", model_version=[reason])
        if fields.get("show_collab_predictions") is False:
            row["model_version"] = ""
        row.update(fields)
        self._tell("PROJECT_UPDATED", number)
        return self.project(number)

    # Tasks and annotations

    def import_tasks(self, project: int, tasks: Iterable[Row]) -> list[int]:
        """Annotations that come with tasks cause no event of their own."""
        row_of(self.projects, project, "Project")
        numbers = []
        for task in tasks:
            number = next(self.numbers)
            self.tasks[number] = {"id": number, "project": project, "data": dict(task["data"])}
            numbers.append(number)
            for annotation in task.get("annotations", ()):
                self._add_annotation(number, {"ground_truth": True, **annotation}, "importer")
        self._tell("TASKS_CREATED", project, tasks=[self.task(number) for number in numbers])
        return numbers

    def task(self, number: int) -> Row:
        task = row_of(self.tasks, number, "Task")
        annotations = self._annotations_of([task])
        kept = sum(not row["was_cancelled"] for row in annotations)
        return {
            **copy.deepcopy(task),
            "is_labeled": kept > 0,
            "total_annotations": kept,
            "cancelled_annotations": len(annotations) - kept,
            "annotations": copy.deepcopy(annotations),
            "predictions": [copy.deepcopy(row) for row in rows_of(self.predictions) if row["task"] == number],
        }

    def delete_task(self, number: int) -> None:
        task = row_of(self.tasks, number, "Task")
        del self.tasks[number]
        for table in (self.annotations, self.predictions):
            for key in [row["id"] for row in rows_of(table) if row["task"] == number]:
                del table[key]
        self._tell("TASKS_DELETED", task["project"], tasks=[{"id": number}])

    def annotate(self, task: int, fields: Row, user: str) -> Row:
        row = self._add_annotation(task, fields, user)
        self.served.pop(task, None)
        self._tell_annotation("ANNOTATION_CREATED", row)
        return copy.deepcopy(row)

    def change_annotation(self, number: int, fields: Row) -> Row:
        row = row_of(self.annotations, number, "Annotation")
        row.update({key: fields[key] for key in ("result", "was_cancelled", "ground_truth") if key in fields})
        self._tell_annotation("ANNOTATION_UPDATED", row)
        return copy.deepcopy(row)

    def delete_annotation(self, number: int) -> None:
        row = row_of(self.annotations, number, "Annotation")
        del self.annotations[number]
        self._tell("ANNOTATIONS_DELETED", row["project"], annotations=[{"id": number}])

    def export(self, project: int) -> list[Row]:
        """Tasks with annotations, also those that were only skipped; without predictions."""
        row_of(self.projects, project, "Project")
        rows = [self.task(task["id"]) for task in self._tasks_of(project)]
        return [{**row, "predictions": []} for row in rows if row["annotations"]]

    def next_task(self, project: int, user: str) -> Row:
        """projects/functions/next_task.py for one annotation per task; the task is locked for the user."""
        row = row_of(self.projects, project, "Project")
        with self.lock:
            closed = self.labelled() | {a["task"] for a in rows_of(self.annotations) if a["completed_by"] == user}
            open_tasks = [task["id"] for task in self._tasks_of(project) if task["id"] not in closed]
            free = [task for task in open_tasks if task not in self.served]
            chosen = next((task for task in open_tasks if self.served.get(task) == user), None)
            if chosen is None and row["sampling"] == ORDERED_BY_SCORE:
                chosen = self._least_scored(row["model_version"], open_tasks, free)
            elif chosen is None:
                chosen = min(free, default=None)
            if chosen is None:
                raise Refusal(404, "There are still some tasks to complete, but it seems another user has locked them")
            self.served[chosen] = user
        return self.task(chosen)

    def _least_scored(self, version: str | None, open_tasks: list[int], free: list[int]) -> int | None:
        """Ascending score among tasks with that version's prediction; at random when no open task has one."""
        lowest: dict[int, float] = {}
        served = set(open_tasks)
        for row in rows_of(self.predictions):
            if row["model_version"] == version and row["task"] in served:
                score = -1.0 if row["score"] is None else row["score"]  # SQLite puts null first
                lowest[row["task"]] = min(score, lowest.get(row["task"], score))
        if not lowest:
            return self._random.choice(free) if free else None
        return min((task for task in free if task in lowest), key=lambda task: (lowest[task], task), default=None)

    # Predictions

    def import_predictions(self, project: int, rows: list[Row]) -> int:
        """How many were kept; what is not valid is dropped without a word, an unknown task refuses all."""
        config = row_of(self.projects, project, "Project")["label_config"]
        for row in rows:
            if self.tasks.get(row.get("task", 0), {}).get("project") != project:
                raise Refusal(400, "Validation error", non_field_errors=[f'{row} contains invalid "task" field'])
        kept = [row for row in rows if is_importable(row, choices(config))]
        for row in kept:
            number = next(self.numbers)
            self.predictions[number] = {
                "id": number, "project": project, "task": row["task"], "result": row["result"],
                "score": row.get("score"), "model_version": row.get("model_version", "undefined"),
            }  # fmt: skip
        return len(kept)

    def model_versions(self, project: int) -> dict[str, int]:
        row = row_of(self.projects, project, "Project")
        versions: dict[str, int] = {}
        for prediction in rows_of(self.predictions):
            if prediction["project"] == project:
                versions[prediction["model_version"]] = versions.get(prediction["model_version"], 0) + 1
        if row["model_version"]:
            versions.setdefault(row["model_version"], 0)
        return versions

    def mean_scores(self, project: int) -> dict[int, float]:
        """What the Data Manager orders by: per task, the mean over predictions of the project's version."""
        version = self.projects[project]["model_version"]
        found: dict[int, list[float]] = {}
        for row in rows_of(self.predictions):
            if row["project"] == project and row["score"] is not None and row["model_version"] == version:
                found.setdefault(row["task"], []).append(row["score"])
        return {task: sum(scores) / len(scores) for task, scores in found.items()}

    def delete_model_version(self, project: int, version: str) -> int:
        """Deleting the project's own version, or any in live mode, empties `model_version`."""
        row = row_of(self.projects, project, "Project")
        gone = [p["id"] for p in rows_of(self.predictions) if (p["project"], p["model_version"]) == (project, version)]
        for key in gone:
            del self.predictions[key]
        live = any(backend["title"] == row["model_version"] for backend in self.ml_backends_of(project))
        if live or row["model_version"] == version:
            row["model_version"] = None
        return len(gone)

    # Backends, webhooks, tabs

    def ml_backends_of(self, project: int) -> list[Row]:
        return [row for row in rows_of(self.backends) if row["project"] == project]

    def ml_backends(self, project: int) -> list[Row]:
        row_of(self.projects, project, "Project")
        for row in self.ml_backends_of(project):
            self._look_at(row)
        return [shown_backend(row) for row in self.ml_backends_of(project)]

    def add_ml_backend(self, fields: Row) -> Row:
        project = row_of(self.projects, fields["project"], "Project")
        number = next(self.numbers)
        row = {
            "id": number, "title": "default", "auth_method": "NONE", "basic_auth_user": "", "basic_auth_pass": "",
            "extra_params": None, "model_version": "", "state": "DI", "error_message": None, **fields,
        }  # fmt: skip
        self._admit(row)
        self.backends[number] = row
        address = row["url"].rstrip("/") + "/webhook"
        known = {webhook["url"] for webhook in self.webhooks_of(project["id"])}
        if address not in known and is_valid_address(address):
            self.add_webhook({"project": project["id"], "url": address})
        self._look_at(row)
        if project["show_collab_predictions"] and not project["model_version"]:
            project["model_version"] = row["title"]
        return shown_backend(row)

    def update_ml_backend(self, number: int, fields: Row) -> Row:
        row = row_of(self.backends, number, "MLBackend")
        if not {"url", "project"} <= fields.keys():
            raise Refusal(500, "'url'")
        self._admit({**row, **fields})
        project = self.projects[row["project"]]
        if project["model_version"] == row["title"]:
            project["model_version"] = fields.get("title", row["title"])
        row.update(fields)
        self._look_at(row)
        return shown_backend(row)

    def delete_ml_backend(self, number: int) -> None:
        """The webhook stays."""
        row = row_of(self.backends, number, "MLBackend")
        project = self.projects[row["project"]]
        if project["model_version"] == row["title"]:
            project["model_version"] = ""
        del self.backends[number]

    def webhooks_of(self, project: int) -> list[Row]:
        return [copy.deepcopy(row) for row in rows_of(self.webhooks) if row["project"] == project]

    def add_webhook(self, fields: Row) -> Row:
        if self.refuses != "nothing":
            raise Refusal(403, NETWORK_REFUSAL)
        if not is_valid_address(fields["url"]):
            raise Refusal(400, "Validation error", url=["Enter a valid URL."])
        number = next(self.numbers)
        self.webhooks[number] = {
            "id": number, "send_payload": True, "send_for_all_actions": True, "is_active": True, "headers": {},
            "actions": [], **fields,
        }  # fmt: skip
        return dict(self.webhooks[number])

    # What backends hear

    def _admit(self, row: Row) -> None:
        """ml/serializers.py: the address, then /health, then /setup."""
        if self.refuses == "backends":
            raise Refusal(403, NETWORK_REFUSAL)
        self._look_at(row)
        said = row["error_message"]
        if row["state"] == "DI":
            reason = f"Can't connect to ML backend {row['url']}, health check failed. Additional info: {said}"
            raise Refusal(400, "Validation error", non_field_errors=[reason])
        if row["state"] == "ER":
            reason = (
                f"Successfully connected to {row['url']} but it doesn't look like a valid ML backend. Reason: {said}."
            )
            raise Refusal(400, "Validation error", non_field_errors=[reason])

    def _look_at(self, row: Row) -> None:
        """`/health` and `/setup`, whose outcome becomes the backend's state."""
        project = self.projects[row["project"]]
        body = {"project": f"{project['id']}.1", "schema": project["label_config"], "hostname": "http://localhost:8080",
                "access_token": "0" * 40, "extra_params": row["extra_params"]}  # fmt: skip
        try:
            status, _ = self._ask(row, "GET", "health", None)
            state, said = ("DI", http_error(status, row["url"])) if status >= 400 else ("CO", None)
            if state == "CO":
                status, answer = self._ask(row, "POST", "setup", body)
                if status >= 400:
                    state, said = "ER", http_error(status, f"{row['url']}/setup")
                else:
                    row["model_version"] = answer.get("model_version")
        except OSError as error:
            state, said = "DI", type(error).__name__
        row["state"], row["error_message"] = state, said

    def _ask(self, row: Row, method: str, path: str, body: object) -> tuple[int, Any]:
        headers = {}
        if row["auth_method"] == "BASIC_AUTH":
            headers["Authorization"] = basic(row["basic_auth_user"], row["basic_auth_pass"])
        return self.call(method, f"{row['url'].rstrip('/')}/{path}", body, headers)

    def start_training(self, number: int) -> None:
        row = row_of(self.backends, number, "MLBackend")
        body = {"action": "START_TRAINING", "project": self.project(row["project"])}
        self._ask(row, "POST", "webhook", body)

    def _tell(self, action: str, project: int, **content: object) -> None:
        """Webhooks: once, and whatever comes of it; within the request that caused them."""
        for row in rows_of(self.webhooks):
            if row["project"] != project or not row["is_active"]:
                continue
            body = {"action": action, **(content | {"project": self.project(project)} if row["send_payload"] else {})}
            try:
                self.call("POST", row["url"], body, row["headers"])
            except OSError:
                continue

    def _tell_annotation(self, action: str, row: Row) -> None:
        self._tell(action, row["project"], annotation=copy.deepcopy(row), task=self.task(row["task"]))

    # Reading

    def _add_annotation(self, task: int, fields: Row, user: str) -> Row:
        number, project = next(self.numbers), row_of(self.tasks, task, "Task")["project"]
        self.annotations[number] = {
            "id": number, "task": task, "project": project, "completed_by": user, "was_cancelled": False,
            "ground_truth": False, "result": [], **fields,
        }  # fmt: skip
        return self.annotations[number]

    def _tasks_of(self, project: int) -> list[Row]:
        return [task for task in rows_of(self.tasks) if task["project"] == project]

    def _annotations_of(self, tasks: Iterable[Row]) -> list[Row]:
        numbers = {task["id"] for task in tasks}
        return [row for row in rows_of(self.annotations) if row["task"] in numbers]

    def labelled(self) -> set[int]:
        """Tasks with an annotation that is no skip."""
        return {row["task"] for row in rows_of(self.annotations) if not row["was_cancelled"]}
