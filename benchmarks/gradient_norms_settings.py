"""Which networks the gradient norms are measured on, and what was asked of some."""

from __future__ import annotations

from dataclasses import dataclass

HEAVY = ("vgg11_bn", "wide_resnet50_2", "inception_v3", "efficientnet_v2_s", "swin_t", "swin_v2_t", "maxvit_t")
"""Networks that are measured with two images, for time."""


@dataclass(frozen=True)
class Setting:
    """A network, its images, and what was asked of it: the most it may cost in forward passes, the least speed-up. `steps`:
    of training, before its error is looked at once more."""

    backbone: str
    side: int = 224
    count: int = 4
    small_stem: bool = False
    most_cost: float | None = None
    least_speedup: float | None = None
    rounds: int = 3
    steps: int = 3

    @property
    def name(self) -> str:
        stem = " small stem" if self.small_stem else ""
        return f"{self.backbone}{stem} {self.side}x{self.side} N={self.count}"


TARGETS = (
    Setting("resnet18", 32, 16, True, 2.6, 2.8, rounds=9),
    Setting("resnet18", 224, 4, False, 2.75, 1.8, rounds=9),
    Setting("mobilenet_v3_small", 224, 16, False, 3.3, 2.6, rounds=9),
    Setting("vit_b_16", rounds=5),
    Setting("convnext_tiny", rounds=5),
)
SIDES = {"inception_v3": 299, "swin_v2_t": 256}
STEPS = {"inception_v3": 30}
"""A new one's logits are of the order of 1e11, and after three steps its gradient norm is still 320 at logits 20 apart: the
float32 loop is off by two thousandths there."""
MODELS = tuple(
    Setting(
        name, SIDES.get(name, 224), 2 if name in HEAVY else 4, rounds=5 if name in ("vit_b_16", "convnext_tiny") else 3,
        steps=STEPS.get(name, 3),
    )
    for name in (
        "alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet",
        "inception_v3", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x1_0",
        "mnasnet1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t",
        "swin_v2_t", "maxvit_t",
    )
)  # fmt: skip
