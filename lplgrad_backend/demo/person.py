"""What a person does in Label Studio's pages, sent as the browser sends it: a session cookie and a CSRF token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from lplgrad_backend.errors import LabelStudioError, LabelStudioUnreachable

FILES_PER_UPLOAD = 100  # DATA_UPLOAD_MAX_NUMBER_FILES: one more is answered with 500
SECONDS_TO_ANSWER = 120.0


class Person:
    """Somebody signed in to Label Studio. Not for several threads at once.

    Every method raises `LabelStudioError` when Label Studio answers with an error status and `LabelStudioUnreachable`
    when it does not answer.
    """

    def __init__(self, url: str, email: str, password: str, *, new: bool = False) -> None:
        """Signs in; with `new`, makes the account first (Label Studio lets anyone sign up unless told otherwise)."""
        self.url = url.rstrip("/")
        self._session = requests.Session()
        page = "/user/signup/" if new else "/user/login/"
        self._send("GET", page)
        form = {"email": email, "password": password, "csrfmiddlewaretoken": self._session.cookies["csrftoken"]}
        answer = self._send("POST", page, data=form, allow_redirects=False)
        if answer.status_code != 302:
            self.close()
            raise LabelStudioError(f"POST {page}", f"{email} was not let in: wrong password, or taken", 200)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def legacy_token(self) -> str:
        return str(self.call("GET", "/api/current-user/token")["token"])

    def create_personal_token(self) -> str:
        """A new personal access token; Label Studio allows one at a time and answers 409 to the second."""
        return str(self.call("POST", "/api/token/", json={})["token"])

    def create_project(self, title: str, label_config: str) -> int:
        """The new project's number. Titles have at least three characters."""
        return int(self.call("POST", "/api/projects/", json={"title": title, "label_config": label_config})["id"])

    def upload(self, project_id: int, files: Sequence[Path]) -> None:
        """Imports files as tasks, one each, in as many requests as it takes."""
        for start in range(0, len(files), FILES_PER_UPLOAD):
            with ExitStack() as opened:
                parts = {  # of several files under one field name Label Studio keeps the last
                    file.name: (file.name, opened.enter_context(file.open("rb")), "image/png")
                    for file in files[start : start + FILES_PER_UPLOAD]
                }
                self.call("POST", f"/api/projects/{project_id}/import?commit_to_project=true", files=parts)

    def import_tasks(self, project_id: int, tasks: Iterable[Mapping[str, Any]]) -> None:
        """Imports tasks as JSON: `{"data": {...}}`, with `"annotations": [{"result": [...]}]` if they have any."""
        self.call("POST", f"/api/projects/{project_id}/import", json=list(tasks))

    def next_task(self, project_id: int) -> dict[str, Any] | None:
        """What *Label All Tasks* shows next, locked for this person until submitted or skipped; None at the end."""
        request = f"/api/dm/actions?id=next_task&project={project_id}"
        answer = self._send("POST", request, json={"project": str(project_id)}, accept=(404,))
        return None if answer.status_code == 404 else dict(answer.json())

    def annotate(self, task_id: int, result: Sequence[Mapping[str, Any]], *, seconds: float = 1.0) -> int:
        """*Submit*; the annotation's number. `seconds` is the time it took, kept as `lead_time`."""
        body = {"result": list(result), "lead_time": seconds, "was_cancelled": False}
        return int(self.call("POST", f"/api/tasks/{task_id}/annotations/", json=body)["id"])

    def skip(self, task_id: int) -> int:
        """*Skip*; the number of the cancelled annotation that records it."""
        body = {"result": [], "lead_time": 1.0, "was_cancelled": True}
        return int(self.call("POST", f"/api/tasks/{task_id}/annotations/", json=body)["id"])

    def change(self, annotation_id: int, result: Sequence[Mapping[str, Any]]) -> None:
        """*Update* of an annotation."""
        self.call("PATCH", f"/api/annotations/{annotation_id}/", json={"result": list(result)})

    def delete(self, annotation_id: int) -> None:
        self.call("DELETE", f"/api/annotations/{annotation_id}/")

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Any request of the pages; its JSON answer, or None for an empty one."""
        answer = self._send(method, path, **options)
        return answer.json() if answer.content else None

    def _send(self, method: str, path: str, *, accept: tuple[int, ...] = (), **options: Any) -> requests.Response:
        headers = {"X-CSRFToken": self._session.cookies.get("csrftoken", "")}
        request = f"{method} {path}"
        try:
            answer = self._session.request(
                method, self.url + path, headers=headers, timeout=SECONDS_TO_ANSWER, **options
            )
        except requests.RequestException as error:
            raise LabelStudioUnreachable(request, type(error).__name__) from error
        if not answer.ok and answer.status_code not in accept:
            raise LabelStudioError(request, answer.text[:500], answer.status_code)
        return answer
