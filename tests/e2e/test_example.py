"""The demo's project in a Label Studio and beside a backend that run already, as `example` makes it in containers."""

from __future__ import annotations

import pytest
from conftest import SETTINGS, UPDATES_PER_ROUND

from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.demo.example import make_example
from lplgrad_backend.demo.person import Person
from lplgrad_backend.demo.run import POOL_TITLE
from lplgrad_backend.demo.server import LabelStudioServer
from lplgrad_backend.publication import SAMPLING
from lplgrad_backend.settings import read_settings

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
DIGITS = 60


def test_it_ends_in_an_ordered_queue_and_may_be_repeated(
    label_studio: LabelStudioServer, backend: Backend, owner: Person
) -> None:
    account = label_studio.account
    settings = read_settings(
        SETTINGS
        | {
            "LABEL_STUDIO_URL": label_studio.url,
            "LABEL_STUDIO_API_KEY": account.token,
            "LPLGRAD_BACKEND_URL": backend.url,
            "MODEL_DIR": str(backend.models),
        },
        None,
    )
    for _ in range(2):
        make_example(settings, account.email, account.password, UPDATES_PER_ROUND, pool=DIGITS)
    found = [row for row in owner.call("GET", "/api/projects/")["results"] if row["title"] == POOL_TITLE]
    [row] = found
    assert row["model_version"] == "v1"
    assert row["sampling"] == SAMPLING
    assert row["task_number"] == DIGITS
    assert row["total_annotations_number"] == UPDATES_PER_ROUND
