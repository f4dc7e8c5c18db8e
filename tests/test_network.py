"""Any torchvision classifier becomes a main model with four feature levels; looking leaves nothing behind."""

from __future__ import annotations

import copy
import json
import threading

import pytest
import torch
import torchvision
from torch import Tensor, nn

from lplgrad_backend.errors import TrainingError
from lplgrad_backend.lplgrad.network import LEVELS, Architecture, Network, feature_levels

CLASSES = 5
SMALL = 32

# Convolutions plain and depthwise, dense, without linear layer, windows with channels last, tokens.
FAMILIES = {
    "resnet18": SMALL,
    "mobilenet_v3_small": SMALL,
    "shufflenet_v2_x0_5": SMALL,
    "squeezenet1_1": SMALL,
    "efficientnet_b0": SMALL,
    "densenet121": SMALL,
    "googlenet": SMALL,
    "convnext_tiny": SMALL,
    "swin_t": SMALL,
    "vit_b_32": SMALL,
}


def architecture(backbone: str = "resnet18", side: int = SMALL, **changes: object) -> Architecture:
    plain = {"backbone": backbone, "classes": CLASSES, "multiple": False, "side": side, "small_stem": True}
    return Architecture(**{**plain, **changes})  # type: ignore[arg-type]


def images(count: int, side: int = SMALL, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def positions(network: Network) -> list[int]:
    return [level.positions for level in network.levels]


@pytest.fixture(scope="module", params=FAMILIES)
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    return Network(architecture(request.param, FAMILIES[request.param])).eval()


class TestEveryFamily:
    def test_has_four_levels_and_one_predicted_loss_per_image(self, network: Network) -> None:
        looked = network.look(images(2))
        assert len(looked.pooled) == LEVELS
        assert [tuple(level.shape) for level in looked.pooled] == [(2, level.channels) for level in network.levels]
        assert network.loss_prediction(looked.pooled).shape == (2,)
        assert looked.features.dim() == 2

    def test_levels_come_in_order_and_never_grow(self, network: Network) -> None:
        assert positions(network) == sorted(positions(network), reverse=True) or len(set(positions(network))) < LEVELS
        assert len({level.name for level in network.levels}) == LEVELS
        assert all(level.name != network.head_name for level in network.levels)

    def test_an_image_alone_gives_what_it_gives_in_a_batch(self, network: Network) -> None:
        with torch.no_grad():
            batch, alone = network.look(images(3)), network.look(images(3)[:1])
        whole = (batch.logits, batch.features, *batch.pooled)
        for one, many in zip((alone.logits, alone.features, *alone.pooled), whole, strict=True):
            torch.testing.assert_close(one, many[:1], rtol=1e-3, atol=1e-4)

    def test_looking_changes_neither_logits_nor_network(self, network: Network) -> None:
        with torch.no_grad():
            torch.testing.assert_close(network.look(images(2)).logits, network(images(2)))
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())

    def test_every_parameter_of_the_main_model_reaches_the_logits(self, network: Network) -> None:
        asked = copy.deepcopy(network)
        asked.main(images(2)).sum().backward()
        assert [name for name, one in asked.main.named_parameters() if one.grad is None] == []
        assert all(one.grad is None for one in asked.loss_prediction.parameters())


def test_the_levels_of_a_resnet_are_its_stages() -> None:
    found = feature_levels(Network(architecture()).main, SMALL, "backbone.fc")
    assert [level.name for level in found] == [f"backbone.layer{number}" for number in range(1, 5)]
    assert [(level.positions, level.channels) for level in found] == [(1024, 64), (256, 128), (64, 256), (16, 512)]


@pytest.mark.parametrize("side", [8, 16, 33, 64])
def test_a_small_stem_keeps_the_resolution(side: int) -> None:
    levels = Network(architecture("resnet18", side)).levels
    assert levels[0].positions == side**2
    assert len(levels) == LEVELS


def test_pooling_is_the_mean_over_all_places() -> None:
    network = Network(architecture()).eval()
    seen: dict[str, Tensor] = {}
    for level in network.levels:
        network.main.get_submodule(level.name).register_forward_hook(
            lambda _module, _inputs, output, name=level.name: seen.update({name: output})
        )
    looked = network.look(images(2))
    for level, pooled in zip(network.levels, looked.pooled, strict=True):
        full = seen[level.name]
        slow = torch.stack([torch.stack([channel.sum() / channel.numel() for channel in image]) for image in full])
        torch.testing.assert_close(pooled, slow)


class Windows(nn.Module):
    """A Swin whose first level is as wide as high as it has channels, so that its shape does not tell them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torchvision.models.SwinTransformer([4, 4], 8, [1] * 4, [1] * 4, [2, 2], num_classes=3)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.backbone(pixels)
        return logits


def test_channels_are_found_where_the_shape_does_not_tell() -> None:
    first = feature_levels(Windows(), SMALL, "backbone.head")[0]
    assert (first.positions, first.channels, first.axis) == (64, 8, 3)
    convolutions = feature_levels(Network(architecture("resnet18", 64)).main, 64, "backbone.fc")[0]
    assert (convolutions.positions, convolutions.channels, convolutions.axis) == (64 * 64, 64, 1)


def test_threads_share_a_network() -> None:
    network = Network(architecture("shufflenet_v2_x0_5", 16)).eval()
    with torch.no_grad():
        wanted = [network.look(images(2, 16, seed)).pooled for seed in range(4)]
    wrong: list[int] = []

    def look(seed: int) -> None:
        for _ in range(15):
            with torch.no_grad():
                found = network.look(images(2, 16, seed)).pooled
            if len(found) != LEVELS or not all(map(torch.equal, found, wanted[seed])):
                wrong.append(seed)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_network_is_built_again_from_plain_values_and_a_flat_state() -> None:
    torch.manual_seed(0)
    first = Network(architecture("mobilenet_v2", options={"width_mult": 0.35})).eval()
    torch.manual_seed(1)
    second = Network(Architecture.from_plain(json.loads(json.dumps(first.architecture.as_plain())))).eval()
    assert second.architecture == first.architecture
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(images(2)), first(images(2)))


def test_pixels_are_normalised_inside() -> None:
    torch.manual_seed(0)
    plain = Network(architecture(pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)).eval()
    shifted = Network(architecture(pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.5, 0.6, 0.7))).eval()
    shifted.backbone.load_state_dict(plain.backbone.state_dict())
    scaled = (images(2) - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(shifted(images(2)), plain(scaled))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (architecture("resnet1800"), "resnet1800"),
        (architecture("fasterrcnn_resnet50_fpn"), "fasterrcnn"),
        (architecture(options={"depth": 3}), "depth"),
        (architecture("vit_b_32", 40), "40 px"),
        (architecture("inception_v3", 16, small_stem=False), "16 x 16"),
    ],
)
def test_what_cannot_be_built_is_named(wrong: Architecture, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        Network(wrong)
