"""What is wrong with a project's connection, in sentences that tell a person what to do."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from lplgrad_backend.connection.plan import (
    TAB,
    Row,
    State,
    Wanted,
    backend_of,
    is_dotted,
    project_steps,
    view_steps,
    webhook_steps,
)
from lplgrad_backend.errors import LabelStudioError, LabelStudioNotFound

NETWORK_SETTINGS = (
    "Label Studio refuses backends on loopback and private networks. Start Label Studio with the environment variables "
    "ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false (both), then connect again"
)

UNAUTHORISED = "401 Client Error"  # how Label Studio reports it of /setup


def problems(state: State, wanted: Wanted) -> Iterator[str]:
    """What a person has to know or do about a state. Pure."""
    backend = backend_of(state, wanted)
    if backend is None:
        yield f"Project {wanted.project} has no ML backend at {wanted.url}: run `connect`."
        return
    yield from backend_problems(state, backend, wanted)
    if not is_dotted(wanted.url):
        yield (
            f"Label Studio creates no webhook for {urlsplit(wanted.url).hostname!r}, a host name without a dot, so "
            "labels are noticed only at the next sweep. Give the backend an address with a dot or an IP number "
            "(in Docker Compose, a network alias such as lplgrad.local) and connect again."
        )
    elif list(webhook_steps(state, wanted)):
        yield f"The webhook to {wanted.webhook_url} is missing, doubled or changed: run `connect`."
    if list(project_steps(state, wanted)):
        yield "The project's sampling or model version is not what its order of tasks needs: run `connect`."
    if list(view_steps(state, wanted)):
        yield f"The Data Manager tab {TAB!r} is missing or changed: run `connect`."


def explained(error: LabelStudioError, wanted: Wanted) -> LabelStudioError:
    """The same error with a reason that tells a person what to do, where the cause is known."""
    reason = _remedy(error, wanted)
    return error if reason is None else type(error)(error.request, f"{reason}. (It said: {error.reason})", error.status)


def _remedy(error: LabelStudioError, wanted: Wanted) -> str | None:
    said = error.reason
    if "reserved network address" in said:
        return NETWORK_SETTINGS
    if "health check failed" in said or "resolve hostname" in said:
        return _unreachable(wanted)
    if "authentication parameters" in said or UNAUTHORISED in said:
        return _unauthorised(wanted)
    if "look like a valid ML backend" in said:
        return _unlearnable(wanted)
    if isinstance(error, LabelStudioNotFound) and error.request == f"GET /api/projects/{wanted.project}/":
        return (
            f"there is no project {wanted.project}, or the token's user may not see it. "
            "Take the number from the address of the project's page, /projects/<number>/"
        )
    return None


def _unreachable(wanted: Wanted) -> str:
    return (
        f"Label Studio cannot reach {wanted.url}. Start the backend, and give its address as Label Studio's machine "
        "sees it (inside a container, localhost is the container itself)"
    )


def _unauthorised(wanted: Wanted) -> str:
    return (
        f"the backend at {wanted.url} asks for another user or password. "
        "Run `connect` with the BASIC_AUTH_USER and BASIC_AUTH_PASS that the backend was started with"
    )


def _unlearnable(wanted: Wanted) -> str:
    return (
        f"the backend at {wanted.url} refuses this project, most likely its label config; the backend's log says why. "
        "It needs an Image, and Choices for it with at least two choices"
    )


def backend_problems(state: State, backend: Row, wanted: Wanted) -> Iterator[str]:
    """What is wrong with a backend's row, as Label Studio shows it."""
    if backend["state"] == "DI":
        yield f"{_unreachable(wanted)}."
    elif backend["state"] == "ER":
        refusal = _unauthorised if UNAUTHORISED in str(backend["error_message"]) else _unlearnable
        yield f"Label Studio cannot use the backend: {refusal(wanted)}. (It said: {backend['error_message']})"
    first = state.backends[0]
    if first["id"] != backend["id"]:
        yield (
            f"Label Studio uses only a project's first model, which is {first['title']!r} ({first['url']}): "
            "delete that one under Settings > Model."
        )
