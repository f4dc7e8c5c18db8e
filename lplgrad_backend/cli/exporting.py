"""`export`: a version for use elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lplgrad_backend.cli.options import Project, open_console
from lplgrad_backend.cli.undo import Version
from lplgrad_backend.export import Format
from lplgrad_backend.export import export as write
from lplgrad_backend.settings import read_settings
from lplgrad_backend.store import Store


def export(
    project: Project,
    version: Version,
    format: Annotated[Format, typer.Option(help="What the model's file is.")],
    out: Annotated[
        Path | None, typer.Option(help="New folder to write; project-ID-VERSION-FORMAT here without.")
    ] = None,
) -> None:
    """Write a version's model with its classes, preprocessing and a model card."""
    settings = read_settings(os.environ)
    target = out or Path(f"project-{project}-{version}-{format}")
    console = open_console()
    console.print(f"Writing {version} of project {project} …", markup=False)
    with console.status("Tracing the network takes some seconds"):  # moves in a terminal, is silent elsewhere
        file = write(Store(settings.model_dir), project, version, format, target)
    console.print(f"Wrote {file}", markup=False)
