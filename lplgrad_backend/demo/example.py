"""The demo's project in a Label Studio that runs already: made, connected, its first labels given, its queue ordered."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from lplgrad_backend.connection import connect
from lplgrad_backend.demo.annotator import Annotator
from lplgrad_backend.demo.dataset import LABEL_CONFIG, write_digits
from lplgrad_backend.demo.person import Person
from lplgrad_backend.demo.process import DemoError, wait_for
from lplgrad_backend.demo.run import POOL_TITLE, SIDE, TITLE, project_of
from lplgrad_backend.demo.session import SECONDS_PER_ROUND
from lplgrad_backend.errors import SettingsError
from lplgrad_backend.labeling import parse_label_config
from lplgrad_backend.settings import Settings
from lplgrad_backend.sources import open_label_studio
from lplgrad_backend.store import VERSION_NAME


def make_example(settings: Settings, email: str, password: str, labels: int, *, pool: int = 1000) -> None:
    """Make what is missing, so that repeating it changes nothing; return once a version orders the queue.

    Args:
        email, password: of the person whose project it becomes.
        labels: digits that are labelled in all; with fewer than a round needs, nothing is waited for.
        pool: digits in the project, at most 1,797.

    Raises:
        LPLGradError: a setting is missing, Label Studio refuses something, or no round ordered the queue in time.
    """
    client = open_label_studio(settings)
    if client is None:
        raise SettingsError("LABEL_STUDIO_URL", None, "Label Studio's address, and LABEL_STUDIO_API_KEY a user's token")
    if settings.backend_url is None:
        raise SettingsError("LPLGRAD_BACKEND_URL", None, "this backend's address as Label Studio reaches it")
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory() as folder, Person(client.url, email, password) as person:
        digits = write_digits(Path(folder), pool=pool, held_out=0, side=SIDE)
        project = project_of(person, POOL_TITLE, [digit.file for digit in digits.pool])
        report = connect(client, project, str(settings.backend_url), title=TITLE, basic_auth=settings.basic_auth)
        if report.problems:
            raise DemoError(" ".join(report.problems))
        labelled = int(client.project(project)["total_annotations_number"] or 0)
        annotator = Annotator(person, project, parse_label_config(LABEL_CONFIG), digits.truth)
        given = len(list(annotator.label(max(0, labels - labelled))))
        console.print(f"Project {project} is connected; {given} of its digits were labelled just now.")
        if labels < settings.updates_per_round:
            return

        def version() -> str | None:
            named = str(client.project(project)["model_version"])
            return named if VERSION_NAME.fullmatch(named) else None

        ordered = wait_for(version, "the first round; the worker's log tells more", seconds=SECONDS_PER_ROUND, every=1)
        console.print(f"{ordered} orders the queue of project {project}.")
