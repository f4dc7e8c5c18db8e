"""What a project's connection lacks, decided purely: what holds, what should hold, and the steps between."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from lplgrad_backend.labelstudio import SELDOM_READ, LabelStudio, backend_fields, tab_fields
from lplgrad_backend.publication import SAMPLING

TAB = "Most uncertain"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What should hold.

    Attributes:
        project: its number.
        url: the backend's address as Label Studio reaches it, without a slash at the end.
        title: name of the backend if it has to be created; a person's own name for it is kept.
        basic_auth: user and password that the backend asks for, or None.
        extra_params: for the backend, such as the name of the control to learn; None leaves what is there.
        current_version: the newest published version, which the project must serve by; None leaves what is there.
    """

    project: int
    url: str
    title: str
    basic_auth: tuple[str, str] | None = field(repr=False)
    extra_params: object
    current_version: str | None

    @property
    def webhook_url(self) -> str:
        return f"{self.url}/webhook"

    @property
    def headers(self) -> dict[str, str]:
        """What each webhook request must carry: Label Studio's basic auth does not cover webhooks."""
        if self.basic_auth is None:
            return {}
        return {"Authorization": "Basic " + base64.b64encode(":".join(self.basic_auth).encode()).decode()}


@dataclass(frozen=True)
class State:
    """What holds, as Label Studio lists it."""

    project: Row
    backends: tuple[Row, ...]
    webhooks: tuple[Row, ...]
    views: tuple[Row, ...]
    versions: Mapping[str, int]  # version -> number of its predictions


@dataclass(frozen=True)
class Step:
    """One change: what it does, in words, and the call that does it."""

    says: str
    act: Callable[[LabelStudio], object] = field(repr=False)  # may hold a password


def plan(state: State, wanted: Wanted) -> list[Step]:
    """What to do next, in this order; empty when there is nothing left to do. Pure."""
    return [
        *_backend_steps(state, wanted),
        *webhook_steps(state, wanted),
        *project_steps(state, wanted),
        *view_steps(state, wanted),
    ]


# The ML backend


def backend_of(state: State, wanted: Wanted) -> Row | None:
    """The row of this backend: the one with its address, connected if there are several."""
    ours = [row for row in state.backends if _same(row["url"], wanted.url)]
    return min(ours, key=lambda row: (row["state"] != "CO", row["id"]), default=None)


def _moved(state: State, wanted: Wanted) -> Row | None:
    """A row that this backend left behind under another address, where nothing answers any more."""
    return next((row for row in state.backends if row["title"] == wanted.title and row["state"] == "DI"), None)


def _backend_steps(state: State, wanted: Wanted) -> Iterator[Step]:
    ours = backend_of(state, wanted)
    row = ours or _moved(state, wanted)
    if row is None:
        fields = _backend_fields(wanted) | {"title": wanted.title}
        yield Step(f"Connected the backend {wanted.url}.", partial(LabelStudio.add_ml_backend, fields=fields))
        return
    if ours is None or not _is_sound(row, wanted):
        change = partial(LabelStudio.update_ml_backend, backend=row["id"], fields=_backend_fields(wanted))
        yield Step(f"Repaired the connection to {wanted.url}.", change)
    for other in state.backends:
        if other is not row and _same(other["url"], wanted.url):
            yield Step(
                f"Removed a second connection to {wanted.url}.",
                partial(LabelStudio.delete_ml_backend, backend=other["id"]),
            )


def _backend_fields(wanted: Wanted) -> dict[str, Any]:
    fields = backend_fields(wanted.project, wanted.url, wanted.basic_auth)
    return fields if wanted.extra_params is None else fields | {"extra_params": wanted.extra_params}


def _is_sound(row: Row, wanted: Wanted) -> bool:
    """Whether a backend's row works. Its password is not shown, but only with the right one is it connected."""
    if wanted.extra_params is not None and row["extra_params"] != wanted.extra_params:
        return False
    if wanted.basic_auth is not None and row["basic_auth_user"] != wanted.basic_auth[0]:
        return False
    return bool(row["state"] == "CO")


