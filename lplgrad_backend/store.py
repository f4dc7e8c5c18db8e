"""Versions on disk: `MODEL_DIR/<project>/<version>/`, immutable once they appear.

    manifest.json        what the version is: labeling, architecture, recipe, seed, metrics, score scale, sha256 of the rest
    weights.safetensors  the network's state
    annotations.json     annotation id -> digest of what it said when the round read it
    scores.safetensors   the pool as scored and ordered: task ids, gradient norms, worth, scores, class probabilities

A version is written to a temporary folder, synced and renamed, so it is there whole or not at all; what is damaged later
is found by its sha256 and passed over in favour of the version before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lplgrad_backend.checkpoint_file import CHECKPOINT, is_damaged
from lplgrad_backend.errors import StoreError, VersionDamaged, VersionNotFound
from lplgrad_backend.files import is_leftover, remove_folder, remove_leftovers, whole_folder, written
from lplgrad_backend.labeling import Labeling
from lplgrad_backend.scratch import left_scratch, remove_scratch

MANIFEST, WEIGHTS, ANNOTATIONS, SCORES = (
    "manifest.json",
    "weights.safetensors",
    "annotations.json",
    "scores.safetensors",
)
VERSION_NAME = re.compile(r"v([1-9]\d{0,8})")
Arrays = Mapping[str, NDArray[Any]]


class OrderHealth(BaseModel):
    """How the order that was asked for looked before it was used.

    Attributes:
        correlation: rank correlation of the images' worth with their entropy; None where it says nothing.
        duplicates: share of near-duplicates in the head of the queue.
        head_classes: how many of the head are predicted to be of each class [C].
        sentence: what is wrong, for a person; empty: nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    correlation: float | None
    duplicates: float
    head_classes: tuple[int, ...]
    sentence: str = ""


FileName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
]  # of the version's own folder: no way out of it


class Manifest(BaseModel):
    """What a version is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: int
    version: str
    created: datetime
    labeling: Labeling
    architecture: dict[str, Any]
    recipe: dict[str, Any]
    seed: int
    labels: dict[str, int]  # labelled images per class
    scale: float  # s of score = s / (s + worth): the pool's median worth
    ordered_by: str = "lplgrad"  # the strategy that made the order
    recipe_reason: str = ""  # which recipe the preset meant, and why
    health: OrderHealth | None = None
    temperature: float = 1.0  # of the class probabilities that are shown, not of the gradient norms
    temperature_from: str = ""  # what it was fitted on, in words
    newest_task: int  # highest task id that the round saw; later ones are new
    metrics: dict[str, float]
    warnings: list[str] = []
    unreadable: dict[int, str] = {}  # task id -> why its image could not be used
    held_out: dict[str, list[str]] = {}  # labelled images it was not trained on, by image_key -> classes it names
    held_back: str = ""  # why the version is kept and not published
    files: dict[FileName, str]  # file name -> sha256

    @property
    def number(self) -> int:
        """12 for "v12"."""
        return version_number(self.version)


@dataclass(frozen=True)
class PoolScores:
    """The pool of a round as it was scored, best first is not implied. N tasks, C classes.

    Attributes:
        tasks: [N] int64 task ids, ascending.
        addresses: [N] int64 digest of each task's image address, so that a changed task is scored anew.
        norms: [N] float64 gradient norms; NaN-free.
        worth: [N] float64, what each image was worth at its turn in the queue: the norm itself in the paper's order.
        scores: [N] float64 in (0, 1), lowest is served first.
        probabilities: [N, C] float32.
        predicted_losses: [N] float64, what the loss-prediction module expects, on its own scale; NaN where not measured.
        random: [N] bool, which were drawn at random for their place in the queue.
        head: [K] int64, positions of the queue's first images, in its order.
        looks: [K, D] float16, their features, by which look-alikes among later images are known.
    """

    tasks: NDArray[np.int64]
    addresses: NDArray[np.int64]
    norms: NDArray[np.float64]
    worth: NDArray[np.float64]
    scores: NDArray[np.float64]
    probabilities: NDArray[np.float32]
    predicted_losses: NDArray[np.float64]
    random: NDArray[np.bool_]
    head: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    looks: NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0), np.float16))

    def position(self, task: int, uri: str) -> int | None:
        """Where a task with this image address stands in the arrays, or None."""
        at = int(np.searchsorted(self.tasks, task))
        if at < len(self.tasks) and self.tasks[at] == task and self.addresses[at] == address_digest(uri):
            return at
        return None


def for_classes(probabilities: NDArray[np.float32], had: Sequence[str], wanted: Sequence[str]) -> NDArray[np.float32]:
    """Columns [N, had] in the order of `wanted`; a class that `had` lacks gets 0."""
    if tuple(had) == tuple(wanted):
        return probabilities
    nothing = np.zeros(len(probabilities), np.float32)
    return np.stack([probabilities[:, had.index(name)] if name in had else nothing for name in wanted], axis=1)


def address_digest(uri: str) -> int:
    """64 bits of an image address's sha256, as a signed integer."""
    return int.from_bytes(hashlib.sha256(uri.encode(errors="surrogatepass")).digest()[:8], "big", signed=True)


