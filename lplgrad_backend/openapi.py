"""`/openapi.json`: every path of the app, what it takes and what it answers, in OpenAPI 3.1. Made from the models that read
bodies and that the status page's JSON is written by, so that it says what they do; a test compares it with the app."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from lplgrad_backend.backend import MARKS
from lplgrad_backend.bodies import PredictBody, SetupBody, TrainBody, WebhookBody
from lplgrad_backend.dashboard.facts import ProjectFacts

Json = dict[str, Any]
BODIES: tuple[type[BaseModel], ...] = (SetupBody, PredictBody, WebhookBody, TrainBody)
ERRORS = {
    "400": "A field is missing or cannot be used; the message names it.",
    "401": "User or password is missing or wrong, where the backend has them.",
    "404": "There is no such thing.",
    "405": "The path does not take this method.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "503": "MODEL_DIR or the queue cannot be used now.",
}


def description() -> Json:
    """The whole description."""
    models: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
        *((model, "validation") for model in BODIES),
        (ProjectFacts, "serialization"),
    ]
    _, defined = models_json_schema(models, ref_template="#/components/schemas/{model}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LPLgrad backend",
            "version": "1",
            "description": "A Label Studio ML backend that decides which image to label next, and its status page.",
        },
        "security": [{"basic": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"basic": {"type": "http", "scheme": "basic"}},
            "schemas": {**defined["$defs"], "Error": _object(error={"type": "string"}), "Prediction": _prediction()},
        },
    }


def _paths() -> Json:
    version, versions = {"type": "string"}, _object(versions={"type": "array", "items": {"type": "string"}})
    project = _in_path("project", {"type": "integer", "minimum": 1, "maximum": 2**53 - 1})
    up = _object(status={"const": "UP"})
    found = {"type": "array", "items": _ref("Prediction")}
    model_version = _object(model_version=version)
    return {
        "/health": {"get": {**_get("Whether the server is up.", _json(up)), "security": []}},
        "/setup": {"post": _post("Make a project known; nothing else changes.", "SetupBody", model_version)},
        "/predict": {"post": _post(
            "One prediction per task, in order.", "PredictBody", _object(results=found, model_version=version))},
        "/webhook": {"post": _post(
            f"Ask for a look at a project. Actions: {', '.join(MARKS)}.", "WebhookBody", model_version, "201")},
        "/train": {"post": _post("Ask for a round.", "TrainBody", _object(job=version), "201")},
        "/versions": {
            "get": {**_get("The versions of a project, or of all.", _json(versions)),
                    "parameters": [{"name": "project", "in": "query", "schema": {"type": "string"}}]},
            "post": _post("The versions of a project.", "TrainBody", versions),
        },
        "/metrics": {"get": _get("For Prometheus.", _any("text/plain"))},
        "/openapi.json": {"get": _get("This description.", _json({"type": "object"}))},
        "/": {"get": _get("The status page for a person, UP for a program.", {**_any("text/html"), **_json(up)})},
        "/projects/{project}": {"get": _get("A project's page.", _any("text/html")), "parameters": [project]},
        "/projects/{project}/images/{task}": {
            "get": _get("An image that the page shows.", _any("image/png")),
            "parameters": [project, _in_path("task", {"type": "integer", "minimum": 1})],
        },
        "/api/status": {"get": _get(
            "All projects.", _json(_object(projects={"type": "array", "items": _ref("ProjectFacts")})))},
        "/api/projects/{project}": {"get": _get("A project.", _json(_ref("ProjectFacts"))), "parameters": [project]},
        "/static/{name}": {
            "get": _get("Style, script and icon.", _any("text/css", "text/javascript", "image/svg+xml")),
            "parameters": [_in_path("name", {"type": "string", "pattern": r"^[a-z.]+$"})],
        },
    }  # fmt: skip


def _get(summary: str, content: Json) -> Json:
    return {"summary": summary, "responses": {**_errors("400", "401", "404", "503"), "200": _answer(content)}}


def _post(summary: str, body: str, answer: Json, status: str = "200") -> Json:
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": _json(_ref(body))},
        "responses": {**_errors("400", "401", "413", "415", "503"), status: _answer(_json(answer))},
    }


def _errors(*statuses: str) -> Json:
    return {status: {"description": ERRORS[status], "content": _json(_ref("Error"))} for status in statuses}


def _answer(content: Json) -> Json:
    return {"description": "Done.", "content": content}


def _json(schema: Mapping[str, Any]) -> Json:
    return {"application/json": {"schema": dict(schema)}}


def _any(*kinds: str) -> Json:
    """Content of these types, of which nothing more is said."""
    return {kind: {} for kind in kinds}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**properties: object) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _in_path(name: str, schema: Json) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _prediction() -> Json:
    return _object(
        result={"type": "array", "items": {"type": "object"}},
        score={"type": "number", "minimum": 0, "maximum": 1},
        model_version={"type": "string"},
    )