# Its webhook


def webhook_steps(state: State, wanted: Wanted) -> Iterator[Step]:
    ours = sorted(
        (row for row in state.webhooks if _same(row["url"], wanted.webhook_url)),
        key=lambda row: (row["url"] != wanted.webhook_url, row["id"]),
    )
    fields = {
        "url": wanted.webhook_url,
        "project": wanted.project,
        "send_payload": True,
        "send_for_all_actions": True,
        "is_active": True,
    }
    if ours:
        headers = {**ours[0]["headers"], **wanted.headers}
        changes = {key: value for key, value in (fields | {"headers": headers}).items() if ours[0][key] != value}
        if changes:
            change = partial(LabelStudio.update_webhook, webhook=ours[0]["id"], fields=changes | {"url": fields["url"]})
            yield Step(f"Repaired the webhook ({', '.join(sorted(changes))}).", change)
    elif backend_of(state, wanted) is not None and is_dotted(wanted.url):
        yield Step(
            f"Created the webhook {wanted.webhook_url}.",
            partial(LabelStudio.add_webhook, fields=fields | {"headers": wanted.headers}),
        )
    for ghost in [*ours[1:], *_left_behind(state, wanted)]:
        yield Step(
            f"Removed a needless webhook to {ghost['url']}.", partial(LabelStudio.delete_webhook, webhook=ghost["id"])
        )


def _left_behind(state: State, wanted: Wanted) -> list[Row]:
    """Webhooks of the address from which this backend moved away."""
    moved = _moved(state, wanted) if backend_of(state, wanted) is None else None
    if moved is None:
        return []
    return [row for row in state.webhooks if _same(row["url"], moved["url"].rstrip("/") + "/webhook")]


# The order of tasks


def project_steps(state: State, wanted: Wanted) -> Iterator[Step]:
    fields = {"sampling": SAMPLING}
    if wanted.current_version is not None and state.versions.get(wanted.current_version):
        fields["model_version"] = wanted.current_version
    changes = {key: value for key, value in fields.items() if state.project.get(key) != value}
    if changes:
        said = " and ".join(f"{key} = {value!r}" for key, value in changes.items())
        yield Step(f"Set the project's {said}.", lambda client: client.update_project(wanted.project, **changes))


def view_steps(state: State, wanted: Wanted) -> Iterator[Step]:
    tab = next((row for row in state.views if row["data"].get("title") == TAB), None)
    if tab is None:
        if not state.views:  # else ours would be the only tab, and labelled tasks could not be seen
            default = _view(wanted, tab_fields("Default", ALL, hidden=()))
            yield Step("Created the tab 'Default'.", partial(LabelStudio.add_view, fields=default))
        yield Step(f"Created the tab {TAB!r}.", partial(LabelStudio.add_view, fields=_view(wanted, VIEW)))
        return
    repaired = tab["data"] | {key: VIEW[key] for key in ("ordering", "filters")}  # columns are a person's own choice
    if repaired != tab["data"]:
        change = partial(LabelStudio.update_view, view=tab["id"], fields=_view(wanted, repaired))
        yield Step(f"Repaired the tab {TAB!r}.", change)


def _view(wanted: Wanted, data: Row) -> dict[str, Any]:
    return {"project": wanted.project, "data": data}


ALL: dict[str, Any] = {"conjunction": "and", "items": []}
UNLABELLED = {"filter": "filter:tasks:total_annotations", "operator": "equal", "type": "Number", "value": 0}
VIEW = tab_fields(
    TAB,
    {"conjunction": "and", "items": [UNLABELLED]},
    ["tasks:predictions_score"],
    (*SELDOM_READ, "tasks:annotations_results"),
)


# Addresses


def _same(one: str, other: str) -> bool:
    return one.rstrip("/") == other.rstrip("/")


def is_dotted(url: str) -> bool:
    """Whether Label Studio takes this host in a webhook's address (Django's URLValidator)."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or "." in host.strip("."):
        return True
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False
