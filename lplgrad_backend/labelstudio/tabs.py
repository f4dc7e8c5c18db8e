"""Data Manager tabs as Label Studio keeps them, with the columns that a person wants to see (data_manager/functions.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SELDOM_READ = tuple(
    f"tasks:{column}"
    for column in (
        "inner_id", "completed_at", "total_annotations", "cancelled_annotations", "total_predictions", "annotators",
        "annotations_ids", "predictions_model_versions", "file_upload", "storage_filename", "created_at", "updated_at",
        "updated_by", "avg_lead_time", "draft_exists",
    )
)  # fmt: skip
"""What is hidden, so that image, score, labels and predictions stand side by side on a screen."""


def tab_fields(
    title: str, filters: Mapping[str, Any], ordering: Sequence[str] = (), hidden: Sequence[str] = SELDOM_READ
) -> dict[str, Any]:
    """The `data` of a tab.

    Args:
        filters: as Label Studio writes them: `{"conjunction": "and", "items": [...]}`.
        ordering: columns, such as "tasks:predictions_score", "-" before one that falls.
        hidden: columns that are not shown.
    """
    return {
        "title": title,
        "type": "list",
        "target": "tasks",
        "ordering": list(ordering),
        "filters": dict(filters),
        "hiddenColumns": {"explore": list(hidden), "labeling": list(hidden)},
        "columnsWidth": {},
        "columnsDisplayType": {},
        "gridWidth": 4,
    }
