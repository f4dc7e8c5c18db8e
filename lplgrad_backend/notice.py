"""What annotators see of the backend inside Label Studio: a line on the model's card, a tab of suspected mistakes.

Label Studio calls /health and /setup three times for every change of an ML backend's row, so this is done when a round
starts and when it ends. Nothing here may end a round: what Label Studio refuses is logged.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lplgrad_backend.errors import LabelStudioError
from lplgrad_backend.history import History
from lplgrad_backend.labelstudio import LabelStudio, backend_fields
from lplgrad_backend.settings import Settings

log = logging.getLogger(__name__)
TAB = "Suspected mistakes"
ANSWERED = re.compile(r"v\d+|untrained")  # what /setup answers here, which Label Studio notes in the row
OURS = re.compile(r"(|(v\d+|no version yet), .*)")  # descriptions that were written here, or by nobody


class Notice:
    """Keeps line and tab of one project; without LPLGRAD_MANAGE_PROJECT it does nothing."""

    def __init__(self, label_studio: LabelStudio, project: int, settings: Settings) -> None:
        self._label_studio, self._project, self._settings = label_studio, project, settings

    def show(self, history: History, *, training: bool) -> None:
        """Bring line and, at the end of a round, tab to what is known now."""
        if not self._settings.manage_project:
            return
        try:
            self._describe(line(history, training=training))
            if not training:
                self._list_suspects([suspect.task for suspect in history.suspects])
        except LabelStudioError as error:
            log.warning("project %d: what annotators see could not be brought up to date: %s", self._project, error)

    def _describe(self, text: str) -> None:
        rows = self._label_studio.ml_backends(self._project)
        known = str(self._settings.backend_url).rstrip("/") if self._settings.backend_url else None
        row = own_row(rows, known)
        if row is None or row.get("description") == text or not OURS.fullmatch(row.get("description") or ""):
            return
        fields = backend_fields(self._project, row["url"], self._settings.basic_auth)
        self._label_studio.update_ml_backend(row["id"], fields | {"description": text})

    def _list_suspects(self, tasks: Sequence[int]) -> None:
        views = self._label_studio.views(self._project)
        tab = next((row for row in views if row["data"].get("title") == TAB), None)
        filters = only(tasks)
        if tab is not None and tab["data"].get("filters") != filters:
            data = {**tab["data"], "filters": filters}  # columns and order are a person's own choice
            self._label_studio.update_view(tab["id"], {"project": self._project, "data": data})
        elif tab is None and tasks:
            if not views:  # else ours would be the only tab, and no other task could be seen
                self._label_studio.add_view({"project": self._project, "data": _view("Default", EVERYTHING)})
            self._label_studio.add_view({"project": self._project, "data": _view(TAB, filters)})


EVERYTHING: dict[str, Any] = {"conjunction": "and", "items": []}


def line(history: History, *, training: bool) -> str:
    """Such as "v12, 340 labels, 91 % agreement, training"."""
    newest = history.newest
    parts = ["no version yet", "0 labels"] if newest is None else [newest.version, f"{newest.images} labels"]
    judged = next((record for record in reversed(history.versions) if record.compared), None)
    if judged is not None:
        parts.append(f"{judged.agreed / judged.compared:.0%}".replace("%", " %") + " agreement")
    return ", ".join([*parts, "training"] if training else parts)


def own_row(rows: Iterable[Mapping[str, Any]], url: str | None) -> Mapping[str, Any] | None:
    """This backend's row: the one with its address; where that is not set, the only one, if it answers like this one."""
    listed = list(rows)
    if url is not None:
        return next((row for row in listed if row["url"].rstrip("/") == url), None)
    alone = len(listed) == 1 and ANSWERED.fullmatch(listed[0].get("model_version") or "")
    return listed[0] if alone else None


def only(tasks: Iterable[int]) -> dict[str, Any]:
    """Data Manager filters that show these tasks alone; task 0, which nobody has, stands for none."""
    items = [
        {"filter": "filter:tasks:id", "operator": "equal", "type": "Number", "value": task} for task in (tasks or [0])
    ]
    return {"conjunction": "or", "items": items}


def _view(title: str, filters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": title,
        "type": "list",
        "target": "tasks",
        "ordering": [],
        "filters": filters,
        "hiddenColumns": {"explore": [], "labeling": []},
        "columnsWidth": {},
        "columnsDisplayType": {},
        "gridWidth": 4,
    }
