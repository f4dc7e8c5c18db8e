"""A Label Studio in this process: its API with tokens, on a `requests` session or a real socket, and faults on demand.

    fake = FakeLabelStudio()
    project = fake.add_project("Images", LABEL_CONFIG)["id"]
    client = LabelStudio(fake.url, fake.legacy_token(), session=fake.session())

What it does stands in fake_label_studio_rules.py.
"""

from __future__ import annotations

import io
import json
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.util import setup_testing_defaults

import requests
from fake_label_studio_checks import NETWORK_REFUSAL, Refusal, row_of, rows_of
from fake_label_studio_rules import LABEL_CONFIG, Call, Row, Rules
from requests.adapters import BaseAdapter
from urllib3 import HTTPResponse

ACCESS_SECONDS = 300.0
__all__ = ["LABEL_CONFIG", "Asked", "FakeLabelStudio", "Fault", "WSGIAdapter"]

PAGE = 30  # Label Studio's page size when none is asked for
TOO_MANY_UPLOADS = 999  # in a page, with SQLite


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD /path" matches `where`.

    `what`: a status to answer with; "hang", "cut" (the connection breaks before anything is done), "lost" (everything
    is done, then the connection breaks) or "short" (predictions are imported but for the last one).
    """

    where: str
    what: int | str
    times: int = 1
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    authorization: str | None


class Broken(Exception):
    """The caller gets no answer: "hang" or "cut"."""


def call_over_http(method: str, url: str, body: object, headers: Mapping[str, str]) -> tuple[int, Any]:
    """How the fake reaches backends unless told otherwise. requests' own errors are OSErrors."""
    answer = requests.request(method, url, json=body, headers=dict(headers), timeout=3)
    with suppress(ValueError):
        return answer.status_code, answer.json()
    return answer.status_code, {}


