"""Stand-in for label-studio-ml 2.x: the same names, signatures and properties without setters, and nothing behind them."""

from __future__ import annotations

from abc import ABC
from typing import Any


class LabelStudioMLBase(ABC):
    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        raise AssertionError("needs a cache and an SDK that are not here")

    @property
    def label_config(self) -> str:
        raise AssertionError("reads the cache")

    @property
    def extra_params(self) -> dict[str, Any]:
        raise AssertionError("reads the cache")

    @property
    def model_version(self) -> str:
        raise AssertionError("reads the cache")

    def get(self, key: str) -> str:
        raise AssertionError("reads the cache")

    def set(self, key: str, value: str) -> None:
        raise AssertionError("writes the cache")

    def set_extra_params(self, extra_params: str) -> None:
        self.set("extra_params", extra_params)

    def predict(self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        raise AssertionError("to be overridden")

    def fit(self, event: str, data: dict[str, Any], **additional_params: Any) -> Any:
        raise AssertionError("to be overridden")
