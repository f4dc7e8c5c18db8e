"""The pages' endpoints. All of them only read; what they send may load nothing but what this server serves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import falcon

from lplgrad_backend.dashboard.facts import Facts
from lplgrad_backend.dashboard.pages import overview_page, project_page
from lplgrad_backend.history import read_history
from lplgrad_backend.image_decoding import encode_png
from lplgrad_backend.labeling import project_number
from lplgrad_backend.logs import note
from lplgrad_backend.service import Service
from lplgrad_backend.sources import open_images

STATIC = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}


class Front:
    """`GET /`: the status page for a person, what `otherwise` says for everyone else."""

    def __init__(self, facts: Facts, otherwise: Any) -> None:
        self._facts, self._otherwise = facts, otherwise

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        if "text/html" in request.accept:
            page = overview_page(self._facts.all(), _root(request), worker=self._facts.worker_is_at_work())
            _send(request, response, page, "text/html; charset=utf-8")
        else:
            self._otherwise.on_get(request, response)
        response.set_header("Vary", "Accept")


class ProjectPage:
    """`GET /projects/ID`."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def on_get(self, request: falcon.Request, response: falcon.Response, project: str) -> None:
        page = project_page(self._facts.of(_known(self._facts, project)), _root(request))
        _send(request, response, page, "text/html; charset=utf-8")


class StatusJson:
    """`GET /api/status`: all projects."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        projects = [facts.model_dump(mode="json") for facts in self._facts.all()]
        found = {"worker_at_work": self._facts.worker_is_at_work(), "projects": projects}
        _send(request, response, json.dumps(found), "application/json")


class ProjectJson:
    """`GET /api/projects/ID`."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def on_get(self, request: falcon.Request, response: falcon.Response, project: str) -> None:
        facts = self._facts.of(_known(self._facts, project))
        _send(request, response, facts.model_dump_json(), "application/json")


class Thumbnail:
    """`GET /projects/ID/images/TASK`: an image that the page shows, from the cache alone; it is never fetched for this."""

    def __init__(self, facts: Facts, service: Service) -> None:
        self._facts, self._store = facts, service.store
        self._images = open_images(service.settings, service.label_studio)

    def on_get(self, request: falcon.Request, response: falcon.Response, project: str, task: int) -> None:
        history = read_history(self._store, _known(self._facts, project))
        uri = history.addresses.get(task)
        kept = None if uri is None or not history.side else self._images.kept(uri, history.side, task)
        if kept is None:
            raise falcon.HTTPNotFound(title="No such image is kept.")
        pixels, size = kept
        response.set_headers(HEADERS | {"Cache-Control": "private, max-age=3600"})
        response.content_type, response.data = "image/png", encode_png(pixels, size)


class Static:
    """`GET /static/NAME`: style, script and icon."""

    def __init__(self) -> None:
        folder = Path(__file__).parent
        self._files = {name: (folder / name).read_text() for name in STATIC}

    def on_get(self, request: falcon.Request, response: falcon.Response, name: str) -> None:
        if name not in self._files:
            raise falcon.HTTPNotFound(title="No such file.")
        _send(request, response, self._files[name], STATIC[name])


def _known(facts: Facts, text: str) -> int:
    project = project_number(text)
    note(project=project)
    if not facts.known(project):
        raise falcon.HTTPNotFound(
            title=f"Project {project} is not known here; it is once Label Studio has called /setup."
        )
    return project


def _root(request: falcon.Request) -> str:
    """From the page's address up to the backend's own; the proxy's path before it is not known here."""
    return "../" * (str(request.env.get("PATH_INFO", "/")).count("/") - 1)


def _send(request: falcon.Request, response: falcon.Response, text: str, kind: str) -> None:
    content = text.encode("utf-8", "replace")
    response.set_headers(HEADERS)
    tag = hashlib.sha256(content).hexdigest()[:32]
    response.etag = tag
    if tag in [str(known) for known in request.if_none_match or []]:
        response.status = falcon.HTTP_304
    else:
        response.content_type, response.data = kind, content
