"""Label Studio's endpoints as a WSGI app. One table says which error is which status; no traceback leaves the process.

Endpoints: label-studio-facts 2-4 (`ml/api_connector.py`), `/train` for older Label Studio, `/metrics` for Prometheus.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import time
from collections.abc import Mapping
from typing import TypeVar
from wsgiref.types import WSGIApplication

import falcon
from pydantic import BaseModel, ValidationError

from lplgrad_backend import dashboard
from lplgrad_backend.backend import MARKS, LPLGradBackend
from lplgrad_backend.bodies import PredictBody, SetupBody, TrainBody, WebhookBody
from lplgrad_backend.embedded import EmbeddedWorker
from lplgrad_backend.errors import LabelConfigError, LPLGradError, RequestError, StoreError
from lplgrad_backend.labeling import named_control, parse_label_config, project_number
from lplgrad_backend.logs import note
from lplgrad_backend.metrics import Metrics
from lplgrad_backend.openapi import description
from lplgrad_backend.service import Service

log = logging.getLogger(__name__)

STATUS: Mapping[type[LPLGradError], str] = {
    RequestError: falcon.HTTP_400,
    LabelConfigError: falcon.HTTP_400,
    StoreError: falcon.HTTP_503,
    LPLGradError: falcon.HTTP_500,
}


Body = TypeVar("Body", bound=BaseModel)


def _read(request: falcon.Request, model: type[Body]) -> Body:
    try:
        body = model.model_validate(request.get_media())
        project = getattr(body, "project", None)
        note(project=project if isinstance(project, int) else None)
        return body
    except RecursionError as error:
        raise RequestError("body: nested too deeply.") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}.") from error


class Health:
    """`GET /health`, and `/` for programs: says UP and nothing else."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.media = {"status": "UP"}


class Setup:
    """`POST /setup`: called on every opening of the model page and before every prediction; cheap and idempotent."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        body = _read(request, SetupBody)
        control = named_control(body.extra_params)
        parse_label_config(body.label_config, control)
        if self._service.statuses.remember(body.project, control):
            self._service.jobs.ring(body.project)
        response.media = {"model_version": self._service.predictor.version(body.project)}


class Predict:
    """`POST /predict`: one result per task, in order."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        body = _read(request, PredictBody)
        note(version=self._service.predictor.version(body.project))
        backend = LPLGradBackend(project_id=body.project, label_config=body.label_config, service=self._service)
        tasks = [task.model_dump() for task in body.tasks]
        results = backend.predict(tasks, context=(body.params or {}).get("context"))
        response.media = {"results": results, "model_version": backend.model_version}


class Webhook:
    """`POST /webhook`: rings the bell."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        body = _read(request, WebhookBody)
        if body.action not in MARKS:
            raise RequestError(f"action: {body.action!r} is not known; known are {', '.join(MARKS)}.")
        project = project_number(body.project)
        note(project=project)
        if body.action == "PROJECT_UPDATED" and project in self._service.store.projects():
            self._service.statuses.hear(project)
        backend = LPLGradBackend(project_id=project, service=self._service)
        response.media = backend.fit(body.action, {"project": body.project})
        response.status = falcon.HTTP_201


class Train:
    """`POST /train` of older Label Studio: asks for a round."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        body = _read(request, TrainBody)
        LPLGradBackend(project_id=body.project, service=self._service).fit("START_TRAINING", {})
        response.media = {"job": f"project-{body.project}"}
        response.status = falcon.HTTP_201


class Versions:
    """`GET` and `POST /versions`: the versions of a project, or of all."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        named = request.get_param("project")
        projects = [project_number(named)] if named else self._service.store.projects()
        self._answer(projects, response)

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        self._answer([_read(request, TrainBody).project], response)

    def _answer(self, projects: list[int], response: falcon.Response) -> None:
        found = {version for project in projects for version in self._service.store.versions(project)}
        response.media = {"versions": sorted(found, key=lambda name: int(name[1:]))}


class MetricsPage:
    """`GET /metrics` in Prometheus' text form."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type, response.data = self._metrics.page()


class Description:
    """`GET /openapi.json`: what this app answers, for programs."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.media = description()


class Gate:
    """Before every request: its size and who asks. After it: how long it took."""

    def __init__(self, service: Service, metrics: Metrics, worker: EmbeddedWorker | None) -> None:
        self._auth, self._limit = service.settings.basic_auth, service.settings.body_megabytes * 2**20
        self._metrics, self._worker = metrics, worker

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        request.context.started = time.perf_counter()
        note(project=None, job=None, version=None)  # the thread's last request was about others
        if self._worker is not None:
            self._worker.ensure()
        if self._auth is not None and request.path != "/health" and not _is_let_in(request.auth, self._auth):
            raise falcon.HTTPUnauthorized(title="Basic auth needed", challenges=["Basic realm=lplgrad"])
        if (request.content_length or 0) > self._limit:
            raise falcon.HTTPContentTooLarge(title=f"The body is larger than {self._limit // 2**20} MB.")

    def process_response(
        self, request: falcon.Request, response: falcon.Response, resource: object, succeeded: bool
    ) -> None:
        seconds = time.perf_counter() - request.context.started
        endpoint = type(resource).__name__.lower() if resource is not None else "unknown"
        if "error" in request.context:
            self._metrics.refused(type(request.context.error).__name__)
        self._metrics.answered(endpoint, str(response.status)[:3], seconds)


def _is_let_in(header: str | None, expected: tuple[str, str]) -> bool:
    """Whether an Authorization header names this user and password. Takes as long for a near miss as for any other, and
    for a short password as for a long one: digests are compared, in constant time."""
    scheme, _, given = (header or "").partition(" ")
    wanted = base64.b64encode(":".join(expected).encode())
    same = hmac.compare_digest(hashlib.sha256(given.encode()).digest(), hashlib.sha256(wanted).digest())
    return same and scheme.lower() == "basic"


def _translate(request: falcon.Request, response: falcon.Response, error: LPLGradError, params: object) -> None:
    request.context.error = error
    response.status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
    response.media = {"error": str(error)}
    log.log(logging.WARNING, "%s %s: %s", request.method, request.path, error)


def _unexpected(request: falcon.Request, response: falcon.Response, error: Exception, params: object) -> None:
    request.context.error = error
    log.error("%s %s", request.method, request.path, exc_info=error)
    response.status = falcon.HTTP_500
    response.media = {"error": "An unexpected error; the backend's log has it."}


def _http_error(request: falcon.Request, response: falcon.Response, error: falcon.HTTPError, params: object) -> None:
    request.context.error = error
    response.status = error.status
    response.set_headers(error.headers or {})
    response.media = {"error": error.description or error.title or str(error.status)}


def create_app(service: Service, worker: EmbeddedWorker | None = None) -> WSGIApplication:
    """The WSGI app. With `worker`, serving keeps a worker process running."""
    metrics = Metrics(service)
    app: falcon.App[falcon.Request, falcon.Response] = falcon.App(middleware=[Gate(service, metrics, worker)])
    app.req_options.strip_url_path_trailing_slash = True
    app.add_error_handler(Exception, _unexpected)
    app.add_error_handler(falcon.HTTPError, _http_error)
    app.add_error_handler(LPLGradError, _translate)
    for path, resource in {
        **dashboard.routes(service, otherwise=Health()),
        "/health": Health(),
        "/setup": Setup(service),
        "/predict": Predict(service),
        "/webhook": Webhook(service),
        "/train": Train(service),
        "/versions": Versions(service),
        "/metrics": MetricsPage(metrics),
        "/openapi.json": Description(),
    }.items():
        app.add_route(path, resource)
    return app
