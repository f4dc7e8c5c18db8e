"""Everything on Label Studio's side that one project needs, so that its tasks come in this backend's order.

That is: the ML backend, exactly one webhook, uncertainty sampling and a Data Manager tab (label-studio-facts 3, 5).
`connect` reads what is there, decides purely what is missing, does it, and looks again until nothing is left; so it may
be repeated, and repairs what somebody changed. `verify` only looks. Both speak in sentences for a person.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lplgrad_backend.connection.plan import State, Wanted, plan
from lplgrad_backend.connection.sentences import explained, problems
from lplgrad_backend.errors import LabelStudioError
from lplgrad_backend.labelstudio import LabelStudio

__all__ = ["TITLE", "Report", "connect", "read_state", "verify"]

TITLE = "LPLgrad"
LOOKS = 3  # connecting creates a webhook by itself, which only the second look sees; the third finds nothing to do


@dataclass(frozen=True)
class Report:
    """What `connect` did, and what is still wrong, as sentences."""

    steps: tuple[str, ...]
    problems: tuple[str, ...]


def connect(
    label_studio: LabelStudio,
    project: int,
    backend_url: str,
    *,
    title: str = TITLE,
    basic_auth: tuple[str, str] | None = None,
    extra_params: object = None,
    current_version: str | None = None,
    report: Callable[[str], object] = lambda step: None,
) -> Report:
    """Create or repair a project's connection to this backend. Repeating it changes nothing.

    Args:
        project: its number.
        backend_url: address of this backend as Label Studio reaches it.
        title, basic_auth, extra_params, current_version: see `Wanted`.
        report: told each step when it is done.

    Raises:
        LabelStudioError: a step was refused; the message says what to do.
    """
    wanted = Wanted(project, backend_url.rstrip("/"), title, basic_auth, extra_params, current_version)
    done: list[str] = []
    try:
        state = read_state(label_studio, project)
        for _ in range(LOOKS):
            steps = plan(state, wanted)
            if not steps:
                break
            for step in steps:
                step.act(label_studio)
                done.append(step.says)
                report(step.says)
            state = read_state(label_studio, project)
        return Report(tuple(done), tuple(problems(state, wanted)))
    except LabelStudioError as error:
        raise explained(error, wanted) from error


def verify(
    label_studio: LabelStudio,
    project: int,
    backend_url: str,
    *,
    basic_auth: tuple[str, str] | None = None,
    current_version: str | None = None,
) -> list[str]:
    """What is wrong with a project's connection, a sentence each that says what to do; empty when all is well.

    Changes nothing and raises nothing that Label Studio can cause.
    """
    wanted = Wanted(project, backend_url.rstrip("/"), TITLE, basic_auth, None, current_version)
    try:
        return list(problems(read_state(label_studio, project), wanted))
    except LabelStudioError as error:
        return [str(explained(error, wanted))]


def read_state(label_studio: LabelStudio, project: int) -> State:
    """Ask Label Studio, which asks each of the project's backends for /health and /setup meanwhile."""
    return State(
        project=label_studio.project(project),
        backends=tuple(label_studio.ml_backends(project)),
        webhooks=tuple(label_studio.webhooks(project)),
        views=tuple(label_studio.views(project)),
        versions=label_studio.model_versions(project),
    )
