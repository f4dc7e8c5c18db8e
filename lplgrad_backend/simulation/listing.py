"""Which images there are and what they show: rows, from the names of files or from a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from lplgrad_backend.errors import SettingsError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
SPLITS = {"train": False, "pool": False, "test": True, "val": True, "valid": True, "validation": True}
BETWEEN = "|"


@dataclass(frozen=True)
class Row:
    """One image: where it is, its classes, at least one, and its split ("" where none is named)."""

    path: str
    classes: tuple[str, ...]
    split: str = ""


def rows_of_names(names: Sequence[str]) -> list[Row]:
    """Rows of `class/file` or `split/class/file`."""
    paths = [PurePosixPath(name) for name in sorted(names)]
    images = [path for path in paths if path.suffix.lower() in SUFFIXES and len(path.parts) > 1]
    rows = []
    for path in images:
        above = path.parts[-3].lower() if len(path.parts) > 2 else ""
        rows.append(Row(str(path), (path.parts[-2],), above if above in SPLITS else ""))
    return rows


def rows_of_csv(text: str, key: str) -> list[Row]:
    """Rows of a CSV with the columns path, label and perhaps split. Several labels of an image stand in one row with |
    between them, or in a row each; an image without a label is left out.

    Raises:
        SettingsError: a column is missing, or an image stands in two splits.
    """
    reader = csv.DictReader(io.StringIO(text))
    columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
    if not {"path", "label"} <= columns.keys():
        raise SettingsError(key, ",".join(reader.fieldnames or ())[:100], "a CSV with the columns path and label")
    split = columns.get("split")
    found = [
        Row(row[columns["path"]], _classes(row[columns["label"]]), (row[split] or "").lower() if split else "")
        for row in reader
        if row[columns["path"]] and row[columns["label"]]
    ]
    return _joined([row for row in found if row.classes], key)


def _classes(text: str) -> tuple[str, ...]:
    """`cat` or `cat|dog`."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(BETWEEN) if part.strip()))


def _joined(rows: Sequence[Row], key: str) -> list[Row]:
    """Rows of one path with different classes become one; the same row again is the same image again."""
    of_path: dict[str, list[Row]] = {}
    for row in rows:
        of_path.setdefault(row.path, []).append(row)
    if all(len(set(same)) == 1 for same in of_path.values()):
        return list(rows)
    return [_one(same, key) for same in of_path.values()]


def _one(rows: Sequence[Row], key: str) -> Row:
    splits = {row.split for row in rows}
    if len(splits) > 1:
        wanted = f"every image in one split; {rows[0].path} is in {' and '.join(sorted(splits))}"
        raise SettingsError(key, rows[0].path, wanted)
    return Row(rows[0].path, tuple(dict.fromkeys(name for row in rows for name in row.classes)), rows[0].split)
