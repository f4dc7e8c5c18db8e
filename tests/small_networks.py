"""Small classifiers, each built around one thing that networks do, with weights and averages that are not as they began."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import StochasticDepth

CLASSES, SIDE = 4, 9
Builder = Callable[[], nn.Module]


class Body(nn.Module):
    """Some layers on images, the mean over all places, a linear head."""

    def __init__(self, *layers: nn.Module, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, CLASSES, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(images).mean((2, 3)))
        return logits


class Residual(nn.Module):
    """relu(x + f(x)) as ResNet writes it: in place."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        identity, out = x, self.layers(x)
        out += identity
        return F.relu(out, inplace=True)


class ReadTwice(nn.Module):
    """A convolution whose output is read by its BatchNorm and again later."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        before = self.conv(x)
        return F.relu(self.norm(before)) + before.sigmoid()


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)), inplace=True)))


class Dense(nn.Module):
    """The input and what is made of it, side by side."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layer(x)], 1)


class LayerScale(nn.Module):
    """gamma * f(x) + x, as ConvNeXt does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.scale = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x) + x


class Shared(nn.Module):
    """One module used twice, and its weight once more by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = F.relu(self.norm(self.conv(x)))
        return F.conv2d(x, self.conv.weight, stride=2)


class Tokens(nn.Module):
    """A transformer on patches: class token, positions, attention, a feed-forward part."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 3, 3)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 10, 8))
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.feed = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, CLASSES)
        self.batch_first = batch_first

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        x = x + self.attend(self.first(x))
        x = x + self.feed(self.second(x))
        logits: Tensor = self.head(x[:, 0])
        return logits

    def attend(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        mixed: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return mixed if self.batch_first else mixed.transpose(0, 1)


class Standardised(nn.Conv2d):
    """A convolution whose weight is computed from another: weight standardisation."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias)