class FakeLabelStudio(Rules):
    """See the module. `clock`: seconds, for the age of access tokens. For the other arguments see `Rules`."""

    def __init__(
        self,
        call: Call = call_over_http,
        refuses: str = "nothing",
        *,
        url: str = "http://label-studio.test",
        clock: Callable[[], float] = time.monotonic,
        seed: int = 0,
    ) -> None:
        super().__init__(call, refuses, seed)
        self.url, self.clock = url, clock
        self.legacy_tokens_allowed = True
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.redirects: dict[str, str] = {}  # path -> address, as a task's resolver answers for a cloud storage
        self._users: dict[str, str] = {}  # legacy token or personal access token -> user
        self._access: dict[str, tuple[str, float]] = {}  # access token -> user, end
        self._closing = threading.Event()

    # Tokens

    def legacy_token(self, user: str = "me@example.com") -> str:
        """The same at each call."""
        token = user.encode().hex().ljust(40, "0")[-40:]
        self._users[token] = user
        return token

    def personal_token(self, user: str = "me@example.com") -> str:
        """A JWT that must be exchanged."""
        token = f"eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.{user.encode().hex()}"
        self._users[token] = user
        return token

    def _user(self, authorization: str | None) -> str:
        kind, _, token = (authorization or "").partition(" ")
        if kind == "Bearer" and token in self._access:
            user, end = self._access[token]
            if self.clock() < end:
                return user
        if kind == "Token" and token in self._users and "." not in token:
            if self.legacy_tokens_allowed:
                return self._users[token]
            reason = "legacy token authentication has been disabled for this organization"
            raise Refusal(401, f"Authentication token no longer valid: {reason}")
        raise Refusal(401, "Invalid token." if kind == "Token" else "Authentication credentials were not provided.")

    def _exchange(self, asked: Asked) -> Row:
        user = self._users.get(asked.body.get("refresh", ""))
        if user is None:
            raise Refusal(401, "Token is invalid")
        access = f"access-{len(self._access)}"
        self._access[access] = user, self.clock() + ACCESS_SECONDS
        return {"access": access}

    # Requests

    def answer(self, asked: Asked) -> tuple[int, Row | list[Row] | bytes, list[tuple[str, str]]]:
        """Status, body and further headers."""
        fault = self._fault(asked)
        if isinstance(fault.what, int):
            return fault.what, {"detail": "on demand"}, list(fault.headers)
        if fault.what in ("hang", "cut"):
            raise Broken(fault.what)
        if fault.what == "short":
            asked.body.pop()
        try:
            status, body = self._serve(asked)
        except Refusal as refusal:
            return refusal.status, refusal.body, []
        if fault.what == "lost":
            raise Broken("cut")
        return status, body, []

    def _fault(self, asked: Asked) -> Fault:
        with self.lock:
            self.asked.append(asked)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.where, f"{asked.method} {asked.path}"):
                    fault.times -= 1
                    return fault
        return Fault("", "")

    def _serve(self, asked: Asked) -> tuple[int, Any]:
        path = asked.path.rstrip("/")
        if path == "/api/token/refresh":
            return 200, self._exchange(asked)
        if path == "/health":
            return 200, {"status": "UP"}
        user = self._user(asked.authorization)
        if asked.method == "GET" and path in self.uploads:
            return 200, self.uploads[path]
        if asked.method == "GET" and path in self.redirects:
            return 303, {"Location": self.redirects[path]}
        for method, pattern, status, handle in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == asked.method:
                return status, handle(self, asked, user, *(int(part) for part in found.groups()))
        raise Refusal(404, "Not found.")

    def page_of_tasks(self, asked: Asked) -> Row:
        """`GET /api/tasks` with the Data Manager filters that are known here."""
        project = int(asked.query["project"])
        row_of(self.projects, project, "Project")
        query = json.loads(asked.query.get("query", "{}"))
        labelled = self.labelled()
        tasks = [task for task in rows_of(self.tasks) if task["project"] == project]
        for item in query.get("filters", {}).get("items", []):
            keeps = self._filter(item, labelled)
            tasks = [task for task in tasks if keeps(task)]
        tasks.sort(key=lambda task: task["id"], reverse=query.get("ordering") == ["-tasks:id"])
        scores = self.mean_scores(project)
        if query.get("ordering") == ["tasks:predictions_score"]:  # nulls last
            tasks.sort(key=lambda task: scores.get(task["id"], math.inf))
        size, page = int(asked.query.get("page_size", PAGE)), int(asked.query.get("page", 1))
        if page > max(1, math.ceil(len(tasks) / size)):
            raise Refusal(404, "Invalid page.")
        shown = tasks[(page - 1) * size : page * size]
        if sum("/data/upload/" in str(task["data"]) for task in shown) >= TOO_MANY_UPLOADS:
            raise Refusal(500, "Expression tree is too large (maximum depth 1000)")
        fields = asked.query.get("include", "id,data,project").split(",")
        if asked.query.get("fields") == "all":
            shown = [self.task(task["id"]) | {"predictions_score": scores.get(task["id"])} for task in shown]
        rows = [{key: task[key] for key in fields if key in task} for task in shown]
        return {"total": len(tasks), "tasks": rows}

    def _filter(self, item: Row, labelled: set[int]) -> Callable[[Row], bool]:
        field, operator, value = item["filter"].removeprefix("filter:tasks:"), item["operator"], item["value"]
        if (field, operator, value) == ("total_annotations", "equal", 0):
            return lambda task: task["id"] not in labelled
        if (field, operator) == ("id", "greater"):
            return lambda task: bool(task["id"] > value)
        if (field, operator, item["type"]) == ("id", "in_list", "List"):  # as Number it would be one, and a 500
            return lambda task: task["id"] in value
        if (field, operator) == ("predictions_model_versions", "not_contains"):
            parts = [str(part).casefold() for part in value]  # part of a name is enough, in any case of letters
            rows = rows_of(self.predictions)
            have = {row["task"] for row in rows if any(part in row["model_version"].casefold() for part in parts)}
            return lambda task: task["id"] not in have
        raise Refusal(400, f"the fake knows no filter {item}")

    # WSGI

    def __call__(self, environ: Row, start_response: Callable[..., object]) -> Iterable[bytes]:
        query = {key: values[-1] for key, values in parse_qs(environ["QUERY_STRING"]).items()}
        content = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        asked = Asked(
            environ["REQUEST_METHOD"],
            environ["PATH_INFO"],
            query,
            json.loads(content) if content else {},
            environ.get("HTTP_AUTHORIZATION"),
        )
        status, body, headers = self.answer(asked)
        redirect = body.get("Location") if isinstance(body, dict) and status == 303 else None
        if redirect:
            headers.append(("Location", redirect))
        data = body if isinstance(body, bytes) else b"" if status == 204 else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        start_response(f"{status} -", [("Content-Type", kind), ("Content-Length", str(len(data))), *headers])
        return [data]

    def session(self) -> requests.Session:
        """A session whose requests to `url` come here without a socket."""
        session = requests.Session()
        session.mount(self.url, WSGIAdapter(self))
        return session

    @contextmanager
    def serving(self, host: str = "127.0.0.1") -> Iterator[str]:
        """Listen on a free port of loopback, for other processes; gives the address, which becomes `url`."""
        with make_server(host, 0, self._breaking, _Server, _Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
            thread.start()
            self.url = f"http://{host}:{server.server_port}"
            try:
                yield self.url
            finally:
                self._closing.set()
                server.shutdown()
                thread.join()

    def _breaking(self, environ: Row, start_response: Callable[..., object]) -> Iterable[bytes]:
        try:
            return self(environ, start_response)
        except Broken as broken:
            if str(broken) == "hang":
                self._closing.wait()
            environ["fake.connection"].shutdown(socket.SHUT_RDWR)
            start_response("500 -", [])
            return []


def _next_task(fake: FakeLabelStudio, asked: Asked, user: str) -> Row:
    if asked.query.get("id") != "next_task":
        raise Refusal(400, "the fake knows the action next_task only")
    return fake.next_task(int(asked.query["project"]), user)


def _import_tasks(fake: FakeLabelStudio, asked: Asked, user: str, project: int) -> Row:
    return {"task_count": len(fake.import_tasks(project, asked.body))}


def _add_view(fake: FakeLabelStudio, asked: Asked, user: str) -> Row:
    number = next(fake.numbers)
    fake.views[number] = {"id": number, "order": len(fake.views), **asked.body}
    return fake.views[number]


def _update_webhook(fake: FakeLabelStudio, asked: Asked, user: str, number: int) -> Row:
    row = row_of(fake.webhooks, number, "Webhook")
    if "url" in asked.body and fake.refuses != "nothing":  # webhooks/serializers.py looks at the address each time
        raise Refusal(403, NETWORK_REFUSAL)
    row.update(asked.body)
    return fake.webhooks[number]


def _update_view(fake: FakeLabelStudio, asked: Asked, user: str, number: int) -> Row:
    row_of(fake.views, number, "View").update(asked.body)
    return fake.views[number]


def _of_project(rows: Iterable[Row], asked: Asked) -> list[Row]:
    return [row for row in rows if row["project"] == int(asked.query["project"])]


ROUTES: tuple[tuple[str, str, int, Callable[..., Any]], ...] = (
    ("GET", "/api/version", 200, lambda fake, asked, user: {"release": "1.23.2"}),
    ("GET", "/api/current-user/whoami", 200, lambda fake, asked, user: {"email": user}),
    ("POST", "/api/projects", 201, lambda fake, asked, user: fake.add_project(**asked.body)),
    ("GET", r"/api/projects/(\d+)", 200, lambda fake, asked, user, number: fake.project(number)),
    ("PATCH", r"/api/projects/(\d+)", 200, lambda fake, asked, user, n: fake.update_project(n, asked.body)),
    ("POST", r"/api/projects/(\d+)/import", 201, _import_tasks),
    ("GET", r"/api/projects/(\d+)/export", 200, lambda fake, asked, user, number: fake.export(number)),
    ("POST", r"/api/projects/(\d+)/import/predictions", 201,
     lambda fake, asked, user, number: {"created": fake.import_predictions(number, asked.body)}),
    ("GET", r"/api/projects/(\d+)/model-versions", 200, lambda fake, asked, user, n: fake.model_versions(n)),
    ("DELETE", r"/api/projects/(\d+)/model-versions", 200,
     lambda fake, asked, user, n: {"deleted": fake.delete_model_version(n, asked.body["model_version"])}),
    ("GET", "/api/tasks", 200, lambda fake, asked, user: fake.page_of_tasks(asked)),
    ("GET", r"/api/tasks/(\d+)", 200, lambda fake, asked, user, number: fake.task(number)),
    ("DELETE", r"/api/tasks/(\d+)", 204, lambda fake, asked, user, number: fake.delete_task(number)),
    ("POST", r"/api/tasks/(\d+)/annotations", 201, lambda fake, asked, user, n: fake.annotate(n, asked.body, user)),
    ("PATCH", r"/api/annotations/(\d+)", 200, lambda fake, asked, user, n: fake.change_annotation(n, asked.body)),
    ("DELETE", r"/api/annotations/(\d+)", 204, lambda fake, asked, user, n: fake.delete_annotation(n)),
    ("POST", "/api/dm/actions", 200, _next_task),
    ("GET", "/api/dm/views", 200, lambda fake, asked, user: _of_project(fake.views.values(), asked)),
    ("POST", "/api/dm/views", 201, _add_view),
    ("PATCH", r"/api/dm/views/(\d+)", 200, _update_view),
    ("GET", "/api/ml", 200, lambda fake, asked, user: fake.ml_backends(int(asked.query["project"]))),
    ("POST", "/api/ml", 201, lambda fake, asked, user: fake.add_ml_backend(asked.body)),
    ("PATCH", r"/api/ml/(\d+)", 200, lambda fake, asked, user, n: fake.update_ml_backend(n, asked.body)),
    ("DELETE", r"/api/ml/(\d+)", 204, lambda fake, asked, user, number: fake.delete_ml_backend(number)),
    ("POST", r"/api/ml/(\d+)/train", 200, lambda fake, asked, user, number: fake.start_training(number)),
    ("GET", "/api/webhooks", 200, lambda fake, asked, user: fake.webhooks_of(int(asked.query["project"]))),
    ("POST", "/api/webhooks", 201, lambda fake, asked, user: fake.add_webhook(asked.body)),
    ("PATCH", r"/api/webhooks/(\d+)", 200, _update_webhook),
    ("DELETE", r"/api/webhooks/(\d+)", 204, lambda fake, asked, user, number: fake.webhooks.pop(number, None)),
)  # fmt: skip


class WSGIAdapter(BaseAdapter):
    """Brings a session's requests to a WSGI application in this process."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        super().__init__()
        self._application = application

    def send(self, request: requests.PreparedRequest, *args: object, **kwargs: object) -> requests.Response:
        url, body = urlsplit(str(request.url)), request.body or b""
        body = body.encode() if isinstance(body, str) else body
        environ: Row = {
            "REQUEST_METHOD": request.method, "PATH_INFO": url.path, "QUERY_STRING": url.query,
            "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body),
        }  # fmt: skip
        environ |= {"HTTP_" + name.upper().replace("-", "_"): value for name, value in request.headers.items()}
        setup_testing_defaults(environ)
        answer = requests.Response()
        answer.url, answer.request = str(request.url), request

        def start_response(status: str, headers: list[tuple[str, str]]) -> None:
            answer.status_code = int(status.split()[0])
            answer.headers.update(headers)

        try:
            content = b"".join(self._application(environ, start_response))
        except Broken as broken:
            kind = requests.ReadTimeout if str(broken) == "hang" else requests.ConnectionError
            raise kind(str(broken), request=request) from broken
        answer.raw = HTTPResponse(io.BytesIO(content), preload_content=False)
        return answer

    def close(self) -> None:
        """Nothing is open."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(WSGIRequestHandler):
    def get_environ(self) -> Row:
        return super().get_environ() | {"fake.connection": self.connection}

    def log_message(self, format: str, *args: object) -> None:
        """Tests say what went wrong; a log of requests does not."""
