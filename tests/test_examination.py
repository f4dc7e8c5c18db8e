"""What a network says of images that it did not learn."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from small_versions import SIDE, made, small_network
from torch import Tensor
from versions import LABELING

from lplgrad_backend.comparison import image_key
from lplgrad_backend.examination import confidence, find_suspects, named_classes, opinion
from lplgrad_backend.labeling import Example
from lplgrad_backend.lplgrad.cross_fitting import Unseen, cross_fit, temperature
from lplgrad_backend.lplgrad.network import Looked
from lplgrad_backend.lplgrad.objective import main_loss
from lplgrad_backend.lplgrad.recipe import HEAD
from lplgrad_backend.lplgrad.training import fit, look_at
from lplgrad_backend.scoring import as_batch


def examples(count: int) -> list[Example]:
    return [Example(at, f"/{at}.png", (1.0, 0.0)) for at in range(count)]


def pixels(count: int) -> Tensor:
    return as_batch([made(f"/{at}.png", SIDE) for at in range(count)])


def test_each_image_gets_the_class_of_its_largest_logit() -> None:
    network = small_network()
    network.train()
    targets = torch.tensor([[1.0, 0.0]]).repeat(70, 1)
    said = opinion(network, pixels(70), targets)
    with torch.no_grad():
        logits = network(pixels(70).float() / 255)
    torch.testing.assert_close(said.logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(said.losses, main_loss(said.logits, targets, False))
    assert named_classes(examples(70), said, LABELING) == {
        image_key(f"/{at}.png"): [("cat", "dog")[best]] for at, best in enumerate(logits.argmax(1).tolist())
    }


def test_features_of_a_frozen_network_say_the_same_as_the_images() -> None:
    network, targets = small_network(), torch.tensor([[1.0, 0.0]]).repeat(9, 1)
    looked = look_at(network, pixels(9))
    stored = Looked(torch.zeros(9, 2), looked.features, looked.pooled)
    by_features, by_pixels = opinion(network, stored, targets), opinion(network, pixels(9), targets)
    torch.testing.assert_close(by_features.logits, by_pixels.logits)
    torch.testing.assert_close(by_features.predicted, by_pixels.predicted)


def test_of_no_image_nothing_is_said() -> None:
    said = opinion(small_network(), pixels(2)[:0], torch.zeros(0, 2))
    assert named_classes([], said, LABELING) == {}
    assert find_suspects(said, torch.zeros(0, 2), [], LABELING) == []
    assert confidence(said, torch.zeros(0, 2), False, "images").temperature == 1.0


def overconfident(count: int) -> tuple[Unseen, Tensor]:
    """Logits that are right in three of four cases and claim 99.8 %."""
    right = torch.arange(count) % 4 > 0
    logits = torch.where(right, 6.0, -6.0)[:, None] * torch.tensor([[0.5, -0.5]])
    targets = torch.tensor([[1.0, 0.0]]).repeat(count, 1)
    return Unseen(logits, main_loss(logits, targets, False), torch.zeros(count)), targets


def test_many_images_bring_confidence_to_the_share_that_is_right() -> None:
    said, targets = overconfident(4000)
    sure = confidence(said, targets, False, "images")
    claimed = torch.softmax(said.logits / sure.temperature, 1).amax(1).mean()
    assert float(claimed) == pytest.approx(0.75, abs=0.02)
    assert sure.origin == "4000 images"


def test_few_images_change_little_and_too_few_nothing() -> None:
    said, targets = overconfident(50)
    found = confidence(said, targets, False, "images").temperature
    assert found == pytest.approx(math.sqrt(temperature(said, targets, False)), rel=1e-6)
    said, targets = overconfident(19)
    sure = confidence(said, targets, False, "images")
    assert (sure.temperature, sure.origin) == (1.0, "not fitted: 19 images, 20 are needed")


def test_a_label_far_above_its_expected_loss_is_suspect() -> None:
    count = 20
    logits = torch.tensor([[3.0, 0.0]]).repeat(count, 1) + 0.2 * torch.randn(
        count, 2, generator=torch.Generator().manual_seed(0)
    )
    targets = torch.tensor([[1.0, 0.0]]).repeat(count, 1)
    targets[7] = torch.tensor([0.0, 1.0])
    said = Unseen(logits, main_loss(logits, targets, False), torch.zeros(count))
    [suspect] = find_suspects(said, targets, examples(count), LABELING)
    assert (suspect.task, suspect.label, suspect.predicted) == (7, "dog", "cat")


def test_a_wrong_label_that_was_learned_by_heart_is_found_by_networks_that_did_not_learn_it() -> None:
    network, count = small_network(), 48
    random = torch.Generator().manual_seed(0)
    kinds = torch.arange(count) % 2
    width = sum(parameter.shape[-1] for parameter in network.head.parameters() if parameter.dim() > 1)
    features = torch.randn(count, width, generator=random)
    features[:, :64] += torch.where(kinds == 0, 1.0, -1.0)[:, None]
    pooled = tuple(torch.randn(count, level.channels, generator=random) for level in network.levels)
    looked = Looked(torch.zeros(count, 2), features, pooled)
    targets = torch.nn.functional.one_hot(kinds, 2).float()
    targets[5] = targets[5].flip(0)
    trained = copy.deepcopy(network)
    for _ in fit(trained, looked, targets, HEAD, seed=0, device=torch.device("cpu")):
        pass
    assert find_suspects(opinion(trained, looked, targets), targets, examples(count), LABELING) == []
    unseen = cross_fit(network, looked, targets, HEAD, seed=0, device=torch.device("cpu"))
    assert [one.task for one in find_suspects(unseen, targets, examples(count), LABELING)][:1] == [5]