def version_number(version: str) -> int:
    """12 for "v12".

    Raises:
        VersionNotFound: not the name of a version.
    """
    match = VERSION_NAME.fullmatch(version)
    if match is None:
        raise VersionNotFound(f"{version!r} is not the name of a version; they are called v1, v2, …")
    return int(match.group(1))


def next_version(known: Iterable[str]) -> str:
    """The name after the highest of these; what is no name of a version does not count."""
    return f"v{1 + max((version_number(name) for name in known if VERSION_NAME.fullmatch(name)), default=0)}"


class Store:
    """All versions of all projects under one folder. Safe for many readers and, per project, one writer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._intact: dict[Path, tuple[tuple[int, int], ...]] = {}

    def project_folder(self, project: int) -> Path:
        """Where the project's versions are."""
        return self.folder / str(int(project))

    @property
    def scratch_folder(self) -> Path:
        """Where rounds leave their results until they are saved, in folders called <project>-…"""
        return self.folder / "scratch"

    def checkpoint_path(self, project: int) -> Path:
        """Where a round's training keeps how far it is, until the round's version is saved."""
        return self.project_folder(project) / CHECKPOINT

    def projects(self) -> list[int]:
        """Ids of the projects that have a folder, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit() and path.is_dir())

    def versions(self, project: int) -> list[str]:
        """Names of the project's versions, oldest first, damaged ones included."""
        folder = self.project_folder(project)
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted((name for name in names if VERSION_NAME.fullmatch(name)), key=version_number)

    def newest(self, project: int) -> Manifest | None:
        """The newest version whose files are intact, or None."""
        for version in reversed(self.versions(project)):
            try:
                return self.manifest(project, version)
            except StoreError:
                continue
        return None

    def manifest(self, project: int, version: str) -> Manifest:
        """A version's manifest, after its files were compared with it.

        Raises:
            VersionNotFound, VersionDamaged
        """
        folder = self._version_folder(project, version)
        manifest = self._read_manifest(folder)
        state = _state(folder, [MANIFEST, *manifest.files])
        if self._intact.get(folder) != state:
            _compare(folder, manifest)
            self._intact[folder] = state
        return manifest

    def weights(self, project: int, version: str) -> dict[str, NDArray[Any]]:
        """Tensor name -> array.

        Raises:
            VersionNotFound, VersionDamaged
        """
        self.manifest(project, version)
        return _read_arrays(self._version_folder(project, version) / WEIGHTS)

    def weights_path(self, project: int, version: str) -> Path:
        """The safetensors file of an intact version.

        Raises:
            VersionNotFound, VersionDamaged
        """
        self.manifest(project, version)
        return self._version_folder(project, version) / WEIGHTS

    def annotations(self, project: int, version: str) -> dict[str, str]:
        """Annotation id -> digest, as the version's round read them.

        Raises:
            VersionNotFound, VersionDamaged
        """
        self.manifest(project, version)
        digests = json.loads((self._version_folder(project, version) / ANNOTATIONS).read_bytes())
        return {str(key): str(value) for key, value in digests.items()}

    def scores(self, project: int, version: str) -> PoolScores:
        """The pool as the version's round scored it.

        Raises:
            VersionNotFound, VersionDamaged
        """
        self.manifest(project, version)
        return read_scores(self._version_folder(project, version) / SCORES)

    def save(self, draft: Mapping[str, Any], weights: Path, digests: Mapping[str, str], scores: PoolScores) -> Manifest:
        """Write a version whole. `draft` holds the manifest's fields but `files`; `weights` is copied.

        Raises:
            StoreError: the version exists, or the disk refuses.
        """
        target = self.project_folder(draft["project"]) / draft["version"]
        what = f"Version {target.name} of project {draft['project']}"
        with written(what, self.folder), whole_folder(target) as folder:
            shutil.copyfile(weights, folder / WEIGHTS)
            (folder / ANNOTATIONS).write_text(json.dumps(dict(digests)))
            _write_arrays(scores, folder / SCORES)
            manifest = Manifest(**draft, files={file.name: _sha256(file) for file in folder.iterdir()})
            (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1))
        with contextlib.suppress(OSError):  # the round is over; one that stays fits no other
            self.checkpoint_path(manifest.project).unlink()
        return manifest

    def delete(self, project: int, version: str) -> None:
        """Remove a version; no error if it is gone already."""
        version_number(version)
        remove_folder(self.project_folder(project) / version)

    def tidy(self, project: int) -> None:
        """Remove what interrupted rounds left. Only for the holder of the project's lock."""
        remove_scratch(self.scratch_folder, project)
        if self.project_folder(project).is_dir():
            remove_leftovers(self.project_folder(project))

    def check(self) -> list[str]:
        """What is wrong with the versions on disk, one sentence each; reads every file once."""
        found = [f"scratch/{name} was left by an interrupted round." for name in left_scratch(self.scratch_folder)]
        for project in self.projects():
            if is_damaged(self.checkpoint_path(project)):
                found.append(f"Project {project}: its checkpoint is damaged; the next round begins without it.")
            for path in sorted(self.project_folder(project).iterdir()):
                if path.name.endswith(".tmp") and is_leftover(path):
                    found.append(f"Project {project}: {path.name} was left by an interrupted writer.")
                elif VERSION_NAME.fullmatch(path.name):
                    found += self._check_version(project, path.name)
        return found

    def _check_version(self, project: int, version: str) -> list[str]:
        try:
            folder = self._version_folder(project, version)
            _compare(folder, self._read_manifest(folder))
        except StoreError as error:
            return [str(error)]
        return []

    def _version_folder(self, project: int, version: str) -> Path:
        version_number(version)
        folder = self.project_folder(project) / version
        if not folder.is_dir():
            raise VersionNotFound(f"Project {project} has no version {version}.")
        return folder

    def _read_manifest(self, folder: Path) -> Manifest:
        try:
            return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        except (OSError, ValidationError) as error:
            raise VersionDamaged(
                f"Version {folder.name} of project {folder.parent.name}: no valid manifest."
            ) from error


