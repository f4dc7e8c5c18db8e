"""Labelled images to replay: a folder per class, a CSV of path and label, a zip of either, or a Label Studio project. An
image has one class each, or any number, where a CSV or a project's label config says so."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lplgrad_backend.errors import ImageError, ImageUnavailable, NotLearnable, RequestError, SettingsError
from lplgrad_backend.image_decoding import Decoder
from lplgrad_backend.images import Images, Pixels
from lplgrad_backend.labeling import Example, Labeling, parse_label_config, project_number, read_annotations
from lplgrad_backend.settings import Settings
from lplgrad_backend.simulation.listing import SPLITS, SUFFIXES, Row, rows_of_csv, rows_of_names
from lplgrad_backend.sources import open_images, open_label_studio

PROJECT = "labelstudio:"
LOOKED_AT = 64
THREADS = 4
WANTED = (
    "a folder with a folder per class, a CSV with the columns path and label (several with | between), a zip of either, or "
    "labelstudio:PROJECT"
)


class Pictures(Protocol):
    """N images that can be read again."""

    def names(self) -> Sequence[str]:
        """What a person finds each by: its path, or `task` and its number."""

    def digest(self) -> str:
        """Tells their content from all other."""

    def longest(self) -> int:
        """Median longest side of some of them, in pixels."""

    def load(self, side: int) -> Iterator[Pixels | ImageError]:
        """Each [side, side, 3] uint8, in order; one that cannot be used gives its error."""


@dataclass(frozen=True)
class DataSet:
    """Images and the classes of each.

    Attributes:
        name: for a person.
        classes: their names, C.
        targets: bool [N, C], which classes an image shows: at least one.
        multiple: whether it may show several.
        held_out: bool [N], which are for measuring alone; None where the data do not say.
    """

    name: str
    classes: tuple[str, ...]
    targets: NDArray[np.bool_]
    multiple: bool
    held_out: NDArray[np.bool_] | None
    pictures: Pictures


class Files:
    """Images in a folder or an archive.

    Args:
        paths: as they stand in it.
        read: the bytes at a path; raises KeyError or OSError.
    """

    def __init__(self, paths: Sequence[str], read: Callable[[str], bytes]) -> None:
        self._paths, self._read = paths, read
        self._decoder = Decoder()

    def names(self) -> Sequence[str]:
        """As of `Pictures`."""
        return self._paths

    def digest(self) -> str:
        """As of `Pictures`."""
        digest = hashlib.sha256()
        for path in self._paths:
            try:
                digest.update(hashlib.sha256(self._bytes(path)).digest())
            except ImageError:
                digest.update(b"unreadable")
        return digest.hexdigest()

    def longest(self) -> int:
        """As of `Pictures`."""
        sides = []
        for path in self._paths[:: max(1, len(self._paths) // LOOKED_AT)]:
            try:
                sides.append(max(self._decoder.size(self._bytes(path), path)))
            except ImageError:
                continue
        if not sides:
            raise NotLearnable(f"None of the images looked at can be read, such as {self._paths[0]}.")
        return int(np.median(sides))

    def load(self, side: int) -> Iterator[Pixels | ImageError]:
        """As of `Pictures`."""
        with ThreadPoolExecutor(THREADS) as threads:
            yield from threads.map(lambda path: self._decoded(path, side), self._paths)

    def _decoded(self, path: str, side: int) -> Pixels | ImageError:
        try:
            return self._decoder.decode(self._bytes(path), side, path)
        except ImageError as error:
            return error

    def _bytes(self, path: str) -> bytes:
        try:
            return self._read(path)
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            raise ImageUnavailable(path, f"it cannot be read ({type(error).__name__}).") from error


class Tasks:
    """Images of a Label Studio project's tasks, (number, address) each."""

    def __init__(self, images: Images, tasks: Sequence[tuple[int, str]]) -> None:
        self._images, self._tasks = images, tasks

    def names(self) -> Sequence[str]:
        """As of `Pictures`."""
        return [f"task {number}" for number, _ in self._tasks]

    def digest(self) -> str:
        """As of `Pictures`: an address stands for the bytes that were there first."""
        return hashlib.sha256(repr(self._tasks).encode()).hexdigest()

    def longest(self) -> int:
        """As of `Pictures`."""
        sides = []
        for task, uri in self._tasks[:LOOKED_AT]:
            try:
                sides.append(max(self._images.size(uri, task_id=task)))
            except ImageError:
                continue
        if not sides:
            raise NotLearnable("None of the images looked at can be read from Label Studio.")
        return int(np.median(sides))

    def load(self, side: int) -> Iterator[Pixels | ImageError]:
        """As of `Pictures`."""
        return self._images.load_many(self._tasks, side)


