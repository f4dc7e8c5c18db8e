"""`versions` and `rollback`: what there was, and back to it."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.table import Table

from lplgrad_backend.cli.options import Project, needed_label_studio, open_console
from lplgrad_backend.cli.rounds import SomeProject, busy, look
from lplgrad_backend.errors import StoreError
from lplgrad_backend.history import read_history
from lplgrad_backend.locks import open_locks
from lplgrad_backend.served import roll_back, served
from lplgrad_backend.settings import read_settings
from lplgrad_backend.status import Mark, StatusFolder
from lplgrad_backend.store import Manifest, Store

Version = Annotated[str, typer.Option(help="Name of the version, such as v3.")]


def versions(project: SomeProject = None) -> None:
    """List the versions that are kept: labels, accuracy, agreement with people, size, and which one is served."""
    settings = read_settings(os.environ)
    store, console = Store(settings.model_dir), open_console()
    for one in [project] if project is not None else store.projects():
        rows = [_row(store, name, served(store, one), one) for name in store.versions(one)]
        if not rows:
            console.print(f"Project {one} has no version yet.", markup=False)
            continue
        table = Table("version", "made", "labels", "accuracy", "agreement", "MB", "state", title=f"Project {one}")
        agreed = _agreements(store, one)
        for name, made, labels, accuracy, size, state in rows:
            table.add_row(name, made, labels, accuracy, agreed.get(name, ""), size, state)
        console.print(table)
    console.print("Accuracy: on held-out labels. Agreement: with what people then chose for images they had not seen.")


def _row(store: Store, name: str, shown: Manifest | None, project: int) -> tuple[str, str, str, str, str, str]:
    try:
        manifest = store.manifest(project, name)
    except StoreError:
        return name, "", "", "", "", "damaged: see check"
    accuracy, images = (manifest.metrics.get(key) for key in ("held_out_accuracy", "held_out_images"))
    size = store.weights_path(project, name).stat().st_size / 1e6
    state = "published" if shown is not None and shown.version == name else "held back" if manifest.held_back else ""
    tested = "" if accuracy is None or images is None else f"{accuracy:.0%} of {images:.0f}"
    labels = str(sum(manifest.labels.values()))
    return name, f"{manifest.created:%Y-%m-%d %H:%M}", labels, tested, f"{size:.1f}", state


def _agreements(store: Store, project: int) -> dict[str, str]:
    """Version -> how often people chose what it had predicted, in words."""
    records = [record for record in read_history(store, project).versions if record.compared]
    return {record.version: f"{record.agreed / record.compared:.0%} of {record.compared}" for record in records}


def rollback(project: Project, to: Version) -> None:
    """Publish an older version again, with its scores; it stays until labels make the next round due."""
    settings = read_settings(os.environ)
    needed_label_studio(settings)
    store, statuses = Store(settings.model_dir), StatusFolder(settings.model_dir, open_locks(settings))
    store.manifest(project, to)
    with statuses.lock(project) as ours:
        if not ours:
            raise busy(statuses, project)
        roll_back(store, project, to)
    look(settings, project, Mark.TASKS)
