"""`connect` and `check`: is everything in order, at Label Studio and on disk?"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from lplgrad_backend import connection
from lplgrad_backend.cli.options import Project, needed_label_studio, open_console
from lplgrad_backend.errors import SettingsError
from lplgrad_backend.served import served
from lplgrad_backend.settings import read_settings
from lplgrad_backend.sources import open_images
from lplgrad_backend.store import Store

TITLE = "LPLgrad"


def connect(
    project: Project,
    url: Annotated[str | None, typer.Option(help="Address of this backend as Label Studio reaches it.")] = None,
) -> None:
    """Create or repair everything on Label Studio's side, then check it. Exits with the number of problems."""
    settings = read_settings(os.environ)
    backend_url = url or (str(settings.backend_url) if settings.backend_url else None)
    if backend_url is None:
        raise SettingsError(
            "LPLGRAD_BACKEND_URL", None, "this backend's address as Label Studio reaches it, or give --url"
        )
    shown, console = served(Store(settings.model_dir), project), open_console()
    report = connection.connect(
        needed_label_studio(settings),
        project,
        backend_url,
        title=TITLE,
        basic_auth=settings.basic_auth,
        current_version=shown.version if shown else None,
        report=lambda step: console.print(step, markup=False),
    )
    for problem in report.problems:
        console.print(f"Problem: {problem}", markup=False)
    if not report.problems:
        console.print("Connected: Label Studio serves this project's tasks by the backend's scores.")
    raise typer.Exit(len(report.problems))


def check() -> None:
    """Read every version and cached image, and say what is damaged. Exits with the number of findings."""
    settings = read_settings(os.environ)
    found = Store(settings.model_dir).check() + open_images(settings, None).check()
    console = open_console()
    for sentence in found:
        console.print(sentence, markup=False)
    console.print(f"{len(found)} finding(s) below {settings.model_dir}")
    raise typer.Exit(min(len(found), 100))
