"""The status page: what the worker is doing and how good it is, for a person, and the same as JSON.

facts.py reads, pages.py and plots.py say it as HTML and SVG through markup.py, resources.py answers requests. page.js asks
for the page again every few seconds and exchanges the parts that have changed.
"""

from __future__ import annotations

from typing import Any

from lplgrad_backend.dashboard.facts import Facts
from lplgrad_backend.dashboard.resources import Front, ProjectJson, ProjectPage, Static, StatusJson, Thumbnail
from lplgrad_backend.service import Service

__all__ = ["routes"]


def routes(service: Service, otherwise: Any) -> dict[str, Any]:
    """Path -> resource. `otherwise` answers `/` where no page is asked for, as Label Studio's health check does not."""
    facts = Facts(service)
    return {
        "/": Front(facts, otherwise),
        "/projects/{project}": ProjectPage(facts),
        "/projects/{project}/images/{task:int}": Thumbnail(facts, service),
        "/api/status": StatusJson(facts),
        "/api/projects/{project}": ProjectJson(facts),
        "/static/{name}": Static(),
    }
