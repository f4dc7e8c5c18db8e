"""What Label Studio says of the backend: a line as the model's description, a tab of suspected mistakes.

Label Studio calls /health and /setup three times for every change of an ML backend's row, so this is done when a round
starts, a few times while it trains, and when it ends. Whoever looks at the row meanwhile, a person at the project's
settings for one, makes Label Studio save all of it as it was before those calls (`update_state` in ml/models.py): at
the end of a round the line is looked at again, since it stays until the next. Nothing here may end a round: what Label
Studio refuses is logged.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lplgrad_backend.errors import LabelStudioError
from lplgrad_backend.history import History
from lplgrad_backend.labelstudio import LabelStudio, backend_fields, tab_fields
from lplgrad_backend.settings import Settings
from lplgrad_backend.status import Phase

log = logging.getLogger(__name__)
TAB = "Suspected mistakes"
STEP = 0.2  # share of the training after which the line changes, if also
PACE = 5.0  # seconds have passed since it did
LOOKS = 4  # at the line of a round that ended, until it stands
ANSWERED = re.compile(r"v\d+|untrained")  # what /setup answers here, which Label Studio notes in the row
OURS = re.compile(r"(|(v\d+|no version yet), .*)")  # descriptions that were written here, or by nobody


class Notice:
    """Keeps line and tab of one project; without LPLGRAD_MANAGE_PROJECT it does nothing.

    Args:
        clock: seconds, rising.
    """

    def __init__(
        self, label_studio: LabelStudio, project: int, settings: Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._label_studio, self._project, self._settings, self._clock = label_studio, project, settings, clock
        self._training = ""  # the line while a round trains, without its share
        self._shown, self._at = 0.0, 0.0

    def show(self, history: History, *, training: bool) -> None:
        """Bring line and, at the end of a round, tab to what is known now."""
        if not self._settings.manage_project:
            return
        text = line(history, training=training)
        try:
            for _ in range(1 if training else LOOKS):
                if not self._describe(text):
                    break
            if not training:
                self._list_suspects([suspect.task for suspect in history.suspects])
        except LabelStudioError as error:
            log.warning("project %d: what annotators see could not be brought up to date: %s", self._project, error)
        else:
            self._training, self._shown, self._at = text if training else "", 0.0, self._clock()

    def follow(self, phase: Phase, done: int, total: int) -> None:
        """Bring how much of the training is done to the line, where that is much more than it says."""
        share = done / max(1, total)
        due = share >= self._shown + STEP and self._clock() >= self._at + PACE
        if not self._training or phase is not Phase.TRAINING or not due:
            return
        self._shown, self._at = share, self._clock()
        try:
            self._describe(f"{self._training} {100 * share:.0f} %")
        except LabelStudioError as error:
            self._training = ""  # not again in this round
            log.warning("project %d: how far the training is cannot be shown: %s", self._project, error)

    def _describe(self, text: str) -> bool:
        """Whether the row said something else, so that it was changed."""
        rows = self._label_studio.ml_backends(self._project)
        known = str(self._settings.backend_url).rstrip("/") if self._settings.backend_url else None
        row = own_row(rows, known)
        if row is None or row.get("description") == text or not OURS.fullmatch(row.get("description") or ""):
            return False
        fields = backend_fields(self._project, row["url"], self._settings.basic_auth)
        self._label_studio.update_ml_backend(row["id"], fields | {"description": text})
        return True

    def _list_suspects(self, tasks: Sequence[int]) -> None:
        views = self._label_studio.views(self._project)
        tab = next((row for row in views if row["data"].get("title") == TAB), None)
        filters = only(tasks)
        if tab is not None and tab["data"].get("filters") != filters:
            data = {**tab["data"], "filters": filters}  # columns and order are a person's own choice
            self._label_studio.update_view(tab["id"], {"project": self._project, "data": data})
        elif tab is None and tasks:
            if not views:  # else ours would be the only tab, and no other task could be seen
                self._label_studio.add_view(
                    {"project": self._project, "data": tab_fields("Default", EVERYTHING, hidden=())}
                )
            self._label_studio.add_view({"project": self._project, "data": tab_fields(TAB, filters)})


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
