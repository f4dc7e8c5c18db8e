"""The two models as one module: a torchvision classifier, and the loss-prediction module that looks into it.

Main model: any torchvision classifier with its last layer replaced for C classes and the pixels' normalisation in front,
so that no caller can forget it. For small images its stem keeps the resolution.

Loss-prediction module (Yoo and Kweon, arXiv 1905.03677, section 3.2): global average pooling of four feature levels, a
linear layer of 128 and a ReLU each, concatenated, one output. Levels and channel counts are read from the backbone.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lplgrad_backend.errors import TrainingError

LEVELS = 4
HIDDEN = 128


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build a network again, as plain values.

    Attributes:
        backbone: name of a torchvision classifier.
        classes: number of classes C.
        multiple: any number of classes per image (a sigmoid each) instead of one (softmax).
        side: images are side x side pixels.
        small_stem: keep the resolution in the first layers, for small images.
        pixel_mean, pixel_std: per channel, of pixels in [0, 1].
        options: further arguments of the backbone's constructor, such as {"width_mult": 0.35}.
    """

    backbone: str
    classes: int
    multiple: bool
    side: int
    small_stem: bool
    pixel_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    pixel_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    options: Mapping[str, Any] = field(default_factory=dict)

    def as_plain(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Architecture:
        """Back from a manifest."""
        lists = {name: tuple(values[name]) for name in ("pixel_mean", "pixel_std")}
        return cls(**{**values, **lists})


class Normalise(nn.Module):
    """Pixels [N, 3, H, W] in [0, 1] -> what the backbone was trained on."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        mean: Tensor = self.get_buffer("mean")
        return (images - mean) / self.get_buffer("std")


class LossPrediction(nn.Module):
    """Four pooled feature levels [N, C_l] -> predicted loss [N]."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Sequential(nn.Linear(count, HIDDEN), nn.ReLU()) for count in channels)
        self.output = nn.Linear(HIDDEN * len(channels), 1)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        hidden = [level(features) for level, features in zip(self.levels, pooled, strict=True)]
        predicted: Tensor = self.output(torch.cat(hidden, dim=1)).squeeze(1)
        return predicted


@dataclass(frozen=True)
class Looked:
    """One forward pass with everything that training wants of it. N images, C classes."""

    logits: Tensor  # [N, C]
    features: Tensor  # [N, D], what the last layer sees
    pooled: tuple[Tensor, ...]  # per level [N, C_l]


class Network(nn.Module):
    """Main model and loss-prediction module. `main` alone is what is scored: images [N, 3, S, S] in [0, 1] -> logits [N, C].

    Raises:
        TrainingError: the backbone is not a torchvision classifier, or too small for four feature levels.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        backbone = _backbone(architecture)
        self.head_name = "backbone." + _replace_head(backbone, architecture.classes)
        self.main = nn.Sequential()
        self.main.add_module("normalise", Normalise(architecture.pixel_mean, architecture.pixel_std))
        self.main.add_module("backbone", backbone)
        self.levels = feature_levels(self.main, architecture.side, self.head_name)
        self.loss_prediction = LossPrediction([level.channels for level in self.levels])

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        return self.main.get_submodule(self.head_name)

    @property
    def head_is_linear(self) -> bool:
        """Whether the last layer works on features [N, D], so that it can be trained alone on stored ones."""
        return isinstance(self.head, nn.Linear)

    @property
    def backbone(self) -> nn.Module:
        """The torchvision classifier."""
        return self.main.get_submodule("backbone")

    def last_stage(self) -> list[nn.Parameter]:
        """The parameters of what runs after the last but one feature level, the head's among them: torchvision defines
        its modules in the order in which they run."""
        names = [name for name, _ in self.main.named_parameters()]
        before = [at for at, name in enumerate(names) if name.startswith(self.levels[-2].name + ".")]
        return list(self.main.parameters())[before[-1] + 1 if before else 0 :]

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C]."""
        logits: Tensor = self.main(images)
        return logits

    def look(self, images: Tensor) -> Looked:
        """Logits, features and pooled levels of one forward pass; nothing of it stays behind, so threads may share a
        network."""
        watched = _mirror(self.main)
        features: list[Tensor] = []
        pooled: dict[str, Tensor] = {}
        for level in self.levels:
            watched.get_submodule(level.name).register_forward_hook(
                lambda _module, _inputs, output, level=level: pooled.update({level.name: level.pool(output)})
            )
        head = watched.get_submodule(self.head_name)
        head.register_forward_pre_hook(lambda _module, inputs: features.append(inputs[0]))
        logits = watched(images)
        seen = features[0] if features[0].dim() == 2 else features[0].mean((2, 3))
        return Looked(logits, seen, tuple(pooled[level.name] for level in self.levels))


def _backbone(architecture: Architecture) -> nn.Module:
    name, side = architecture.backbone, architecture.side
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise TrainingError(f"LPLGRAD_BACKBONE: torchvision has no classifier {name!r}.")
    options = dict(architecture.options)
    if name.startswith("vit_"):
        options.setdefault("image_size", side)
    if name.startswith("maxvit_"):
        options.setdefault("input_size", (side, side))
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    try:
        backbone: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    except (TypeError, ValueError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise TrainingError(f"{name} cannot be built for {side} px with the options {options}: {reason}") from error
    if architecture.small_stem:
        _keep_resolution(backbone)
    return backbone


def _keep_resolution(backbone: nn.Module) -> None:
    """First convolution at most 3x3 with stride 1, and no pooling right after it. A stem that cuts the image into
    patches stays, and so does MaxViT's, whose windows are counted in its pixels."""
    names = [name for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d | nn.MaxPool2d)]
    first = backbone.get_submodule(names[0])
    if not isinstance(first, nn.Conv2d) or first.stride == first.kernel_size:
        return
    if isinstance(backbone, torchvision.models.MaxVit):
        return
    side = min(3, first.kernel_size[0])
    stem = nn.Conv2d(first.in_channels, first.out_channels, side, 1, side // 2, bias=first.bias is not None)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    backbone.set_submodule(names[0], stem)
    if isinstance(backbone.get_submodule(names[1]), nn.MaxPool2d):
        backbone.set_submodule(names[1], nn.Identity())


def _replace_head(backbone: nn.Module, classes: int) -> str:
    """Replace the last linear layer (or 1x1 convolution, in SqueezeNet) and return its name."""
    name: str
    name, last = [pair for pair in backbone.named_modules() if isinstance(pair[1], nn.Linear | nn.Conv2d)][-1]
    head: nn.Module
    if isinstance(last, nn.Linear):
        head = nn.Linear(last.in_features, classes)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
    else:
        assert isinstance(last, nn.Conv2d)
        head = nn.Conv2d(last.in_channels, classes, 1)
    backbone.set_submodule(name, head)
    return name


@dataclass(frozen=True)
class Level:
    """A module of the main model whose output is a feature level."""

    name: str
    positions: int  # places in its map, for the images of the architecture
    channels: int
    axis: int  # where the channels stand: 1 in [N, C, H, W], 3 in [N, H, W, C], 2 in tokens [N, L, C]

    @property
    def depth(self) -> int:
        """How deeply nested the module is."""
        return self.name.count(".")

    def pool(self, output: Tensor) -> Tensor:
        """Mean over all places -> [N, C]."""
        return output.mean([axis for axis in range(1, output.dim()) if axis != self.axis])


def feature_levels(main: nn.Module, side: int, head: str) -> tuple[Level, ...]:
    """Four feature levels of a main model for images of side x side pixels, in the order in which they run.

    They are the outputs at the four lowest resolutions, of the outermost module each (a stage, not a layer inside it).
    A backbone with fewer resolutions gives four of its blocks, spread over its depth.

    Raises:
        TrainingError: the images are too small for the backbone, or it has fewer than four blocks.
    """
    maps = _maps(main, side, head)
    stages: dict[int, Level] = {}
    for level in maps:
        if level.positions not in stages or level.depth <= stages[level.positions].depth:
            stages[level.positions] = level
    chosen: list[Level] = []
    for level in maps:
        # a classifier's pooling may enlarge a small map again, which says nothing new
        if level in stages.values() and (not chosen or level.positions < chosen[-1].positions):
            chosen.append(level)
    wide = [level for level in chosen if level.positions > 1]
    for found in (wide, chosen):
        if len(found) >= LEVELS:
            return tuple(found[-LEVELS:])
    return _spread(maps)


def _maps(main: nn.Module, side: int, head: str) -> list[Level]:
    """Every module before the head that runs once per image and gives a map, in the order in which they end."""
    ran: list[tuple[str, Tensor]] = []
    watched = _mirror(main).eval()
    for name, module in watched.named_modules():
        if name.startswith("backbone."):
            module.register_forward_hook(lambda _module, _inputs, output, name=name: ran.append((name, output)))
    images = torch.zeros(2, 3, side, side, device=next(main.parameters()).device)
    try:
        with torch.no_grad():
            watched(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise TrainingError(f"The backbone cannot take images of {side} x {side} pixels: {error}") from error
    times = Counter(name for name, _ in ran)
    before_head = ran[: [name for name, _ in ran].index(head)]
    channels_last = any(isinstance(module, torchvision.models.SwinTransformer) for module in main.modules())
    return [
        _level(name, output.shape, channels_last)
        for name, output in before_head
        if times[name] == 1 and isinstance(output, Tensor) and output.dim() in (3, 4) and len(output) == len(images)
    ]


def _level(name: str, shape: torch.Size, channels_last: bool) -> Level:
    """Images are square, so the two equal sides are the places; where all three are equal, the family decides."""
    if len(shape) == 3:
        axis = 2
    elif shape[1] == shape[2] == shape[3]:
        axis = 3 if channels_last else 1
    else:
        axis = 1 if shape[2] == shape[3] else 3
    return Level(name, shape[1:].numel() // shape[axis], shape[axis], axis)


def _spread(maps: Sequence[Level]) -> tuple[Level, ...]:
    """Four modules evenly over the depth, of the largest group of siblings."""
    siblings = Counter(level.name.rpartition(".")[0] for level in maps).most_common(1)
    parent, count = siblings[0] if siblings else ("", 0)
    if count < LEVELS:
        raise TrainingError(f"The backbone has {len(maps)} feature maps; four levels are needed. Use larger images.")
    blocks = [level for level in maps if level.name.rpartition(".")[0] == parent]
    return tuple(blocks[count * part // LEVELS - 1] for part in range(1, LEVELS + 1))


def _mirror(module: nn.Module, made: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """The same modules anew, with the same parameters and buffers but hooks of their own."""
    made = {} if made is None else made
    if module not in made:
        mirrored = made[module] = copy.copy(module)
        mirrored._modules = {
            name: None if child is None else _mirror(child, made)  # an empty Sequential is falsy, and a module
            for name, child in module._modules.items()
        }
        mirrored._forward_hooks = module._forward_hooks.copy()
        mirrored._forward_pre_hooks = module._forward_pre_hooks.copy()
    return made[module]
