"""Every hop from a saved label to a reordered queue, looked at one by one, each ok or a sentence that mends it.

Everything is read first (reading.py), then decided purely (machine.py, wiring.py, order.py). Annotators notice nothing:
the next task is told from Label Studio's own order of scores, since asking for it would lock it for the token's user.
What is written: the event PROJECT_UPDATED is sent to the backend, whose worker at most looks once more; the webhook and
the ML backend are saved as they are, since Label Studio looks at an address only then; and so is the project, since Label
Studio sends a webhook only then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lplgrad_backend.connection.plan import State
from lplgrad_backend.doctor.finding import Finding, Outcome, as_plain, count_failures, failed, skipped
from lplgrad_backend.doctor.machine import machine_findings, site_findings
from lplgrad_backend.doctor.order import order_findings
from lplgrad_backend.doctor.reading import ProjectReading, SiteReading, read_machine, read_project, read_site
from lplgrad_backend.doctor.wiring import wiring_findings
from lplgrad_backend.errors import LPLGradError, SettingsError
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.store import Store

__all__ = ["Finding", "Outcome", "as_plain", "count_failures", "examine", "examine_environment"]

ATTEMPTS = 2  # a person waits


def examine_environment(
    environ: Mapping[str, str], project: int | None = None, url: str | None = None
) -> Iterator[Finding]:
    """The same as `examine`, with settings that may be wrong themselves."""
    try:
        settings = read_settings(environ)
        yield from examine(settings, project, url, client=_client(settings))
    except SettingsError as error:
        yield failed("settings", str(error))


def examine(
    settings: Settings, project: int | None = None, url: str | None = None, *, client: LabelStudio | None
) -> Iterator[Finding]:
    """Look at every hop.

    Args:
        project: its number; None looks at all that this backend knows.
        url: this backend's address as Label Studio reaches it; None takes what is set or connected.
        client: of Label Studio; None when its address or token is not set.
    """
    yield from machine_findings(read_machine(settings))
    site = read_site(client) if client is not None else None
    yield from site_findings(settings, site)
    projects = [project] if project is not None else Store(settings.model_dir).projects()
    if not projects:
        yield skipped("project", "this backend knows none yet. Name one with --project")
    for number in projects:
        if client is None or not _lets_in(site):
            yield skipped("project", "needs Label Studio and its token", number)
        else:
            yield from project_findings(settings, read_project(settings, client, number, url))


def project_findings(settings: Settings, reading: ProjectReading) -> Iterator[Finding]:
    """All hops of one project. Pure."""
    if not isinstance(reading.state, State):
        yield failed(
            "project",
            f"project {reading.project} cannot be read: {reading.state}. Take the number from the address of its page, "
            "/projects/<number>/, and a token of somebody who sees it.",
            reading.project,
        )
        return
    yield from wiring_findings(settings, reading, reading.state)
    yield from order_findings(settings, reading, reading.state)


def _lets_in(site: SiteReading | None) -> bool:
    return site is not None and site.user is not None and not isinstance(site.user, LPLGradError)


def _client(settings: Settings) -> LabelStudio | None:
    if settings.label_studio_url is None or settings.label_studio_api_key is None:
        return None
    token = settings.label_studio_api_key.get_secret_value()
    return LabelStudio(str(settings.label_studio_url), token, attempts=ATTEMPTS)
