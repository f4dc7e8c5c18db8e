"""What a network says about a pool: each thing as it says it directly, measured when asked and once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reference
import torch
from small_versions import Dazzled
from torch import Tensor

from lplgrad_backend.errors import NonFiniteScore
from lplgrad_backend.lplgrad.acquisition import STRATEGIES
from lplgrad_backend.lplgrad.gradnorm import GradientNorms
from lplgrad_backend.lplgrad.gradnorm.entropy import TEMPERATURES
from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.lplgrad.pool import AnsweredPool, Answers, FeaturePool, NetworkPool, Pool, answer
from lplgrad_backend.lplgrad.training import freeze, look_at

PLAIN = Architecture("shufflenet_v2_x0_5", classes=3, multiple=False, side=16, small_stem=True)
COUNTS = torch.tensor([2, 1, 1])  # labelled images of each class


def pixels(count: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=random)


@pytest.fixture(scope="module", params=[False, True], ids=["one class", "many classes"])
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    return Network(replace(PLAIN, multiple=request.param)).eval()


@pytest.fixture(scope="module")
def pool(network: Network) -> NetworkPool:
    return NetworkPool(network, pixels(70), pixels(4, seed=1), COUNTS)


def test_it_says_what_the_network_says(pool: NetworkPool, network: Network) -> None:
    with torch.no_grad():
        looked = network.look(pixels(70).float() / 255)
        predicted = network.loss_prediction(looked.pooled)
        labelled = network.look(pixels(4, seed=1).float() / 255).features
    assert len(pool) == 70
    torch.testing.assert_close(pool.logits, looked.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pool.features, looked.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pool.predicted_losses, predicted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pool.labelled_features, labelled, rtol=1e-4, atol=1e-5)


def test_norms_are_exact_at_any_positions(pool: NetworkPool, network: Network) -> None:
    positions = torch.tensor([69, 0, 65])
    wanted = reference.gradient_norms(network.main, pixels(70)[positions].float() / 255, multiple=pool.multiple)
    torch.testing.assert_close(pool.gradient_norms(positions), wanted, rtol=1e-3, atol=1e-6 * float(wanted.max()))
    assert len(pool.gradient_norms(positions[:0])) == 0


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_orders_it(pool: NetworkPool, name: str) -> None:
    assert len(set(STRATEGIES[name](pool, 8, 0).positions.tolist())) == 8


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_orders_an_empty_one(network: Network, name: str) -> None:
    assert len(STRATEGIES[name](NetworkPool(network, pixels(0), pixels(0), COUNTS), 8, 0).positions) == 0


def counted(network: Network) -> list[int]:
    """How many images each pass through the network had, from now on."""
    sizes: list[int] = []
    network.main.get_submodule("normalise").register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    return sizes


def test_only_what_is_asked_is_measured() -> None:
    torch.manual_seed(0)
    network = Network(PLAIN).eval()
    sizes, pool = counted(network), NetworkPool(network, pixels(20), pixels(4, seed=1), COUNTS)
    for name in ("entropy", "margin", "badge", "predicted-loss", "lplgrad-head"):
        STRATEGIES[name](pool, 5, 0)
    assert sizes == [20]
    STRATEGIES["lplgrad-screened"](pool, 5, 0)
    assert 20 not in sizes[1:] and max(sizes[1:]) == 6
    STRATEGIES["coreset"](pool, 5, 0)
    assert sizes[-1] == 4


def test_a_network_that_says_nothing_finite_is_an_error_that_names_the_images() -> None:
    broken = Network(PLAIN).eval()
    with torch.no_grad():
        broken.head.get_parameter("bias").fill_(torch.nan)
    with pytest.raises(NonFiniteScore) as caught:
        STRATEGIES["entropy"](NetworkPool(broken, pixels(2), pixels(0), COUNTS), 2, 0)
    assert caught.value.indices == [0, 1]


def test_an_image_without_a_finite_norm_is_named_by_its_position_in_the_pool() -> None:
    images = pixels(150) // 2
    images[[70, 140]] = 255
    with pytest.raises(NonFiniteScore) as caught:
        NetworkPool(Dazzled(), images, pixels(0), COUNTS).gradient_norms(torch.arange(149, -1, -1))
    assert caught.value.indices == [140]


@pytest.fixture(scope="module", params=[False, True], ids=["one class", "many classes"])
def head_only(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(1)
    network = Network(replace(PLAIN, multiple=request.param)).eval()
    freeze(network, "head")
    with torch.no_grad():
        network.head.get_parameter("weight").normal_()
    return network


def answered(network: Network, temperatures: tuple[float, ...] = TEMPERATURES) -> AnsweredPool:
    norms = GradientNorms(network.main, multiple=network.architecture.multiple, temperatures=temperatures)
    parts = [answer(network, norms, part) for part in pixels(20).split(8)]
    labelled = look_at(network, pixels(4, seed=1)).features
    return AnsweredPool(Answers.joined(parts), labelled, COUNTS, network.architecture.multiple)


def test_stored_features_and_answers_make_the_same_pool_as_pixels(head_only: Network) -> None:
    images, labelled = pixels(20), pixels(4, seed=1)
    wanted, at = NetworkPool(head_only, images, labelled, COUNTS), torch.tensor([3, 0, 19])
    found: list[Pool] = [FeaturePool(head_only, look_at(head_only, images), look_at(head_only, labelled), COUNTS)]
    for pool in [*found, answered(head_only)]:
        assert (len(pool), pool.multiple) == (20, wanted.multiple)
        for name in ("logits", "features", "labelled_features", "labelled_counts", "predicted_losses"):
            torch.testing.assert_close(getattr(pool, name), getattr(wanted, name), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pool.gradient_norms(at), wanted.gradient_norms(at), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(pool.norm_ladder(at), wanted.norm_ladder(at), rtol=1e-3, atol=1e-6)


def test_the_ladder_is_the_norm_at_each_temperature_times_it(head_only: Network) -> None:
    ladder = NetworkPool(head_only, pixels(3), pixels(0), COUNTS).norm_ladder(torch.arange(3))
    for temperature, row in zip(TEMPERATURES, ladder, strict=True):
        single = GradientNorms(head_only.main, multiple=head_only.architecture.multiple, temperatures=(temperature,))
        torch.testing.assert_close(row, temperature * single.measure(pixels(3).float() / 255).norms)


def test_a_temperature_that_was_not_measured_is_not_made_up(head_only: Network) -> None:
    with pytest.raises(ValueError, match="1 of 5"):
        answered(head_only, (1.0,)).norm_ladder(torch.arange(2))
