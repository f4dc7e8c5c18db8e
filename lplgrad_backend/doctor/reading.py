"""Everything that the doctor looks at, read before anything is decided. A part that cannot be read is its error."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lplgrad_backend.connection import read_state
from lplgrad_backend.connection.plan import Row, State, is_dotted
from lplgrad_backend.errors import ImageError, LabelConfigError, LPLGradError
from lplgrad_backend.images import ImageLimits, Images
from lplgrad_backend.jobs import Jobs, open_queue
from lplgrad_backend.labeling import Labeling, image_uri, parse_label_config
from lplgrad_backend.labelstudio import LabelStudio, backend_fields
from lplgrad_backend.labelstudio.ringing import Rung, ring
from lplgrad_backend.preparation import device_of
from lplgrad_backend.served import served
from lplgrad_backend.settings import Settings
from lplgrad_backend.status import ProjectStatus, StatusFolder
from lplgrad_backend.store import Manifest, PoolScores, Store
from lplgrad_backend.worker import worker_is_at_work

Read = TypeVar("Read")
ARRIVAL_SECONDS = 3.0  # more than Label Studio waits for an answer
SIDE = 32  # of the images that are looked at; any will do


@dataclass(frozen=True)
class MachineReading:
    """This machine."""

    settings: Settings
    waiting: list[int] | LPLGradError  # projects in the queue
    worker: bool | LPLGradError  # whether one works
    free_bytes: int
    device: str | LPLGradError


@dataclass(frozen=True)
class SiteReading:
    """Label Studio. `version` and `user` are None when it does not answer at all."""

    url: str
    health: LPLGradError | None
    user: Mapping[str, Any] | LPLGradError | None
    version: str | None


@dataclass(frozen=True)
class ImageReading:
    """One image of a storage kind, and why it cannot be used."""

    task: int
    error: ImageError | None


@dataclass(frozen=True)
class Scored:
    """Unlabelled tasks with the score that Label Studio orders them by, and which of them it puts first."""

    scores: Mapping[int, float | None]
    first: int | None


@dataclass(frozen=True)
class Arrival:
    """A webhook that Label Studio itself was made to send: after how long this backend had it; None: it never had."""

    seconds: float | None


@dataclass(frozen=True)
class ProjectReading:
    """A project: what Label Studio says, and what is on this disk.

    Attributes:
        state: what is connected, or why that cannot be told.
        url: address of this backend as Label Studio reaches it; empty if nothing is connected and none is set.
        network: whether Label Studio takes webhooks to it (None), its refusal, or "" when that was not asked.
        rung: how the webhook was answered from here; None without a webhook.
        arrival: of Label Studio's own; None where it was not made to send one, or its refusal.
        labeling: of the label config.
        images: storage kind -> an image of that kind.
        served: the version that people should be served (served.py): the newest, unless held back or rolled back.
        published: its scores.
    """

    project: int
    state: State | LPLGradError
    url: str
    network: LPLGradError | str | None
    rung: Rung | None
    arrival: Arrival | LPLGradError | None
    labeling: Labeling | LabelConfigError | None
    images: Mapping[str, ImageReading]
    served: Manifest | None
    published: PoolScores | None
    scored: Scored | None
    status: ProjectStatus


def read_machine(settings: Settings) -> MachineReading:
    """Settings, queue, worker, disk and device. Makes MODEL_DIR if it is not there."""
    folder = settings.model_dir
    waiting = _or_error(lambda: Jobs(open_queue(settings.queue_url, folder), lambda project: None).waiting())
    worker = _or_error(lambda: worker_is_at_work(settings))
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    device = _or_error(lambda: str(device_of(settings)))
    return MachineReading(settings, waiting, worker, shutil.disk_usage(existing).free, device)


def read_site(client: LabelStudio) -> SiteReading:
    """Whether Label Studio answers, and whom the token belongs to."""
    health = _or_error(client.health)
    if isinstance(health, LPLGradError):
        return SiteReading(client.url, health, None, None)
    user = _or_error(client.user)
    version = None if isinstance(user, LPLGradError) else _or_error(client.version)
    return SiteReading(client.url, None, user, version if isinstance(version, str) else None)


def read_project(settings: Settings, client: LabelStudio, project: int, url: str | None) -> ProjectReading:
    """A project. Changes nothing but for one webhook, which is not active, is made and removed when there is none."""
    store, statuses = Store(settings.model_dir), StatusFolder(settings.model_dir)
    shown = served(store, project)
    state = _or_error(lambda: read_state(client, project))
    known = state if isinstance(state, State) else None
    address = (url or (_connected(known, settings) if known else "")).rstrip("/")
    labeling = _labeling(known.project, statuses.control(project)) if known else None
    rung = _rung(known, project, address) if known and address else None
    scored, images = None, dict[str, ImageReading]()
    if known is not None:
        tasks = _or_error(lambda: list(client.unlabelled_scores(project)))
        if isinstance(tasks, list):
            first = _or_error(lambda: client.first_in_order(project))
            scored = Scored({task: score for task, _, score in tasks}, first if isinstance(first, int) else None)
            images = _images(settings, client, labeling, tasks)
    return ProjectReading(
        project=project,
        state=state,
        url=address,
        network=_network(settings, client, project, known, address) if known and address else "",
        rung=rung,
        arrival=_arrival(client, statuses, known, project, address) if known and rung and rung.heard else None,
        labeling=labeling,
        images=images,
        served=shown,
        published=store.scores(project, shown.version) if shown else None,
        scored=scored,
        status=statuses.read(project),
    )


def _connected(state: State, settings: Settings) -> str:
    """The address under which this backend is connected, most likely; else the one that is set."""
    if settings.backend_url is not None:
        return str(settings.backend_url)
    rows = sorted(state.backends, key=lambda row: (row["title"] != "LPLgrad", row["id"]))
    return str(rows[0]["url"]) if rows else ""


def webhooks_to(state: State, url: str) -> list[Row]:
    """The webhooks of this backend."""
    return [row for row in state.webhooks if row["url"].rstrip("/") == f"{url}/webhook"]


def _network(
    settings: Settings, client: LabelStudio, project: int, state: State, url: str
) -> LPLGradError | str | None:
    """Label Studio looks at an address when a webhook is saved, so saving what is there asks it (facts, 1)."""
    if not is_dotted(url):
        return ""
    backend = next((row for row in state.backends if row["url"].rstrip("/") == url), None)
    ours = webhooks_to(state, url)

    def ask() -> None:
        if ours:
            client.update_webhook(ours[0]["id"], {"url": ours[0]["url"]})
        else:
            hook = f"{url}/webhook"
            client.add_webhook({"project": project, "url": hook, "is_active": False})
            for row in client.webhooks(project):
                if row["url"] == hook and not row["is_active"]:
                    client.delete_webhook(row["id"])
        if backend is not None and backend["state"] == "CO" and _may_be_saved(backend, settings):
            client.update_ml_backend(backend["id"], backend_fields(project, backend["url"], settings.basic_auth))

    answer = _or_error(ask)
    return answer if isinstance(answer, LPLGradError) else None


def _may_be_saved(backend: Row, settings: Settings) -> bool:
    """Label Studio tries the connection with what is saved: a row with a password needs it, one without must get none."""
    user = settings.basic_auth[0] if settings.basic_auth else None
    return bool((backend.get("basic_auth_user") if backend.get("auth_method") == "BASIC_AUTH" else None) == user)


def _arrival(
    client: LabelStudio, statuses: StatusFolder, state: State, project: int, url: str
) -> Arrival | LPLGradError | None:
    """Saving a project with nothing changed makes Label Studio send its webhooks (facts, 3); the backend notes it."""
    if not any(row["is_active"] for row in webhooks_to(state, url)):
        return None
    before, started = statuses.heard(project), time.perf_counter()
    answer = _or_error(lambda: client.update_project(project))
    if isinstance(answer, LPLGradError):
        return answer
    while time.perf_counter() - started < ARRIVAL_SECONDS:
        if statuses.heard(project) != before:
            return Arrival(time.perf_counter() - started)
        time.sleep(0.05)
    return Arrival(None)


def _rung(state: State, project: int, url: str) -> Rung | None:
    ours = webhooks_to(state, url)
    if not ours:
        return None
    return ring(ours[0]["url"], ours[0].get("headers") or {}, project, str(state.project.get("label_config") or ""))


def _labeling(row: Row, control: str | None) -> Labeling | LabelConfigError:
    try:
        return parse_label_config(str(row.get("label_config") or ""), control)
    except LabelConfigError as error:
        return error


def _images(
    settings: Settings,
    client: LabelStudio,
    labeling: object,
    tasks: Iterable[tuple[int, dict[str, Any], float | None]],
) -> dict[str, ImageReading]:
    """The first image of each storage kind, fetched anew: what is in the cache proves nothing."""
    if not isinstance(labeling, Labeling):
        return {}
    first: dict[str, tuple[int, str | ImageError]] = {}
    for task, data, _ in tasks:
        try:
            uri = image_uri(labeling, {"id": task, "data": data})
            first.setdefault(storage_kind(uri), (task, uri))
        except ImageError as error:
            first.setdefault("no image", (task, error))
    with tempfile.TemporaryDirectory(prefix="lplgrad-doctor-") as folder:
        images = Images(Path(folder), client, ImageLimits(allow_private=settings.allow_private_images))
        return {kind: ImageReading(task, _fetched(images, task, uri)) for kind, (task, uri) in first.items()}


def _fetched(images: Images, task: int, uri: str | ImageError) -> ImageError | None:
    if isinstance(uri, ImageError):
        return uri
    try:
        images.load(uri, SIDE, task)
    except ImageError as error:
        return error
    return None


def storage_kind(uri: str) -> str:
    """Where an image is kept: "upload", "local files", or the scheme of its address."""
    if "/data/upload/" in uri:
        return "upload"
    if "/data/local-files/" in uri:
        return "local files"
    scheme = re.match(r"([a-z][a-z0-9+.-]*):", uri.strip())
    return scheme.group(1) if scheme else "other"


def _or_error(read: Callable[[], Read]) -> Read | LPLGradError:
    try:
        return read()
    except LPLGradError as error:
        return error
