"""What a frozen network says of images, looked at once."""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import pytest
import torch
from small_versions import ARCHITECTURE, SIDE, MadeImages, made, small_network

from lplgrad_backend.frozen_features import FrozenFeatures, frozen_digest
from lplgrad_backend.images import Images
from lplgrad_backend.lplgrad.network import Architecture
from lplgrad_backend.lplgrad.training import look_at
from lplgrad_backend.scoring import as_batch

TASKS = [(number, f"/{number}.png") for number in range(1, 71)]


def test_it_sees_what_the_network_says() -> None:
    network = small_network()
    told: list[int] = []
    seen = FrozenFeatures(network, cast(Images, MadeImages())).see(TASKS, told.append)
    looked = look_at(network, as_batch([made(uri, SIDE) for _, uri in TASKS]))
    torch.testing.assert_close(seen.looked.features, looked.features)
    for level, wanted in zip(seen.looked.pooled, looked.pooled, strict=True):
        torch.testing.assert_close(level, wanted)
    assert (seen.used, seen.unreadable, seen.computed, told) == (list(range(70)), {}, 70, [64, 70])


def test_what_it_saw_before_is_not_loaded_again() -> None:
    images = MadeImages()
    frozen = FrozenFeatures(small_network(), cast(Images, images))
    first = frozen.see(TASKS[:40])
    images.asked.clear()
    second = FrozenFeatures(small_network(), cast(Images, images)).see(TASKS)
    assert images.asked == TASKS[40:] and second.computed == 30
    torch.testing.assert_close(second.looked.features[:40], first.looked.features, rtol=0, atol=0)


def test_an_image_that_cannot_be_used_costs_itself_alone() -> None:
    images = MadeImages()
    tasks = [TASKS[0], (90, "/broken.png"), TASKS[1]]
    frozen = FrozenFeatures(small_network(), cast(Images, images))
    seen = frozen.see(tasks)
    assert (seen.used, seen.unreadable, len(seen.looked.features)) == ([0, 2], {90: "it is broken."}, 2)
    [key] = [key for key in images.kept if key[0] == TASKS[1][1]]
    images.kept[key] = np.full_like(images.kept[key], np.nan)
    assert frozen.see(tasks).unreadable.keys() == {1 + 1, 90}
    assert len(frozen.see([]).looked.features) == 0


@pytest.mark.parametrize(
    "changed",
    [{"side": 32}, {"pixel_mean": (0.5, 0.5, 0.5)}, {"backbone": "shufflenet_v2_x1_0"}],
    ids=["side", "pixels", "backbone"],
)
def test_another_network_sees_anew(changed: dict[str, object]) -> None:
    other = dataclasses.replace(ARCHITECTURE, **changed)  # type: ignore[arg-type]
    assert frozen_digest(small_network(0, other)) != frozen_digest(small_network())


def test_other_weights_see_anew_and_another_head_does_not() -> None:
    network = small_network()
    before = frozen_digest(network)
    with torch.no_grad():
        next(network.head.parameters()).add_(1.0)
        next(network.loss_prediction.parameters()).add_(1.0)
    assert frozen_digest(network) == before
    with torch.no_grad():
        next(network.backbone.parameters()).add_(1e-3)
    assert frozen_digest(network) != before


def test_more_classes_see_the_same() -> None:
    few, many = (Architecture.from_plain({**ARCHITECTURE.as_plain(), "classes": count}) for count in (2, 9))
    network, other = small_network(0, few), small_network(0, many)
    inside = network.head_name + "."
    state = {name: value for name, value in network.main.state_dict().items() if not name.startswith(inside)}
    other.main.load_state_dict(state, strict=False)
    assert frozen_digest(other) == frozen_digest(network)
