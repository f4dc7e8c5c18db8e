"""A site: one place in the network where parameters meet the images. Autograd passes through it by its rule."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from lplgrad_backend.lplgrad.gradnorm.tally import Tally


class Rule(Protocol):
    """How one site computes, and what it reports on the way back. The batch is the major part of dimension 0."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output, and what `backward` needs to see again."""

    def backward(
        self, tally: Tally, gradient: Tensor, saved: tuple[Tensor, ...], wanted: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        """Reports the parameters' gradients to the tally; returns those of the inputs that are wanted."""


class _Site(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rule: Rule, tally: Tally, anchor: Tensor, *inputs: Tensor) -> Tensor:
        del anchor
        output, saved = rule.forward(*inputs)
        ctx.rule, ctx.tally = rule, tally
        ctx.save_for_backward(*saved)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        wanted = tuple(ctx.needs_input_grad[3:])
        inputs = ctx.rule.backward(ctx.tally, gradients[0], ctx.saved_tensors, wanted)
        return (None, None, None, *inputs)


def through(rule: Rule, tally: Tally, anchor: Tensor | None, *inputs: Tensor) -> Tensor:
    """The site's output.

    Args:
        anchor: any tensor that requires a gradient, where the site has parameters to report; it makes autograd come
            here although neither the images nor the parameters take part. None where all of the site is frozen.
    """
    if anchor is None and not any(one.requires_grad for one in inputs):
        return rule.forward(*inputs)[0]
    output: Tensor = _Site.apply(rule, tally, anchor, *inputs)
    return output
