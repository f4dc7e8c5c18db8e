"""Fixtures that several test modules share: a real Label Studio, and digits to label."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from lplgrad_backend.demo.dataset import Digits, write_digits
from lplgrad_backend.demo.person import Person
from lplgrad_backend.demo.server import LabelStudioServer
from lplgrad_backend.logs import about

# A property holds however busy the machine is.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """A shell starts what runs behind it deaf to Ctrl-C, and the programs that tests interrupt would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tests compare numbers and share two cores with servers: more threads change the first and disturb the second."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_log_context() -> Iterator[None]:
    """What a test notes of its log lines ends with it, so that the order of tests makes no difference."""
    with about():
        yield


@pytest.fixture(scope="session")
def label_studio_python() -> Path:
    """Interpreter of the virtual environment in which Label Studio is installed."""
    python = Path(__file__).parent.parent / ".label-studio/venv/bin/python"
    if not python.exists():
        pytest.fail("Label Studio is not installed here. Run the tests with `make test`, or once `make demo`.")
    return python


@pytest.fixture(scope="session")
def migrated_folder(label_studio_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a Label Studio that was started once and stopped; copies of it start in a few seconds."""
    folder = tmp_path_factory.mktemp("label-studio") / "migrated"
    LabelStudioServer(label_studio_python, folder).stop()
    return folder


@pytest.fixture(scope="session")
def label_studio(
    label_studio_python: Path, migrated_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LabelStudioServer]:
    """A running Label Studio that lets backends on local addresses in. Tests share it and make their own projects."""
    folder = tmp_path_factory.mktemp("label-studio") / "shared"
    shutil.copytree(migrated_folder, folder)
    with LabelStudioServer(label_studio_python, folder) as server:
        yield server


@pytest.fixture(scope="session")
def owner(label_studio: LabelStudioServer) -> Iterator[Person]:
    """The first user of the shared Label Studio."""
    with Person(label_studio.url, label_studio.account.email, label_studio.account.password) as person:
        yield person


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """250 digits to label and 100 held out, 8 x 8 pixels."""
    return write_digits(tmp_path_factory.mktemp("digits"), pool=250, held_out=100)
