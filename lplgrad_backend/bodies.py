"""What callers send, as Label Studio writes it: read into models, from which the OpenAPI description is made, too."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from lplgrad_backend.errors import RequestError
from lplgrad_backend.labeling import project_number


def _project(value: object) -> int:
    try:
        return project_number(value)
    except RequestError as error:
        raise ValueError(str(error)) from error


ProjectNumber = Annotated[
    int,
    BeforeValidator(_project),
    WithJsonSchema({
        "description": "Number of a Label Studio project, also with the time of its creation behind it.",
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 2**53 - 1},
            {"type": "string", "pattern": r"^[1-9][0-9]{0,14}(\.[0-9]*)?$"},
        ],
    }),
]  # fmt: skip


class SetupBody(BaseModel):
    """`POST /setup`."""

    project: ProjectNumber
    label_config: str = Field(alias="schema")
    extra_params: Any = None


class Task(BaseModel):
    """One task of `POST /predict`; what else it carries is not looked at."""

    model_config = ConfigDict(extra="allow")

    id: int | None = None
    data: dict[str, Any]


class PredictBody(BaseModel):
    """`POST /predict`."""

    tasks: list[Task]
    project: ProjectNumber
    label_config: str
    params: dict[str, Any] | None = None


class WebhookBody(BaseModel):
    """`POST /webhook`: nothing but action and project is used, annotations are read from Label Studio itself."""

    action: str
    project: dict[str, Any]


class TrainBody(BaseModel):
    """`POST /train` of older Label Studio."""

    project: ProjectNumber