def read_scores(file: Path) -> PoolScores:
    """What `write_scores` wrote.

    Raises:
        VersionDamaged
    """
    arrays = _read_arrays(file)
    arrays.setdefault("worth", arrays["norms"])  # before there were other orders than the paper's
    arrays.setdefault("predicted_losses", np.full(len(arrays["tasks"]), np.nan))  # before these were kept
    arrays.setdefault("random", np.zeros(len(arrays["tasks"]), dtype=bool))
    return PoolScores(**arrays)


def write_scores(scores: PoolScores, file: Path) -> None:
    """Write scores as safetensors.

    Raises:
        StoreError: the disk refuses.
    """
    with written("What a round has scored", file.parent):
        _write_arrays(scores, file)


def _write_arrays(scores: PoolScores, file: Path) -> None:
    arrays = {name: np.ascontiguousarray(getattr(scores, name)) for name in PoolScores.__dataclass_fields__}
    safetensors.numpy.save_file(arrays, file)


def _read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    try:
        arrays: dict[str, NDArray[Any]] = safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise VersionDamaged(f"{file.name} of version {file.parent.name}: {error}") from error
    return arrays


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _state(folder: Path, names: list[str]) -> tuple[tuple[int, int], ...]:
    """Changes whenever a file was written again: size and time of last change of each."""
    try:
        return tuple((status.st_size, status.st_mtime_ns) for status in ((folder / name).stat() for name in names))
    except OSError as error:
        raise VersionDamaged(f"Version {folder.name} of project {folder.parent.name}: {error}") from error


def _compare(folder: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        try:
            actual = _sha256(folder / name)
        except OSError as error:
            raise VersionDamaged(
                f"{name} of version {manifest.version}, project {manifest.project}: {error}"
            ) from error
        if actual != expected:
            raise VersionDamaged(
                f"{name} of version {manifest.version}, project {manifest.project} does not match its sha256."
            )