class Unused(Body):
    """A head beside the one that is used."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 5, 3), channels=5)
        self.other_head = nn.Linear(5, 7)


def convolutions() -> Iterator[tuple[str, dict[str, Any]]]:
    """Geometries, each with and without bias in turn."""
    paddings = ((0, "zeros"), (2, "zeros"), (1, "reflect"), (1, "replicate"), (1, "circular"), ("same", "zeros"))
    biases = itertools.cycle((True, False))
    for size, stride, (padding, mode), dilation in itertools.product((1, 3), (1, 2), paddings, (1, 2)):
        if padding == "same" and stride != 1:
            continue
        yield (
            f"{size}x{size} stride {stride} padding {padding} {mode} dilation {dilation}",
            {
                "kernel_size": size, "stride": stride, "padding": padding, "padding_mode": mode, "dilation": dilation,
                "bias": next(biases),
            },
        )  # fmt: skip
    yield "valid", {"kernel_size": 3, "padding": "valid"}
    yield "oblong", {"kernel_size": (3, 1), "stride": (1, 2), "padding": (0, 2), "dilation": (2, 1)}


def convolving(channels: int, groups: int, arguments: Mapping[str, Any]) -> nn.Module:
    """A convolution that must hand its gradient on to another one before it."""
    return Body(
        nn.Conv2d(3, 6, 2), nn.ReLU(), nn.Conv2d(6, channels, groups=groups, **arguments), nn.Tanh(), channels=channels
    )


def normalised(activation: nn.Module, **arguments: Any) -> nn.Module:
    return Body(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, **arguments), activation,
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), channels=6,
    )  # fmt: skip


def without_gamma() -> nn.Module:
    network = normalised(nn.ReLU())
    nn.init.zeros_(network.get_submodule("layers.1").get_parameter("weight"))
    return network


NETWORKS: Mapping[str, Builder] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 6), nn.Sigmoid(), nn.Linear(6, CLASSES)),
    "no bias anywhere": lambda: Body(nn.Conv2d(3, 5, 3, bias=False), nn.Tanh(), channels=5, bias=False),
    "relu": lambda: normalised(nn.ReLU()),
    "relu in place": lambda: normalised(nn.ReLU(inplace=True)),
    "relu6 in place": lambda: normalised(nn.ReLU6(inplace=True)),
    "hardswish": lambda: normalised(nn.Hardswish()),
    "hardswish in place": lambda: normalised(nn.Hardswish(inplace=True)),
    "silu in place": lambda: normalised(nn.SiLU(inplace=True)),
    "gelu": lambda: normalised(nn.GELU()),
    "gelu by a hyperbolic tangent": lambda: normalised(nn.GELU("tanh")),
    "leaky relu in place": lambda: normalised(nn.LeakyReLU(0.2, inplace=True)),
    "hardtanh": lambda: normalised(nn.Hardtanh(-0.5, 0.5)),
    "batch norm without weights": lambda: normalised(nn.ReLU(), affine=False),
    "batch norm with gamma 0": without_gamma,
    "batch norm first": lambda: Body(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 5, 3), channels=5),
    "batch norm after linear": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIDE**2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, CLASSES)
    ),
    "read twice": lambda: Body(ReadTwice(), channels=6),
    "residual": lambda: Body(
        nn.Conv2d(3, 6, 3), Residual(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)), channels=6
    ),
    "two residuals": lambda: Body(
        Residual(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1)),
        Residual(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)),
        channels=3,
    ),
    "convolutions of one place": lambda: Body(
        nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6),
        nn.ReLU(inplace=True), nn.Conv2d(6, 7, 1, stride=2), nn.Hardswish(inplace=True), nn.Conv2d(7, 5, 1),
        nn.Identity(), nn.ReLU(inplace=True), channels=5,
    ),
    "squeeze and excitation": lambda: Body(nn.Conv2d(3, 8, 3), nn.SiLU(), Squeeze(8), channels=8),
    "dense": lambda: Body(Dense(nn.Conv2d(3, 4, 3, padding=1)), nn.BatchNorm2d(7), nn.ReLU(), channels=7),
    "group norm": lambda: Body(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 6, 2), channels=6),
    "layer norm over channels": lambda: Body(nn.Conv2d(3, 6, 3), LayerNorm2d(6), nn.Conv2d(6, 6, 2), channels=6),
    "layer norm over everything": lambda: Body(nn.LayerNorm((3, SIDE, SIDE)), nn.Conv2d(3, 6, 3), channels=6),
    "layer scale": lambda: Body(nn.Conv2d(3, 6, 3), LayerScale(6), channels=6),
    "pools and dropout": lambda: Body(
        nn.MaxPool2d(2), nn.Conv2d(3, 6, 2), nn.Dropout(0.5), StochasticDepth(0.5, "row"), nn.AvgPool2d(2), channels=6
    ),
    "shared": lambda: Body(Shared(), channels=3),
    "computed weights": lambda: Body(Standardised(3, 6, 3), nn.ReLU(), Standardised(6, 5, 2), channels=5),
    "weight norm": lambda: Body(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), channels=6),
    "attention": Tokens,
    "attention, sequence first": lambda: Tokens(batch_first=False),
    "unused head": Unused,
}
GEOMETRIES: Mapping[str, Builder] = {
    f"{kind} {name}": lambda arguments=arguments, channels=channels, groups=groups: convolving(  # type: ignore[misc]
        channels, groups, arguments
    )
    for name, arguments in convolutions()
    for kind, channels, groups in (("full", 5, 1), ("grouped", 4, 2), ("depthwise", 6, 6), ("widening", 12, 6))
}


def unsettle(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight, bias and running average moved from where it began; in evaluation mode."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, one in itertools.chain(network.named_parameters(), network.named_buffers()):
            if one.is_floating_point() and one.any():
                one *= torch.empty_like(one).uniform_(0.5, 1.5, generator=random)
            if name.endswith(("bias", "running_mean")):
                one += torch.empty_like(one).uniform_(-0.3, 0.3, generator=random)
    return network.eval()


def build(builder: Builder, seed: int = 0) -> nn.Module:
    """A network of the catalogue, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return unsettle(builder(), seed)


def pictures(count: int, side: int = SIDE, seed: int = 1) -> Tensor:
    """Images float32 [N, 3, S, S] in [0, 1]."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