def open_data(where: str, settings: Settings) -> DataSet:
    """The data set that a person named.

    Raises:
        SettingsError: it is nothing of what can be read.
        NotLearnable: it has fewer than two classes.
        LabelStudioError, LabelConfigError: a project cannot be read or learned from.
    """
    if where.startswith(PROJECT):
        return _of_project(where.removeprefix(PROJECT), settings)
    path = Path(where).expanduser()
    if path.is_dir():
        listed = path / "labels.csv"
        rows = (
            rows_of_csv(listed.read_text("utf-8-sig"), "DATA")
            if listed.is_file()
            else rows_of_names(_names_below(path))
        )
        return _data_set(path.name, rows, lambda name: (path / name).read_bytes())
    if path.is_file() and zipfile.is_zipfile(path):
        return _of_zip(path)
    if path.is_file():
        return _of_csv_file(path)
    raise SettingsError("DATA", where, WANTED)


def _of_csv_file(path: Path) -> DataSet:
    try:
        rows = rows_of_csv(path.read_text("utf-8-sig"), "DATA")
    except UnicodeDecodeError as error:
        raise SettingsError("DATA", str(path), WANTED) from error
    return _data_set(path.stem, rows, lambda name: (path.parent / name).read_bytes())


def _of_zip(path: Path) -> DataSet:
    content = path.read_bytes()

    def read(name: str) -> bytes:
        with zipfile.ZipFile(io.BytesIO(content)) as again:  # threads share none
            return again.read(name)

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        listed = next((name for name in names if PurePosixPath(name).name == "labels.csv"), None)
        contents = {name: archive.read(name) for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES}
        if listed is None:
            return _data_set(path.stem, rows_of_names(names), contents.__getitem__)
        rows = rows_of_csv(archive.read(listed).decode("utf-8-sig"), "DATA")
        below = listed.removesuffix("labels.csv")
    return _data_set(path.stem, rows, lambda name: contents[below + name])


def _names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _data_set(name: str, rows: Sequence[Row], read: Callable[[str], bytes]) -> DataSet:
    if not rows:
        raise SettingsError("DATA", name, f"{WANTED}; there is no labelled image in it")
    unknown = {row.split for row in rows} - {"", *SPLITS}
    if unknown:
        raise SettingsError("DATA", name, f"splits called train and test, not {sorted(unknown)[0]!r}")
    held_out = np.array([SPLITS.get(row.split, False) for row in rows])
    usable = held_out if held_out.any() and not held_out.all() else None
    several = any(len(row.classes) > 1 for row in rows)
    return _named(name, [row.classes for row in rows], several, usable, Files([row.path for row in rows], read))


def _of_project(number: str, settings: Settings) -> DataSet:
    client = open_label_studio(settings)
    if client is None:
        raise SettingsError("LABEL_STUDIO_URL", None, "Label Studio's address, and LABEL_STUDIO_API_KEY to a token")
    try:
        project = project_number(number)
    except RequestError as error:
        raise SettingsError("DATA", PROJECT + number, "labelstudio: and the number of a project") from error
    labeling = parse_label_config(str(client.project(project)["label_config"]))
    found = read_annotations(labeling, client.annotated_tasks(project)).examples
    shown = [(one.task_id, one.uri, classes) for one in found if (classes := _agreed(labeling, one))]
    if not shown:
        raise NotLearnable(f"Project {project} has no annotation yet.")
    pictures = Tasks(open_images(settings, client), [(task, uri) for task, uri, _ in shown])
    return _named(f"project {project}", [classes for *_, classes in shown], labeling.multiple, None, pictures)


def _agreed(labeling: Labeling, example: Example) -> tuple[str, ...]:
    """The class that most annotators chose, or where several may hold all that half of them chose."""
    if not labeling.multiple:
        return (labeling.classes[int(np.argmax(example.target))],)
    return tuple(name for name, share in zip(labeling.classes, example.target, strict=True) if share >= 0.5)


def _named(
    name: str,
    shown: Sequence[tuple[str, ...]],
    multiple: bool,
    held_out: NDArray[np.bool_] | None,
    pictures: Pictures,
) -> DataSet:
    classes = tuple(sorted({one for of_image in shown for one in of_image}))
    if len(classes) < 2:
        raise NotLearnable(f"{name} has one class, {classes[0]!r}; at least two are needed.")
    targets = np.array([[one in of_image for one in classes] for of_image in shown])
    return DataSet(name, classes, targets, multiple, held_out, pictures)
