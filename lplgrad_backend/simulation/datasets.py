"""Labelled images to replay: a folder per class, a CSV of path and label, a zip of either, or a Label Studio project."""

from __future__ import annotations

import csv
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
from lplgrad_backend.labeling import Labeling, parse_label_config, project_number, read_annotations
from lplgrad_backend.settings import Settings
from lplgrad_backend.sources import open_images, open_label_studio

PROJECT = "labelstudio:"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
SPLITS = {"train": False, "pool": False, "test": True, "val": True, "valid": True, "validation": True}
LOOKED_AT = 64
THREADS = 4
WANTED = (
    "a folder with a folder per class, a CSV with the columns path and label, a zip of either, or labelstudio:PROJECT"
)


class Pictures(Protocol):
    """N images that can be read again."""

    def digest(self) -> str:
        """Tells their content from all other."""

    def longest(self) -> int:
        """Median longest side of some of them, in pixels."""

    def load(self, side: int) -> Iterator[Pixels | ImageError]:
        """Each [side, side, 3] uint8, in order; one that cannot be used gives its error."""


@dataclass(frozen=True)
class DataSet:
    """Images and the class of each.

    Attributes:
        name: for a person.
        classes: their names, C.
        labels: int64 [N] in 0 … C - 1.
        held_out: bool [N], which are for measuring alone; None where the data do not say.
    """

    name: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    held_out: NDArray[np.bool_] | None
    pictures: Pictures


@dataclass(frozen=True)
class Row:
    """One image: where it is, its class, and its split ("" where none is named)."""

    path: str
    label: str
    split: str = ""


class Files:
    """Images in a folder or an archive.

    Args:
        paths: as they stand in it.
        read: the bytes at a path; raises KeyError or OSError.
    """

    def __init__(self, paths: Sequence[str], read: Callable[[str], bytes]) -> None:
        self._paths, self._read = paths, read
        self._decoder = Decoder()

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
        rows = _of_csv(listed.read_text("utf-8-sig"), "DATA") if listed.is_file() else _of_names(_names_below(path))
        return _data_set(path.name, rows, lambda name: (path / name).read_bytes())
    if path.is_file() and zipfile.is_zipfile(path):
        return _of_zip(path)
    if path.is_file():
        return _of_csv_file(path)
    raise SettingsError("DATA", where, WANTED)


def _of_csv_file(path: Path) -> DataSet:
    try:
        rows = _of_csv(path.read_text("utf-8-sig"), "DATA")
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
            return _data_set(path.stem, _of_names(names), contents.__getitem__)
        rows = _of_csv(archive.read(listed).decode("utf-8-sig"), "DATA")
        below = listed.removesuffix("labels.csv")
    return _data_set(path.stem, rows, lambda name: contents[below + name])


def _names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _of_names(names: Sequence[str]) -> list[Row]:
    """Rows of `class/file` or `split/class/file`."""
    paths = [PurePosixPath(name) for name in sorted(names)]
    images = [path for path in paths if path.suffix.lower() in SUFFIXES and len(path.parts) > 1]
    rows = []
    for path in images:
        above = path.parts[-3].lower() if len(path.parts) > 2 else ""
        rows.append(Row(str(path), path.parts[-2], above if above in SPLITS else ""))
    return rows


def _of_csv(text: str, key: str) -> list[Row]:
    """Rows of a CSV with the columns path, label and perhaps split."""
    reader = csv.DictReader(io.StringIO(text))
    columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
    if not {"path", "label"} <= columns.keys():
        raise SettingsError(key, ",".join(reader.fieldnames or ())[:100], "a CSV with the columns path and label")
    split = columns.get("split")
    return [
        Row(row[columns["path"]], row[columns["label"]], (row[split] or "").lower() if split else "")
        for row in reader
        if row[columns["path"]] and row[columns["label"]]
    ]


def _data_set(name: str, rows: Sequence[Row], read: Callable[[str], bytes]) -> DataSet:
    if not rows:
        raise SettingsError("DATA", name, f"{WANTED}; there is no labelled image in it")
    unknown = {row.split for row in rows} - {"", *SPLITS}
    if unknown:
        raise SettingsError("DATA", name, f"splits called train and test, not {sorted(unknown)[0]!r}")
    held_out = np.array([SPLITS.get(row.split, False) for row in rows])
    usable = held_out if held_out.any() and not held_out.all() else None
    return _named(name, [row.label for row in rows], usable, Files([row.path for row in rows], read))


def _of_project(number: str, settings: Settings) -> DataSet:
    client = open_label_studio(settings)
    if client is None:
        raise SettingsError("LABEL_STUDIO_URL", None, "Label Studio's address, and LABEL_STUDIO_API_KEY to a token")
    try:
        project = project_number(number)
    except RequestError as error:
        raise SettingsError("DATA", PROJECT + number, "labelstudio: and the number of a project") from error
    labeling = parse_label_config(str(client.project(project)["label_config"]))
    _only_single(labeling)
    examples = [
        (example.task_id, example.uri, labeling.classes[int(np.argmax(example.target))])
        for example in read_annotations(labeling, client.annotated_tasks(project)).examples
    ]
    if not examples:
        raise NotLearnable(f"Project {project} has no annotation yet.")
    tasks = [(task, uri) for task, uri, _ in examples]
    return _named(
        f"project {project}", [label for *_, label in examples], None, Tasks(open_images(settings, client), tasks)
    )


def _only_single(labeling: Labeling) -> None:
    if labeling.multiple:
        raise NotLearnable(
            f"Choices {labeling.from_name!r} allows several classes per image; a simulation needs one class per image."
        )


def _named(name: str, labels: Sequence[str], held_out: NDArray[np.bool_] | None, pictures: Pictures) -> DataSet:
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise NotLearnable(f"{name} has one class, {classes[0]!r}; at least two are needed.")
    numbers = {label: number for number, label in enumerate(classes)}
    return DataSet(name, classes, np.array([numbers[label] for label in labels], dtype=np.int64), held_out, pictures)
