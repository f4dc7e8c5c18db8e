"""A backend on the real Label Studio, and projects of digits that it orders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from digits_project import DigitsProject

from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.demo.dataset import Digits
from lplgrad_backend.demo.person import Person
from lplgrad_backend.demo.server import LabelStudioServer
from lplgrad_backend.labelstudio import LabelStudio

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


def settings_on(server: LabelStudioServer, folder: Path, **others: str) -> dict[str, str]:
    """Of a backend of its own, with its models in a folder and the server's account, unless the others say otherwise."""
    ours = {"LABEL_STUDIO_URL": server.url, "LABEL_STUDIO_API_KEY": server.account.token}
    return SETTINGS | ours | {"MODEL_DIR": str(folder / "models")} | others


@contextlib.contextmanager
def backend_on(server: LabelStudioServer, folder: Path, **others: str) -> Iterator[Backend]:
    """Such a backend, which ends with the block."""
    with Backend(settings_on(server, folder, **others), folder / "backend.log") as running:
        yield running


@pytest.fixture(scope="session")
def client(label_studio: LabelStudioServer) -> LabelStudio:
    """The shared Label Studio, as its owner."""
    return LabelStudio(label_studio.url, label_studio.account.token)


@pytest.fixture(scope="session")
def backend(label_studio: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend with a legacy token and without basic auth, shared by most tests."""
    with backend_on(label_studio, tmp_path_factory.mktemp("backend")) as running:
        yield running


@pytest.fixture(scope="session")
def new_project(owner: Person, digits: Digits, backend: Backend) -> Callable[[str, int], DigitsProject]:
    """Makes a project of so many digits, not connected yet to the shared backend."""

    def create(title: str, count: int = 100) -> DigitsProject:
        return DigitsProject.create(owner, title, digits.pool[:count], backend.models, digits)

    return create
