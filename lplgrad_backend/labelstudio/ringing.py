"""A webhook request as Label Studio sends it, timed: to see whether the backend would hear one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import requests

WEBHOOK_SECONDS = 1.0  # what Label Studio waits for an answer (WEBHOOK_TIMEOUT)
PATIENCE = 3 * WEBHOOK_SECONDS  # so that too slow can be told from silent


@dataclass(frozen=True)
class Rung:
    """How a webhook was answered; `status` None means that nobody answered."""

    status: int | None
    seconds: float

    @property
    def heard(self) -> bool:
        """Whether it was taken."""
        return self.status is not None and self.status < 400


def ring(url: str, headers: Mapping[str, str], project: int, label_config: str) -> Rung:
    """Send the event that changes nothing: the project was updated, and its label config is what it was.

    Label Studio's webhooks follow no proxy rules of this machine's user, so none apply here.
    """
    body = {"action": "PROJECT_UPDATED", "project": {"id": project, "label_config": label_config}}
    started = time.perf_counter()
    with requests.Session() as session:
        session.trust_env = False
        try:
            status = session.post(url, json=body, headers=dict(headers), timeout=PATIENCE).status_code
        except (requests.RequestException, ValueError):
            return Rung(None, time.perf_counter() - started)
    return Rung(status, time.perf_counter() - started)
