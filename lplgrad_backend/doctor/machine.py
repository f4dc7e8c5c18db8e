"""What the doctor says of this machine and of Label Studio as a whole. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from lplgrad_backend.doctor.finding import Finding, failed, ok, skipped
from lplgrad_backend.doctor.reading import MachineReading, SiteReading
from lplgrad_backend.errors import LabelStudioNotFound, LPLGradError
from lplgrad_backend.labelstudio.transport import is_personal_access_token
from lplgrad_backend.settings import Settings

LEAST_FREE = 2 * 2**30  # bytes; a version of a ResNet-18 takes 45 MB, a round as much again while it is written
GIGABYTE = 2**30


def machine_findings(reading: MachineReading) -> Iterator[Finding]:
    """Settings, queue, worker, disk, device."""
    yield _settings(reading.settings)
    yield _queue(reading)
    yield _worker(reading)
    yield _disk(reading)
    yield _device(reading)


def _settings(settings: Settings) -> Finding:
    missing = [
        name
        for name, value in (
            ("LABEL_STUDIO_URL", settings.label_studio_url),
            ("LABEL_STUDIO_API_KEY", settings.label_studio_api_key),
        )
        if value is None
    ]
    if missing:
        return failed(
            "settings",
            f"{' and '.join(missing)} not set: nothing trains without. Put {missing[0]}=… into the environment or into "
            "a file .env in the folder where the backend is started, then start it again.",
        )
    return ok("settings", f"read; versions and images are kept in {settings.model_dir}")


def _queue(reading: MachineReading) -> Finding:
    if isinstance(reading.waiting, LPLGradError):
        return failed("queue", str(reading.waiting))
    return ok("queue", f"{len(reading.waiting)} project(s) wait in it")


def _worker(reading: MachineReading) -> Finding:
    if isinstance(reading.worker, LPLGradError):
        return failed("worker", str(reading.worker))
    if reading.worker:
        return ok("worker", "at work")
    start = "worker" if reading.settings.worker == "external" else "serve"
    return failed(
        "worker",
        f"no worker is at {reading.settings.model_dir}, so nothing trains. Start one: "
        f"python -m lplgrad_backend {start} (with the same MODEL_DIR as here).",
    )


def _disk(reading: MachineReading) -> Finding:
    free = f"{reading.free_bytes / GIGABYTE:.1f} GB free for {reading.settings.model_dir}"
    if reading.free_bytes < LEAST_FREE:
        return failed(
            "disk",
            f"only {free}: make room, or set MODEL_DIR to another disk, or a smaller LPLGRAD_CACHE_GB "
            f"(now {reading.settings.cache_gigabytes:g}).",
        )
    return ok("disk", free)


def _device(reading: MachineReading) -> Finding:
    if isinstance(reading.device, LPLGradError):
        return failed("device", str(reading.device))
    return ok("device", f"rounds train on {reading.device}")


def site_findings(settings: Settings, reading: SiteReading | None) -> Iterator[Finding]:
    """Whether Label Studio is there and lets us in."""
    if reading is None:
        yield skipped("label studio", "needs LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY")
        yield skipped("token", "needs LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY")
        return
    if reading.health is not None:
        yield failed(
            "label studio",
            f"{reading.url} does not answer as Label Studio does: {reading.health}. Start Label Studio, or set "
            "LABEL_STUDIO_URL to its address as this machine sees it (inside a container, localhost is the container).",
        )
        yield skipped("token", "needs Label Studio to answer")
        return
    if isinstance(reading.user, LabelStudioNotFound):
        yield failed(
            "label studio", f"something else than Label Studio answers at {reading.url}. Set LABEL_STUDIO_URL."
        )
        yield skipped("token", "needs Label Studio to answer")
        return
    yield ok("label studio", f"version {reading.version or 'unknown'} answers at {reading.url}")
    kind = _kind(settings)
    if isinstance(reading.user, LPLGradError):
        yield failed("token", f"the {kind} does not work. {reading.user}")
    else:
        yield ok("token", f"a {kind} of {(reading.user or {}).get('email', 'a user')}")


def _kind(settings: Settings) -> str:
    token = settings.label_studio_api_key
    personal = token is not None and is_personal_access_token(token.get_secret_value().strip())
    return "personal access token" if personal else "legacy token"
