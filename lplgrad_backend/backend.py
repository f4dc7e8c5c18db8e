"""`LPLGradBackend`: the `predict` and `fit` hooks that Label Studio's ML backend library knows.

The library exists in two lines that call a model differently. Both are served by one class:

    label-studio-ml 1.0.9   Model(label_config=, train_output=, **kwargs)   predict(tasks, **kwargs)
                            fit(tasks, workdir, event=, data=, **kwargs)
    label-studio-ml 2.x     Model(project_id=, label_config=)               predict(tasks, context=None, **kwargs)
                            fit(event, data, **kwargs)

`fit` never trains inside the call, which would hold up the annotator: it asks the worker to look. The key-value store of
2.x (`get`, `set`) is answered from the versions on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from label_studio_ml.model import LabelStudioMLBase

from lplgrad_backend.errors import RequestError
from lplgrad_backend.labeling import Labeling, named_control, parse_label_config, project_number
from lplgrad_backend.service import Service, service_of_environment
from lplgrad_backend.status import Mark

# What each of Label Studio's events asks the worker to look at; a created annotation shows in the project's own counter,
# so that it needs no mark (label-studio-facts 3).
MARKS: Mapping[str, tuple[Mark, ...]] = {
    "ANNOTATION_CREATED": (),
    "ANNOTATIONS_CREATED": (),
    "ANNOTATION_UPDATED": (Mark.ANNOTATIONS,),
    "ANNOTATION_DELETED": (Mark.ANNOTATIONS, Mark.TASKS),
    "ANNOTATIONS_DELETED": (Mark.ANNOTATIONS, Mark.TASKS),
    "TASKS_CREATED": (Mark.ANNOTATIONS, Mark.TASKS),
    "TASKS_DELETED": (Mark.ANNOTATIONS,),
    "PROJECT_UPDATED": (Mark.ANNOTATIONS,),
    "START_TRAINING": (Mark.ROUND,),
}


class LPLGradBackend(LabelStudioMLBase):  # type: ignore[misc]
    """One project's model, for the length of a request. Keeps nothing: everything is in `service`.

    Args:
        project_id: Label Studio's id, also in its form "2.1795340157".
        label_config: the project's label config; needed by `predict`.
        service: the running backend; by default the one that the environment describes.
    """

    # attributes here, where 2.x has properties without a setter
    project_id: object = None
    label_config: str | None = None

    def __init__(
        self,
        project_id: object = None,
        label_config: str | None = None,
        train_output: object = None,
        service: Service | None = None,
        **kwargs: Any,
    ) -> None:
        # the base class is not initialised: its two lines want different arguments and parse label configs that we refuse
        self.project_id = project_id
        self.label_config = label_config
        self.service = service or service_of_environment()

    @property
    def model_version(self) -> str:
        """Name of the newest version, or "untrained"."""
        return self.service.predictor.version(project_number(self.project_id))

    def get(self, key: str) -> str | None:
        """2.x asks for "model_version" this way."""
        return self.model_version if key == "model_version" else None

    def set(self, key: str, value: object) -> None:
        """2.x hands over "extra_params" this way; anything else needs no keeping."""
        if key == "extra_params":
            self.service.statuses.remember(project_number(self.project_id), named_control(value))

    def predict(
        self, tasks: Sequence[Mapping[str, Any]], context: object = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """One prediction per task, in order; the lowest score is the most informative image.

        Raises:
            RequestError: the project cannot be told from the tasks.
            LabelConfigError: the label config cannot be learned.
        """
        if not tasks:
            return []
        project = self._project(tasks[0], kwargs)
        labeling = self._labeling(project)
        return self.service.predictor.predict(project, labeling, tasks)

    def fit(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Ask the worker to look at the project; returns at once.

        Raises:
            RequestError: event or project cannot be told from the arguments.
        """
        event, data = _event_and_data(args, kwargs)
        project = self._project(data, kwargs)
        if event not in MARKS:
            raise RequestError(f"Unknown event {event!r}; known are {', '.join(MARKS)}.")
        if event == "PROJECT_UPDATED" and self._is_known(project, data):
            return {"model_version": self.service.predictor.version(project)}
        self.service.ask(project, *MARKS[event])
        return {"model_version": self.service.predictor.version(project)}

    def _is_known(self, project: int, data: Mapping[str, Any]) -> bool:
        """Whether the event changes nothing for the newest version: our own PATCH of the project comes back like this."""
        newest = self.service.store.newest(project)
        config = _mapping(data.get("project")).get("label_config")
        if newest is None or not isinstance(config, str):
            return False
        return parse_label_config(config, self.service.statuses.control(project)).reads_like(newest.labeling)

    def _labeling(self, project: int) -> Labeling:
        return parse_label_config(self.label_config or "", self.service.statuses.control(project))

    def _project(self, data: Mapping[str, Any], kwargs: Mapping[str, Any]) -> int:
        for candidate in (self.project_id, data.get("project"), kwargs.get("project"), kwargs.get("project_id")):
            if candidate is not None:
                return project_number(candidate)
        raise RequestError("The project is missing: give project_id, or tasks that name their project.")


def _event_and_data(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """2.x gives (event, data), 1.0.9 gives (tasks, workdir) with event and data by keyword, or no event for /train."""
    if args and isinstance(args[0], str):
        data = args[1] if len(args) > 1 else kwargs.get("data")
        return args[0], _mapping(data)
    return str(kwargs.get("event") or "START_TRAINING"), _mapping(kwargs.get("data"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
