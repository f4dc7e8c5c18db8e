"""A backend on the real Label Studio, and projects of digits that it orders."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from digits_project import DigitsProject

from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.demo.dataset import Digits
from lplgrad_backend.demo.person import Person
from lplgrad_backend.demo.server import LabelStudioServer

UPDATES_PER_ROUND = 10

# Events must be enough: between the look at the start and the end of the tests there is no sweep.
SETTINGS = {
    "START_TRAINING_EACH_N_UPDATES": str(UPDATES_PER_ROUND),
    "LPLGRAD_SWEEP_SECONDS": "3600",
    "LPLGRAD_THREADS": "1",
    # an order that an oracle can check image by image: the paper's
    "LPLGRAD_STRATEGY": "lplgrad",
    "LPLGRAD_STRICT": "true",
    "LPLGRAD_RANDOM_SHARE": "0",
}


@pytest.fixture(scope="session")
def backend(label_studio: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend with a legacy token and without basic auth, shared by most tests."""
    folder = tmp_path_factory.mktemp("backend")
    settings = SETTINGS | {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.account.token,
        "MODEL_DIR": str(folder / "models"),
    }
    with Backend(settings, folder / "backend.log") as running:
        yield running


@pytest.fixture(scope="session")
def new_project(owner: Person, digits: Digits, backend: Backend) -> Callable[[str, int], DigitsProject]:
    """Makes a project of so many digits, not connected yet to the shared backend."""

    def create(title: str, count: int = 100) -> DigitsProject:
        return DigitsProject.create(owner, title, digits.pool[:count], backend.models, digits)

    return create
