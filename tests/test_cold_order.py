"""The order before a network is trained: by what images look like, or what pretrained weights see in them."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from redis_server import local_redis
from small_versions import SIDE, MadeImages, made
from versions import LABELING

from lplgrad_backend.cold_order import TYPICALITY, order_cold
from lplgrad_backend.errors import NotLearnable
from lplgrad_backend.images import Images
from lplgrad_backend.labeling import Example
from lplgrad_backend.lplgrad.cold_start import cold_queue, simple_features
from lplgrad_backend.rounds import SCORES, Order, Outcome, PoolTask
from lplgrad_backend.scoring import as_batch
from lplgrad_backend.settings import read_settings
from lplgrad_backend.shared_scoring import Sharing, help_out
from lplgrad_backend.status import Phase
from lplgrad_backend.store import PoolScores, read_scores

POOL = [PoolTask(task=number, uri=f"/{number}.png") for number in range(11, 31)]
LABELLED = [Example(1, "/1.png", (1.0, 0.0)), Example(2, "/broken.png", (0.0, 1.0))]


def order(folder: Path, pool: list[PoolTask] = POOL, **environ: str) -> tuple[Outcome, PoolScores]:
    asked = Order(project=1, labeling=LABELING, examples=LABELLED, pool=pool, cold=True)
    told: list[tuple[Phase, int, int]] = []
    settings = read_settings({"MODEL_DIR": str(folder), **environ}, None)
    images = cast(Images, MadeImages())
    outcome = order_cold(asked, folder, settings, images, lambda *news: told.append(news))
    assert told[-1] == (Phase.SCORING, len(pool), len(pool))
    return outcome, read_scores(folder / SCORES)


def test_without_weights_images_are_compared_by_colours_and_edges(tmp_path: Path) -> None:
    outcome, scores = order(tmp_path)
    assert (outcome.ordered_by, outcome.recipe_reason) == (TYPICALITY, "colours and edges")
    pool = simple_features(as_batch([made(entry.uri) for entry in POOL]))
    wanted = cold_queue(pool, simple_features(as_batch([made("/1.png")])), 0)
    assert scores.scores.argsort().tolist() == wanted.positions.tolist()
    assert (np.diff(np.sort(scores.scores)) > 0).all() and 0 < scores.scores.min() < scores.scores.max() < 1
    assert scores.tasks.tolist() == [entry.task for entry in POOL]
    assert outcome.warnings == [] and not (tmp_path / "weights.safetensors").exists()


def test_with_weights_by_their_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5(weights=None)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "some.safetensors")
    outcome, scores = order(
        tmp_path,
        LPLGRAD_BACKBONE="shufflenet_v2_x0_5",
        LPLGRAD_WEIGHTS=str(tmp_path / "some.safetensors"),
        LPLGRAD_IMAGE_SIZE=str(2 * SIDE),
    )
    assert outcome.recipe_reason == "features of shufflenet_v2_x0_5's pretrained weights"
    assert (np.diff(np.sort(scores.scores)) > 0).all()
    _, plain = order(tmp_path)
    assert scores.scores.argsort().tolist() != plain.scores.argsort().tolist()


def test_on_a_shared_queue_others_look_with_the_same_weights(tmp_path: Path) -> None:
    """The one who is invited leaves in the cache what the owner then finds there."""
    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5(weights=None)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "some.safetensors")
    weights = {
        "LPLGRAD_BACKBONE": "shufflenet_v2_x0_5", "LPLGRAD_WEIGHTS": str(tmp_path / "some.safetensors"),
        "LPLGRAD_IMAGE_SIZE": str(2 * SIDE), "LPLGRAD_DEVICE": "cpu",
    }  # fmt: skip
    pool = [PoolTask(task=number, uri=f"/{number}.png") for number in range(11, 111)]
    _, alone = order(tmp_path, pool, **weights)
    folder = tmp_path / "scratch" / "1-round"
    folder.mkdir(parents=True)
    helped: list[dict[str, float]] = []
    with local_redis(tmp_path) as url:
        environ = {"MODEL_DIR": str(tmp_path), "LPLGRAD_QUEUE_URL": url, "LPLGRAD_SHARD_SIZE": "64"}
        settings, images = read_settings({**environ, **weights}, None), MadeImages()
        asked = Order(project=1, labeling=LABELING, examples=LABELLED, pool=pool, cold=True)

        def invite(count: int) -> None:
            help_ = Order(project=1, labeling=LABELING, pool=[], helps=folder.name)
            helped.append(help_out(help_, settings, cast(Images, images)).metrics)
            images.asked.clear()

        sharing = Sharing(folder, asked, settings, "head", invite)
        order_cold(asked, folder, settings, cast(Images, images), lambda *news: None, sharing)
    assert helped == [{"shards": 2.0}]
    assert [uri for _, uri in images.asked] == ["/1.png", "/broken.png"], "the labelled ones alone"
    shared = read_scores(folder / SCORES)
    assert np.array_equal(shared.scores, alone.scores) and np.array_equal(shared.tasks, alone.tasks)


def test_an_unreadable_image_costs_itself_alone(tmp_path: Path) -> None:
    outcome, scores = order(tmp_path, [*POOL, PoolTask(task=5, uri="/broken.png")])
    assert outcome.unreadable.keys() == {5}
    assert scores.tasks.tolist() == [entry.task for entry in POOL]


def test_nothing_to_order(tmp_path: Path) -> None:
    with pytest.raises(NotLearnable, match="None of the 1 unlabelled images"):
        order(tmp_path, [PoolTask(task=5, uri="/broken.png")])
