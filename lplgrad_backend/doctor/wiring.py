"""What the doctor says of the way between Label Studio and this backend, for one project. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from lplgrad_backend.connection.plan import State, Wanted, backend_of, is_dotted, webhook_steps
from lplgrad_backend.connection.sentences import NETWORK_SETTINGS, backend_problems
from lplgrad_backend.doctor.finding import Finding, failed, ok, skipped
from lplgrad_backend.doctor.reading import ProjectReading, webhooks_to
from lplgrad_backend.errors import LabelStudioError, LPLGradError
from lplgrad_backend.labelstudio.ringing import WEBHOOK_SECONDS
from lplgrad_backend.labelstudio.transport import is_loopback
from lplgrad_backend.settings import Settings

PLACEHOLDER = "http://ADDRESS-OF-THIS-BACKEND:9090"


def wanted_of(settings: Settings, reading: ProjectReading) -> Wanted:
    """What should hold for this project."""
    version = reading.served.version if reading.served else None
    return Wanted(reading.project, reading.url, "LPLgrad", settings.basic_auth, None, version)


def command(reading: ProjectReading) -> str:
    """What a person types to mend the connection."""
    return f"python -m lplgrad_backend connect --project {reading.project} --url {reading.url or PLACEHOLDER}"


def wiring_findings(settings: Settings, reading: ProjectReading, state: State) -> Iterator[Finding]:
    """Network settings, address, ML backend, webhook."""
    wanted = wanted_of(settings, reading)
    yield _network(reading)
    yield _address(settings, reading, state, wanted)
    yield _backend(reading, state, wanted)
    yield _webhook(reading, state, wanted)
    yield _trip(reading)
    yield _arrival(reading)


def _network(reading: ProjectReading) -> Finding:
    hop, project = "network settings", reading.project
    if isinstance(reading.network, LabelStudioError) and "reserved network address" in reading.network.reason:
        return failed(hop, f"{NETWORK_SETTINGS}: {command(reading)}", project)
    if isinstance(reading.network, LPLGradError):
        return skipped(hop, f"Label Studio refused to say: {reading.network}", project)
    if reading.network is not None:
        return skipped(hop, "cannot be asked without a connected address whose host name has a dot", project)
    return ok(hop, f"Label Studio takes {reading.url}", project)


def _address(settings: Settings, reading: ProjectReading, state: State, wanted: Wanted) -> Finding:
    hop, project, host = "backend address", reading.project, urlsplit(reading.url).hostname or ""
    if not reading.url:
        return failed(hop, f"not known, and none is connected. Run: {command(reading)}", project)
    if urlsplit(reading.url).scheme not in ("http", "https") or not host:
        return failed(hop, f"{reading.url} is no http(s) address. Set LPLGRAD_BACKEND_URL, then connect.", project)
    if not is_dotted(reading.url):
        return failed(
            hop,
            f"Label Studio creates no webhook for {host!r}, a host name without a dot. Give the backend an address with "
            "a dot or an IP number (in Docker Compose, a network alias such as lplgrad.local), then run: "
            f"python -m lplgrad_backend connect --project {project} --url http://lplgrad.local:9090",
            project,
        )
    row = backend_of(state, wanted)
    apart = not is_loopback(urlsplit(str(settings.label_studio_url)).hostname or "")
    if is_loopback(host) and (apart or (row is not None and row["state"] == "DI" and _answers(reading))):
        return failed(
            hop,
            f"{reading.url} is this machine here, but for Label Studio it is its own machine or container. Give the "
            f"address by which Label Studio reaches this one: python -m lplgrad_backend connect --project {project} "
            f"--url {PLACEHOLDER}",
            project,
        )
    return ok(hop, reading.url, project)


def _answers(reading: ProjectReading) -> bool:
    return reading.rung is not None and reading.rung.status is not None


def _backend(reading: ProjectReading, state: State, wanted: Wanted) -> Finding:
    hop, project, row = "ml backend", reading.project, backend_of(state, wanted)
    if row is None:
        return failed(hop, f"not connected. Run: {command(reading)}", project)
    problems = list(backend_problems(state, row, wanted))
    if problems:
        return failed(hop, " ".join(problems), project)
    return ok(hop, f"connected as {row['title']!r}", project)


def _webhook(reading: ProjectReading, state: State, wanted: Wanted) -> Finding:
    hop, project, ours = "webhook", reading.project, webhooks_to(state, reading.url)
    if not ours:
        return failed(hop, f"missing, so new labels are noticed late. Run: {command(reading)}", project)
    if len(ours) > 1:
        return failed(hop, f"there are {len(ours)} to the same address. Run: {command(reading)}", project)
    headers = ours[0].get("headers") or {}
    if any(headers.get(name) != value for name, value in wanted.headers.items()):
        reason = "it lacks the header with BASIC_AUTH_USER and BASIC_AUTH_PASS, so this backend turns it away"
        return failed(hop, f"{reason}. Run: {command(reading)}", project)
    if list(webhook_steps(state, wanted)):
        return failed(hop, f"it is switched off or changed. Run: {command(reading)}", project)
    return ok(hop, f"one, to {ours[0]['url']}", project)


def _trip(reading: ProjectReading) -> Finding:
    hop, project, rung = "webhook answer", reading.project, reading.rung
    if rung is None:
        return skipped(hop, "needs a webhook", project)
    if rung.status is None:
        return failed(
            hop,
            f"nothing answers at {reading.url}/webhook from here. Start the backend: python -m lplgrad_backend serve "
            "(or run the doctor where that address is known).",
            project,
        )
    if rung.status in (401, 403):
        return failed(hop, f"this backend turns it away (status {rung.status}). Run: {command(reading)}", project)
    if rung.status >= 400:
        return failed(hop, f"answered with status {rung.status}; the backend's log says why.", project)
    if rung.seconds > WEBHOOK_SECONDS:
        return failed(
            hop,
            f"took {rung.seconds:.1f} s, and Label Studio waits {WEBHOOK_SECONDS:g} s. Is the machine overloaded? "
            "Set LPLGRAD_THREADS below its number of cores and start the backend again.",
            project,
        )
    return ok(hop, f"status {rung.status} in {rung.seconds * 1000:.0f} ms", project)


def _arrival(reading: ProjectReading) -> Finding:
    hop, project, arrival = "webhook arrival", reading.project, reading.arrival
    if arrival is None:
        return skipped(hop, "needs an active webhook that is answered", project)
    if isinstance(arrival, LPLGradError):
        return failed(hop, f"Label Studio refused to save the project, which would send one: {arrival}", project)
    if arrival.seconds is None:
        return failed(
            hop,
            f"Label Studio was made to send one, and it did not come, though {reading.url}/webhook answers from here. Give "
            "the address by which Label Studio's machine or container reaches this one: python -m lplgrad_backend connect "
            f"--project {project} --url {PLACEHOLDER} (or run the doctor with the MODEL_DIR of the backend that is there).",
            project,
        )
    return ok(hop, f"Label Studio's own came within {arrival.seconds:.1f} s", project)
