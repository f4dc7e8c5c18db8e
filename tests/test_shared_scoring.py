"""A pool that its round's owner and helpers score has, to the last bit, the results of one that is scored in one piece."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import safetensors.torch
import torch
from redis_server import local_redis
from small_versions import MadeImages, small_network
from versions import LABELING

from lplgrad_backend.errors import ImageError, StoreError
from lplgrad_backend.frozen_features import FrozenFeatures
from lplgrad_backend.images import Images
from lplgrad_backend.lplgrad.gradnorm.entropy import TEMPERATURES
from lplgrad_backend.rounds import WEIGHTS, Order
from lplgrad_backend.scoring import Measured, Scorer
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.shared_scoring import Sharing, help_out, measured_bytes, open_board, read_measured
from lplgrad_backend.sight import Sight

TASKS = [(number, "/broken.png" if number % 50 == 9 else f"/{number}.png") for number in range(1, 300)]
ROUND = "1-round"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    folder = tmp_path_factory.mktemp("models")
    (folder / "scratch" / ROUND).mkdir(parents=True)
    safetensors.torch.save_file(small_network().state_dict(), folder / "scratch" / ROUND / WEIGHTS)
    with local_redis(folder) as url:
        known = {
            "MODEL_DIR": str(folder),
            "LPLGRAD_QUEUE_URL": url,
            "LPLGRAD_SHARD_SIZE": "50",
            "LPLGRAD_DEVICE": "cpu",
        }
        yield read_settings(known, None)


ORDER = Order(project=1, labeling=LABELING, pool=[])


class Round:
    """A round's scoring, with helpers that come when they are invited and are waited for before the owner begins."""

    def __init__(self, settings: Settings, images: MadeImages, helpers: int) -> None:
        self.settings, self.images, self.helpers = settings, cast(Images, images), helpers
        self.invited: list[int] = []
        self.helped: list[float] = []

    def invite(self, count: int) -> None:
        self.invited.append(count)
        threads = [threading.Thread(target=self._help) for _ in range(self.helpers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _help(self) -> None:
        order = ORDER.model_copy(update={"helps": ROUND})
        self.helped.append(help_out(order, self.settings, self.images).metrics["shards"])

    @property
    def sharing(self) -> Sharing:
        return Sharing(self.settings.model_dir / "scratch" / ROUND, ORDER, self.settings, "all", self.invite)


def same(one: Measured | ImageError, other: Measured | ImageError) -> bool:
    if isinstance(one, ImageError) or isinstance(other, ImageError):
        return isinstance(one, ImageError) and isinstance(other, ImageError) and one.reason == other.reason
    assert one.answers is not None and other.answers is not None
    return (
        one.norm == other.norm
        and one.predicted_loss == other.predicted_loss
        and np.array_equal(one.probabilities, other.probabilities)
        and all(
            torch.equal(getattr(one.answers, name), getattr(other.answers, name))
            for name in ("logits", "features", "predicted_losses", "ladder")
        )
    )


@pytest.mark.parametrize("helpers", [0, 1, 2])
def test_measured_by_several_is_measured_in_one_piece(settings: Settings, helpers: int) -> None:
    scorer = Scorer(small_network(), for_ordering=True, temperatures=TEMPERATURES, confidence=1.5)
    alone = list(scorer.measure(cast(Images, MadeImages()), TASKS))
    round_, told = Round(settings, MadeImages(), helpers), list[int]()
    shared = round_.sharing.measure(round_.images, scorer, TASKS, told.append)
    assert len(shared) == len(alone) == len(TASKS)
    assert all(same(one, other) for one, other in zip(shared, alone, strict=True))
    assert round_.invited == [4]
    assert sum(round_.helped) == (5 if helpers else 0), "shards of 64, since a batch has as many"
    assert told[-1] == len(TASKS) and told == sorted(told)


@pytest.mark.parametrize("helpers", [0, 1])
def test_what_a_frozen_network_sees_comes_from_the_cache_that_all_share(settings: Settings, helpers: int) -> None:
    network = small_network()
    alone = FrozenFeatures(network, cast(Images, MadeImages())).see(TASKS)
    images = MadeImages()
    round_ = Round(settings, images, helpers)
    shared = round_.sharing.see(FrozenFeatures(network, cast(Images, images)), network, TASKS, lambda done: None)
    assert (shared.used, shared.unreadable) == (alone.used, alone.unreadable)
    assert torch.equal(shared.looked.features, alone.looked.features)
    assert torch.equal(shared.looked.logits, alone.looked.logits)
    assert all(torch.equal(*pair) for pair in zip(shared.looked.pooled, alone.looked.pooled, strict=True))
    assert shared.computed == (6 if helpers else len(TASKS)), "those that cannot be read are asked for again"


def test_a_pool_of_one_shard_is_nobody_elses(settings: Settings) -> None:
    round_ = Round(settings, MadeImages(), 1)
    sight = Sight(small_network(), round_.images, None, sharing=round_.sharing)
    found = sight.pool(TASKS[:64], (1.0,), 1.0, lambda done: None)
    assert len(found.tasks) == 62 and round_.invited == []
    assert not open_board(settings, ROUND).is_open


def test_a_helper_of_a_round_that_is_over_says_so(settings: Settings) -> None:
    for name in (ROUND, "1-never"):
        with pytest.raises(StoreError, match="No more of"):
            help_out(ORDER.model_copy(update={"helps": name}), settings, cast(Images, MadeImages()))


def test_a_helper_without_the_network_says_so(settings: Settings) -> None:
    round_ = Round(settings, MadeImages(), 0)
    weights = round_.sharing.folder / WEIGHTS
    content = weights.read_bytes()

    def half(count: int) -> None:
        weights.write_bytes(content[: len(content) // 2])
        with pytest.raises(StoreError, match="network of 1-round cannot be used"):
            help_out(ORDER.model_copy(update={"helps": ROUND}), settings, round_.images)

    sharing = Sharing(round_.sharing.folder, ORDER, settings, "all", half)
    try:
        scorer = Scorer(small_network(), for_ordering=True)
        assert len(sharing.measure(round_.images, scorer, TASKS[:70], lambda done: None)) == 70
    finally:
        weights.write_bytes(content)


def test_what_is_not_whole_on_disk_is_scored_again(settings: Settings, tmp_path: Path) -> None:
    round_ = Round(settings, MadeImages(), 0)
    scorer = Scorer(small_network(), for_ordering=True)
    plan = round_.sharing._plan(scorer.network, TASKS, 64, (1.0,), 1.0)
    found = list(scorer.measure(round_.images, plan.part(0)))
    file = tmp_path / "0.safetensors"
    file.write_bytes(measured_bytes(found))
    again = read_measured(plan, 0, file)
    assert again is not None and all(same(*pair) for pair in zip(again, found, strict=True))
    for content in (b"", measured_bytes(found)[:-9], measured_bytes(found[:-1]), safetensors.torch.save({})):
        file.write_bytes(content)
        assert read_measured(plan, 0, file) is None
    nothing = list(scorer.measure(round_.images, [(1, "/broken.png")] * 64))
    file.write_bytes(measured_bytes(nothing))
    again = read_measured(plan, 0, file)
    assert again is not None and all(same(*pair) for pair in zip(again, nothing, strict=True))
