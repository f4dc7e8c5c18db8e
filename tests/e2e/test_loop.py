"""Label, and the queue reorders itself: the whole loop, on the real Label Studio."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeGuard

import numpy as np
import pytest
import reference
import torch
from conftest import UPDATES_PER_ROUND
from digits_project import DigitsProject
from numpy.typing import NDArray

from lplgrad_backend.connection import connect
from lplgrad_backend.demo.backend import Backend
from lplgrad_backend.demo.dataset import CLASSES
from lplgrad_backend.errors import ImageError
from lplgrad_backend.images import ImageLimits, Images
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.lplgrad.gradnorm import gradient_norms
from lplgrad_backend.publication import SAMPLING
from lplgrad_backend.scoring import as_batch, load_network
from lplgrad_backend.store import Store

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
KINK = 0.02  # share of a gradient norm that float32 may be off by in an image that lies on a kink


@pytest.fixture(scope="module")
def project(client: LabelStudio, backend: Backend, new_project: Callable[[str, int], DigitsProject]) -> DigitsProject:
    """Connected with `connect`, labelled until the first round is published."""
    project = new_project("The loop", 100)
    connect(client, project.number, backend.url, title="LPLgrad")
    assert project.version() is None
    project.label(UPDATES_PER_ROUND - 1)
    assert project.status().rounds == 0
    project.label(1)
    project.wait_for_version("v1")
    return project


@pytest.fixture(scope="module")
def norms(project: DigitsProject, client: LabelStudio, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Gradient norm of every unlabelled task's image: the saved version, one image at a time, in float64.

    The rules that scored it give the same to nine digits, when they too may count in float64.
    """
    manifest = project.manifest("v1")
    network = load_network(manifest, Store(project.models).weights_path(project.number, "v1"))
    tasks = {task["id"]: task["data"]["image"] for task in project.tasks() if task["total_annotations"] == 0}
    images = Images(tmp_path_factory.mktemp("images"), client, ImageLimits())
    pixels = [one for one in images.load_many(list(tasks.items()), network.architecture.side) if is_pixels(one)]
    assert len(pixels) == len(tasks)
    batch = as_batch(pixels).float() / 255
    found = reference.gradient_norms(network.main, batch)
    ruled = gradient_norms(copy.deepcopy(network.main).double(), batch.double())
    assert torch.allclose(ruled, found, rtol=1e-9, atol=1e-12 * float(found.max()))
    return dict(zip(tasks, found.tolist(), strict=True))


def is_pixels(one: NDArray[np.uint8] | ImageError) -> TypeGuard[NDArray[np.uint8]]:
    return not isinstance(one, ImageError)


def test_every_unlabelled_task_has_its_prediction(project: DigitsProject) -> None:
    predictions = project.predictions("v1")
    assert len(project.unlabelled()) == 100 - UPDATES_PER_ROUND
    assert project.unlabelled() <= predictions.keys()
    for prediction in predictions.values():
        assert 0 < prediction["score"] < 1
        [region] = prediction["result"]
        [choice] = region["value"]["choices"]
        assert choice in CLASSES
        assert 0 < region["score"] <= 1


def test_label_studio_is_pointed_at_the_version(project: DigitsProject) -> None:
    assert project.row()["model_version"] == "v1"
    assert project.row()["sampling"] == SAMPLING


def test_scores_are_the_oracles_gradient_norms(project: DigitsProject, norms: dict[int, float]) -> None:
    predictions, scale = project.predictions("v1"), project.manifest("v1").scale
    tasks = sorted(project.unlabelled())
    published = np.array([predictions[task]["score"] for task in tasks])
    wanted = np.array([norms[task] for task in tasks])
    away = np.abs(scale * (1 - published) / published - wanted)
    exact = away <= 1e-3 * wanted + 1e-6 * wanted.max()
    # a ReLU whose input is 0 but for the last bits of float32 passes a gradient in the one and not in the other, so that an
    # image in some runs is off by up to a percent; that it is float32 and no rule, the fixture has shown
    assert exact.mean() >= 0.95
    assert (away <= KINK * wanted + 1e-6 * wanted.max()).all()
    assert np.median(published) == pytest.approx(0.5, abs=0.02)


def test_the_next_tasks_come_in_descending_gradient_norm(project: DigitsProject, norms: dict[int, float]) -> None:
    order = project.order("v1")
    served = project.label(UPDATES_PER_ROUND - 1)
    assert served == order[: UPDATES_PER_ROUND - 1]
    served_norms = np.array([norms[task] for task in served])
    assert (np.diff(served_norms) <= KINK * served_norms[:-1]).all()
    rest = max(norms[task] for task in order[UPDATES_PER_ROUND - 1 :])
    assert served_norms.min() >= rest * (1 - KINK)


def test_the_next_round_reorders_what_is_left(project: DigitsProject) -> None:
    project.label(1)
    project.wait_for_version("v2")
    order = project.order("v2")
    assert len(order) == 100 - 2 * UPDATES_PER_ROUND
    assert project.label(3) == order[:3]
    assert sum(project.manifest("v2").labels.values()) == 2 * UPDATES_PER_ROUND
