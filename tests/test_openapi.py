"""The description that the app serves: true to the app, and no request made from it, right or wrong, finds a hole."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import schemathesis
from falcon import testing
from falcon.inspect import inspect_routes
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from versions import save_version

from lplgrad_backend.api import create_app
from lplgrad_backend.jobs import memory_queue
from lplgrad_backend.openapi import description
from lplgrad_backend.service import build_service
from lplgrad_backend.settings import read_settings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10"))  # requests of each kind to each operation; `make fuzz` tries more
CHECKS = [not_a_server_error, response_schema_conformance, status_code_conformance, content_type_conformance]
OPERATIONS = [
    (path, method) for path, item in description()["paths"].items() for method in item if method != "parameters"
]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    service = build_service(read_settings({"MODEL_DIR": str(tmp_path_factory.mktemp("models"))}, None), memory_queue())
    save_version(service.store, 1, "v1")
    service.statuses.remember(1, None)
    return create_app(service)


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def described(app: Any) -> Iterator[Any]:
    """The description as it is served, and the app on a port of loopback."""
    with make_server("127.0.0.1", 0, app, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield schemathesis.openapi.from_url(f"http://127.0.0.1:{server.server_port}/openapi.json")
        finally:
            server.shutdown()
            thread.join()


def routes(app: Any) -> Iterator[tuple[str, str]]:
    for route in inspect_routes(app):
        for method in route.methods:
            if not method.internal:
                yield route.path.replace(":int", ""), method.method.lower()


def test_every_route_of_the_app_is_described_and_no_other(app: Any) -> None:
    assert sorted(routes(app)) == sorted(OPERATIONS)


def test_it_is_served(app: Any) -> None:
    assert testing.TestClient(app).simulate_get("/openapi.json").json == description()


def test_it_is_closed_where_there_is_a_password(tmp_path: Path) -> None:
    environ = {"MODEL_DIR": str(tmp_path), "BASIC_AUTH_USER": "ann", "BASIC_AUTH_PASS": "x"}
    closed = testing.TestClient(create_app(build_service(read_settings(environ, None), memory_queue())))
    for path, method in OPERATIONS:
        answer = closed.simulate_request(method.upper(), path.replace("{project}", "1").replace("{task}", "1"))
        assert answer.status_code == (200 if description()["paths"][path][method].get("security") == [] else 401)


def takes_something(path: str, method: str) -> bool:
    item = description()["paths"][path]
    return "parameters" in item or "parameters" in item[method] or "requestBody" in item[method]


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        (path, method, mode)
        for path, method in OPERATIONS
        for mode in GenerationMode
        if mode is GenerationMode.POSITIVE or takes_something(path, method)  # else there is nothing to get wrong
    ],
)
def test_what_is_made_from_it_is_answered_as_it_says(
    described: Any, path: str, method: str, mode: GenerationMode
) -> None:
    @settings(max_examples=EXAMPLES, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=described[path][method].as_strategy(generation_mode=mode))
    def tried(case: Any) -> None:
        case.validate_response(case.call(), checks=CHECKS)

    tried()
