"""Which version people are served: the newest, unless it was held back or somebody rolled back.

A round whose network did clearly worse is kept and held back (comparison.py). A rollback is one small file beside the
versions: the version wanted, and the newest one at that time. It holds until a round makes a newer version that is not
held back; and since the next round is due by labels changed since the newest version, published or not, a rollback by
itself makes none due. Pressing Start Training or changing the label config does, as ever.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from lplgrad_backend.errors import StoreError
from lplgrad_backend.files import write_whole, written
from lplgrad_backend.store import Manifest, Store, version_number

ROLLBACK = "rollback.json"


class Rollback(BaseModel):
    """Serve `version` instead of `instead_of` and whatever is older."""

    model_config = ConfigDict(frozen=True)

    version: str
    instead_of: str


def served(store: Store, project: int) -> Manifest | None:
    """The intact version that people are served, or None. Where all were held back, the newest of them."""
    rollback = read_rollback(store, project)
    passed_over: list[Manifest] = []
    for version in reversed(store.versions(project)):
        if rollback is not None and version_number(version) <= version_number(rollback.instead_of):
            wanted = _intact(store, project, rollback.version)
            if wanted is not None:
                return wanted
            rollback = None
        manifest = _intact(store, project, version)
        if manifest is not None and not manifest.held_back:
            return manifest
        passed_over += [manifest] if manifest is not None else []
    return passed_over[0] if passed_over else None


def why_not_newest(newest: Manifest, shown: Manifest) -> str | None:
    """Why another version than the newest is served, as a sentence; None where the newest is."""
    if newest.version == shown.version:
        return None
    if newest.held_back:
        return f"{newest.version} is kept and not published: {newest.held_back}"
    return f"{newest.version} was rolled back to {shown.version}, until labels make the next round due."


def roll_back(store: Store, project: int, version: str) -> Manifest:
    """Choose the version to serve. Only for the holder of the project's lock, who publishes it afterwards.

    Raises:
        VersionNotFound, VersionDamaged, StoreError
    """
    wanted = store.manifest(project, version)
    rollback = Rollback(version=version, instead_of=store.versions(project)[-1])
    with written(f"The rollback of project {project}", store.folder):
        write_whole(store.project_folder(project) / ROLLBACK, rollback.model_dump_json().encode())
    return wanted


def read_rollback(store: Store, project: int) -> Rollback | None:
    """The last rollback, whether it still holds or not; None without one or where it cannot be read."""
    try:
        found = Rollback.model_validate_json((store.project_folder(project) / ROLLBACK).read_bytes())
        version_number(found.instead_of)
    except (OSError, ValidationError, StoreError):
        return None
    return found


def _intact(store: Store, project: int, version: str) -> Manifest | None:
    try:
        return store.manifest(project, version)
    except StoreError:
        return None
