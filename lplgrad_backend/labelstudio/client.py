"""The calls: tasks and annotations in, predictions out, and what connects a backend."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import requests

from lplgrad_backend.errors import LabelStudioError, LabelStudioNotFound, LabelStudioRefused, LabelStudioUnreachable
from lplgrad_backend.labelstudio.transport import Elsewhere, Transport, waiting

PAGE = 500  # Label Studio on SQLite fails at 999 uploaded images and more: "Expression tree is too large"
TASKS_PER_QUERY = 200  # by number: a request's line stays below the 4 kB that servers take
ROWS_PER_PUSH = 2000  # 1.5 s; each request recounts all the project's tasks, so small ones are slow
LONG_READING = 600.0  # seconds; an export takes 2.5 ms a task, deleting a version 6 ms a prediction
LONG_PUSH = 300.0
LOST_ANSWER = 5.0  # seconds in which Label Studio ends a push whose connection was cut off

Fields = Mapping[str, Any]
Rows = list[dict[str, Any]]


class LabelStudio:
    """A user's view of one Label Studio. Safe for several threads.

    Args:
        url: its address, with or without a path below the host.
        token: legacy token or personal access token.
        session: transport; tests give one that reaches a fake in this process.
        timeout: seconds to wait for each answer.
        attempts: how often a request is tried that changes nothing by being repeated.
        pause: how to wait between attempts.

    Every method raises LabelStudioUnreachable, LabelStudioRefused, LabelStudioNotFound or LabelStudioError.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        session: requests.Session | None = None,
        timeout: float = 30.0,
        attempts: int = 4,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._transport = Transport(url, token, session, timeout, attempts, pause)
        self._json = self._transport.json

    def __repr__(self) -> str:
        return f"LabelStudio({self.url!r})"

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return self._transport.url

    # What there is

    def health(self) -> None:
        """Ask whether anything answers at its address; needs no valid token."""
        self._json("GET", "/health")

    def version(self) -> str:
        """Label Studio's release, such as "1.23.2"."""
        return str(self._json("GET", "/api/version").get("release", "unknown"))

    def user(self) -> dict[str, Any]:
        """Whom the token belongs to."""
        return dict(self._json("GET", "/api/current-user/whoami"))

    def project(self, project: int) -> dict[str, Any]:
        """One project's settings and counters."""
        return dict(self._json("GET", f"/api/projects/{project}/"))

    def update_project(self, project: int, **fields: Any) -> None:
        """Change a project's settings. A `model_version` is refused unless a prediction or backend of that name is."""
        self._json("PATCH", f"/api/projects/{project}/", body=fields)

    def annotated_tasks(self, project: int) -> Rows:
        """All tasks that have annotations, with them (skipped ones included), as exported."""
        return list(self._json("GET", f"/api/projects/{project}/export?exportType=JSON", timeout=LONG_READING))

    def unlabelled_tasks(
        self,
        project: int,
        without_version: str | None = None,
        *,
        after: int = 0,
        among: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(id, data) of every task without an annotation, ascending, page by page. A task that was skipped counts as
        unlabelled.

        Args:
            without_version: only tasks that lack a prediction of this version.
            after: only tasks with a higher number.
            among: only these tasks, which of a large project is quicker; a number without a task is passed over.
        """
        lacking = None if without_version is None else _Lacking(without_version, self.model_versions(project))
        if among is None:
            yield from self._listed(project, after, lacking, [])
            return
        numbers = sorted(number for number in among if number > after)
        for start in range(0, len(numbers), TASKS_PER_QUERY):
            chosen = numbers[start : start + TASKS_PER_QUERY]
            yield from self._listed(project, 0, lacking, [_filter("id", "in_list", chosen, "List")])

    def _listed(
        self, project: int, after: int, lacking: _Lacking | None, chosen: list[dict[str, Any]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Pages are asked for by "id greater than the last", so that tasks labelled meanwhile shift nothing."""
        last = after
        while True:
            page = self._page(project, last, lacking, chosen)
            wanted = [task for task in page if lacking is None or lacking.holds(task)]
            yield from ((int(task["id"]), dict(task["data"])) for task in wanted)
            if len(page) < PAGE:
                return
            last = int(page[-1]["id"])

    def unlabelled_scores(self, project: int) -> Iterator[tuple[int, dict[str, Any], float | None]]:
        """(id, data, score) of every unlabelled task, by ascending id; the score is that of the prediction by which
        the project is ordered (`project.model_version`; the mean of several), None without one."""
        last = 0
        while True:
            items = [_filter("total_annotations", "equal", 0), _filter("id", "greater", last)]
            page = self._scored(project, items, "tasks:id", PAGE)
            yield from ((int(row["id"]), dict(row["data"]), row.get("predictions_score")) for row in page)
            if len(page) < PAGE:
                return
            last = int(page[-1]["id"])

    def first_in_order(self, project: int) -> int | None:
        """The unlabelled task that comes first by Label Studio's own order of scores, or None. Unlike `next_task` it
        locks nothing, and so does not know which tasks are locked for somebody."""
        page = self._scored(project, [_filter("total_annotations", "equal", 0)], "tasks:predictions_score", 1)
        return int(page[0]["id"]) if page else None

    def _scored(self, project: int, items: list[dict[str, Any]], ordering: str, size: int) -> Rows:
        query = {"filters": {"conjunction": "and", "items": items}, "ordering": [ordering]}
        parameters = {
            "project": project,
            "fields": "all",  # without, the score is not computed and missing from the answer
            "include": "id,data,predictions_score",
            "page_size": size,
            "query": json.dumps(query),
        }
        return list(self._json("GET", "/api/tasks", parameters=parameters)["tasks"])

    def _page(self, project: int, after: int, lacking: _Lacking | None, chosen: list[dict[str, Any]]) -> Rows:
        items = [_filter("total_annotations", "equal", 0), _filter("id", "greater", after), *chosen]
        parameters = {"project": project, "include": "id,data", "page_size": PAGE}
        if lacking is not None:
            items += lacking.filters
            parameters |= lacking.parameters
        query = {"filters": {"conjunction": "and", "items": items}, "ordering": ["tasks:id"]}
        parameters["query"] = json.dumps(query, separators=(",", ":"))
        return list(self._json("GET", "/api/tasks", parameters=parameters)["tasks"])

    def model_versions(self, project: int) -> dict[str, int]:
        """Version -> number of its predictions. `project.model_version` is among them, if need be with 0."""
        return dict(self._json("GET", f"/api/projects/{project}/model-versions/"))

    def next_task(self, project: int) -> dict[str, Any] | None:
        """The task that this user would be served next (and is locked for it from now on), or None."""
        try:
            path = f"/api/dm/actions?id=next_task&project={project}"
            return dict(self._json("POST", path, body={"project": str(project)}))
        except LabelStudioNotFound:
            return None

    # Predictions

    def push_predictions(self, project: int, rows: Sequence[Fields]) -> None:
        """Import predictions of one version, once each, even when an answer is lost on the way.

        Label Studio drops rows that it does not accept without an error, so what it says it created is compared; after
        a failure, what still lacks the version is read back and only that is sent again. Rows of tasks that were
        labelled or deleted meanwhile may be left out then.

        Raises:
            LabelStudioError: rows were dropped; the message says how many and names tasks. The others were imported.
        """
        for row in rows:
            if not 0 <= float(row["score"]) <= 1:
                reason = f"the score of task {row['task']} is {row['score']}, not in [0, 1]"
                raise LabelStudioError(_import(project), reason)
        dropped = 0
        for start in range(0, len(rows), ROWS_PER_PUSH):
            dropped += self._push(project, list(rows[start : start + ROWS_PER_PUSH]))
        if dropped:
            tasks = [row["task"] for row in self._still_lacking(project, rows)][:5]
            reason = (
                f"{dropped} of {len(rows)} predictions were dropped, of tasks {tasks} among others: most likely they "
                "name a label or control that the label config no longer has"
            )
            raise LabelStudioError(_import(project), reason)

    def _push(self, project: int, rows: Sequence[Fields]) -> int:
        """Push one batch; returns how many rows Label Studio dropped."""
        for attempt in range(self._transport.attempts):
            try:
                answer = self._json("POST", _import(project), body=list(rows), timeout=LONG_PUSH)
                return len(rows) - int(answer.get("created", 0))
            except LabelStudioRefused:
                raise
            except LabelStudioError as error:
                if attempt + 1 == self._transport.attempts:
                    raise
                lost = isinstance(error, LabelStudioUnreachable) or error.status in (502, 504)
                self._transport.pause(max(waiting(attempt), LOST_ANSWER if lost else 0.0))
                lacking = self._still_lacking(project, rows)
                if error.status == 400 and len(lacking) == len(rows):  # not a task that was deleted meanwhile
                    raise
                rows = lacking
            if not rows:
                break
        return 0

    def _still_lacking(self, project: int, rows: Sequence[Fields]) -> list[Fields]:
        version = str(rows[0]["model_version"])
        asked = [int(row["task"]) for row in rows]
        lacking = {task for task, _ in self.unlabelled_tasks(project, without_version=version, among=asked)}
        return [row for row in rows if row["task"] in lacking]

    def delete_model_version(self, project: int, version: str) -> None:
        """Remove all predictions of a version. The one in `project.model_version` must not be: the order is lost."""
        path = f"/api/projects/{project}/model-versions/"
        self._json("DELETE", path, body={"model_version": version}, timeout=LONG_READING)

    # What connects a backend

    def ml_backends(self, project: int) -> Rows:
        """The project's ML backends; Label Studio calls each one's /health and /setup first."""
        return list(self._json("GET", "/api/ml", parameters={"project": project}))

    def add_ml_backend(self, fields: Fields) -> None:
        """Connect a backend: Label Studio calls it, and creates its webhook, before it answers."""
        self._json("POST", "/api/ml", body=fields)

    def update_ml_backend(self, backend: int, fields: Fields) -> None:
        """Change a backend's row; `fields` must hold url and project, or Label Studio answers 500."""
        self._json("PATCH", f"/api/ml/{backend}", body=fields)

    def delete_ml_backend(self, backend: int) -> None:
        """Disconnect a backend. Its webhook stays."""
        self._delete(f"/api/ml/{backend}")

    def webhooks(self, project: int) -> Rows:
        """The project's webhooks."""
        return list(self._json("GET", "/api/webhooks/", parameters={"project": project}))

    def add_webhook(self, fields: Fields) -> None:
        """Create a webhook."""
        self._json("POST", "/api/webhooks/", body=fields)

    def update_webhook(self, webhook: int, fields: Fields) -> None:
        """Change a webhook."""
        self._json("PATCH", f"/api/webhooks/{webhook}/", body=fields)

    def delete_webhook(self, webhook: int) -> None:
        """Remove a webhook."""
        self._delete(f"/api/webhooks/{webhook}/")

    def views(self, project: int) -> Rows:
        """The project's Data Manager tabs."""
        return list(self._json("GET", "/api/dm/views", parameters={"project": project}))

    def add_view(self, fields: Fields) -> None:
        """Create a Data Manager tab."""
        self._json("POST", "/api/dm/views", body=fields)

    def update_view(self, view: int, fields: Fields) -> None:
        """Change a Data Manager tab."""
        self._json("PATCH", f"/api/dm/views/{view}", body=fields)

    def _delete(self, path: str) -> None:
        """DELETE; that it is gone already (the answer to a first attempt was lost) is as good."""
        try:
            self._json("DELETE", path)
        except LabelStudioNotFound:
            return

    # Images

    def download(self, path: str, limit_bytes: int, *, elsewhere: Elsewhere | None = None) -> bytes:
        """Bytes of a path below Label Studio's address (an upload, a local file, or a task's resolver).

        Args:
            path: from the slash on.
            limit_bytes: more is an error.
            elsewhere: fetches (url, limit_bytes) when Label Studio redirects to another host, as it does to signed
                addresses of a cloud storage; without it, that is fetched here. Never with the token.

        Raises:
            LabelStudioError: also when there is more than `limit_bytes`.
        """
        return self._transport.content(path, limit_bytes, elsewhere)


def backend_fields(project: int, url: str, basic_auth: tuple[str, str] | None) -> dict[str, Any]:
    """What every change of an ML backend's row must hold: Label Studio tries the connection with just that."""
    fields: dict[str, Any] = {"url": url, "project": project}
    if basic_auth is not None:
        user, password = basic_auth
        fields |= {"auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": password}
    return fields


class _Lacking:
    """Which tasks lack a prediction of a version.

    Label Studio's filter asks whether a version's name *contains* the text, in any case of letters, so v1 is found in
    v10 (data_manager/managers.py, apply_filters). When there are such names, each task's predictions are read instead.
    """

    def __init__(self, version: str, versions: Mapping[str, int]) -> None:
        self._version = version
        names = [name for name in versions if name != version and version.casefold() in name.casefold()]
        self._mistakable = bool(names)
        self.parameters = {"fields": "all", "include": "id,data,predictions"} if names else {}
        self.filters = [] if names else [_filter("predictions_model_versions", "not_contains", [version], "List")]

    def holds(self, task: Fields) -> bool:
        if not self._mistakable:
            return True
        return all(prediction["model_version"] != self._version for prediction in task["predictions"])


def _filter(field: str, operator: str, value: object, kind: str = "Number") -> dict[str, Any]:
    return {"filter": f"filter:tasks:{field}", "operator": operator, "value": value, "type": kind}


def _import(project: int) -> str:
    return f"/api/projects/{project}/import/predictions"
