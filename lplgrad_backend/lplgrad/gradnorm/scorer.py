"""Gradient norms of any number of images: planned once, in chunks that fit the memory, with errors that name the image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lplgrad_backend.errors import NonFiniteScore
from lplgrad_backend.lplgrad.gradnorm import calls, fallback
from lplgrad_backend.lplgrad.gradnorm.entropy import entropy_gradient
from lplgrad_backend.lplgrad.gradnorm.products import channels_last
from lplgrad_backend.lplgrad.gradnorm.replay import Replay, Rules, pull_back, unit_seeds
from lplgrad_backend.lplgrad.gradnorm.tally import Tally
from lplgrad_backend.lplgrad.gradnorm.trace import IMAGES, Kind, Plan, Unproved, trace

MEMORY_BUDGET = 600 * 2**20
"""Bytes; two images at least of the networks that take most for one of 224 pixels (270 MiB, maxvit_t), and four of others.
One image at a time takes such networks a tenth longer, and more than this makes nothing faster."""


class SlowGradientNorms(UserWarning):
    """Some part of a network has no rule; its norms are exact but take several times as long."""


@dataclass(frozen=True)
class Measurement:
    """What one pass says about N images.

    Attributes:
        logits: [N, C], on the images' device.
        tensors: float64 [temperatures, N, T], the norm of dH/dt for each parameter tensor t that is trained.
        names: the T parameters' names.
    """

    logits: Tensor
    tensors: Tensor
    names: tuple[str, ...]

    @property
    def norms(self) -> Tensor:
        """Gradient norms at the first temperature, float64 [N]."""
        return self.tensors[0].sum(1)

    @property
    def ladder(self) -> Tensor:
        """Gradient norms at every temperature, float64 [temperatures, N]."""
        return self.tensors.sum(2)


def gradient_norms(
    model: nn.Module, images: Tensor, *, multiple: bool = False, per_tensor: bool = False, temperature: float = 1.0,
    memory_budget: int = MEMORY_BUDGET, activations: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Sum over the parameter tensors t of ||dH/dt||, for each image (arXiv 2411.15217, active phase).

    Frozen parameters (requires_grad is False) are left out. The model is only read; several threads may use it at once.

    Args:
        model: in evaluation mode; maps images to logits [N, C], each image on its own.
        images: float [N, 3, H, W] as the model wants them.
        multiple: H is the sum of the entropies of C sigmoids instead of that of one softmax.
        per_tensor: one column for each trained parameter, in the order of `model.named_parameters()`.
        temperature: H is taken of softmax(logits / temperature).
        memory_budget: bytes for activations; the batch is cut to fit. The result does not depend on it.
        activations: torch.bfloat16 keeps what is between the layers, and multiplies, in half the memory; meant for GPUs.
            The norms are then no longer exact: benchmarks/gradient_norms.md says by how much.

    Returns:
        float64 [N], or [N, T] if per_tensor.

    Raises:
        ValueError: a module is in training mode.
        NonFiniteScore: an image leads to NaN or infinity.
    """
    scorer = GradientNorms(
        model, multiple=multiple, temperatures=(temperature,), memory_budget=memory_budget, activations=activations
    )
    measurement = scorer.measure(images)
    return measurement.tensors[0] if per_tensor else measurement.norms


class GradientNorms:
    """The same for many batches: the network is looked at once for each size of image.

    Args:
        temperatures: any number of them share one forward pass.

    The model's weights may change between calls, in any way that torch counts (`tensor.data` is none), not its structure
    nor what is frozen. What is made of the weights, as large as they are, is kept from call to call.
    """

    def __init__(
        self, model: nn.Module, *, multiple: bool = False, temperatures: Sequence[float] = (1.0,),
        memory_budget: int = MEMORY_BUDGET, activations: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.precision = None if activations == torch.float32 else activations
        self.model, self.multiple, self.temperatures = model, multiple, tuple(temperatures)
        self.memory_budget = memory_budget
        self.parameters = calls.trainable(model)
        self._modules = tuple(model.modules())
        self._weights = (*model.parameters(), *model.buffers())
        self.plans: dict[tuple[object, ...], Plan | None] = {}
        self._rules: dict[tuple[object, ...], Rules] = {}
        self._rules_hold_for: tuple[object, ...] = ()

    def measure(self, images: Tensor) -> Measurement:
        """Logits and norms of images [N, 3, H, W]; errors as of `gradient_norms`."""
        _refuse_training(self._modules, self.model)
        rules = self._known_rules(images)
        parts, start = [], 0
        size = self._chunk_size(images, rules)
        while start < len(images):
            chunk = images[start : start + size]
            try:
                logits, tensors = self._measure_chunk(chunk, rules)
            except torch.OutOfMemoryError:
                if len(chunk) == 1:
                    raise
                size = (len(chunk) + 1) // 2
                continue
            _check_finite(logits, tensors, start)
            parts.append((logits, tensors))
            start += size
        if not parts:
            parts = [(images.new_zeros(0, 0), images.new_zeros(len(self.temperatures), 0, len(self.parameters)))]
        columns = zip(*parts, strict=True)
        return Measurement(torch.cat(next(columns)), torch.cat(next(columns), 1).double(), tuple(self.parameters))

    def _known_rules(self, images: Tensor) -> Rules:
        """Rules made for the weights as they are now; none once any of them has changed."""
        states = tuple(map(_state, self._weights))
        if states != self._rules_hold_for:
            self._rules, self._rules_hold_for = {}, states
        return self._rules.setdefault(_key(images), {})

    def _chunk_size(self, images: Tensor, rules: Rules) -> int:
        """Of as few chunks as fit, and then of as even ones as possible."""
        plan = self._plan(images, rules) if len(images) else None
        if plan is None:
            return fallback.MAPPED_IMAGES
        chunks = math.ceil(len(images) / max(1, self.memory_budget // plan.bytes_per_image))
        return math.ceil(len(images) / chunks)

    def _plan(self, images: Tensor, rules: Rules) -> Plan | None:
        key = _key(images)
        if key not in self.plans:
            try:
                plan = trace(self.model, images)
                self.plans[key] = replace(plan, bytes_per_image=self._bytes_per_image(plan, images[:1], rules))
                self._warn_of_mapped(plan)
            except Unproved as reason:
                self._give_up(key, reason)
        return self.plans[key]

    def _bytes_per_image(self, plan: Plan, image: Tensor, rules: Rules) -> int:
        """The image, what is kept of it until the way back, and two of the largest tensors, which come and go on it."""
        images = image.repeat(IMAGES, 1, 1, 1)
        weights = {one.untyped_storage().data_ptr() for one in self._weights}
        kept: dict[int, torch.UntypedStorage] = {}  # all of them, or an address might come twice

        def note(saved: Tensor) -> None:  # and nothing for the graph, which would keep itself alive for ever
            storage = saved.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage

        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            self._replayed(plan, images, rules)
        sizes = [storage.nbytes() for storage in kept.values()]
        return (images.nbytes + sum(sizes) + 2 * max(sizes, default=0)) // IMAGES

    def _give_up(self, key: tuple[object, ...], reason: Exception) -> None:
        self.plans[key] = None
        message = f"{type(self.model).__name__}: {reason}; all of it takes the slow way."
        warnings.warn(message, SlowGradientNorms, stacklevel=4)

    def _warn_of_mapped(self, plan: Plan | None) -> None:
        uses = plan.uses.values() if plan else ()
        names = sorted({str(key) for use in uses if use.kind is Kind.MAPPED for key in use.keys})
        if names:
            message = f"{type(self.model).__name__}: no rule for the use of {', '.join(names)}; it takes the slow way."
            warnings.warn(message, SlowGradientNorms, stacklevel=5)

    def _measure_chunk(self, images: Tensor, rules: Rules) -> fallback.Answer:
        plan = self._plan(images, rules)
        if plan is not None:
            try:
                return self._by_rules(plan, images, rules)
            except Unproved as reason:
                self._give_up(_key(images), reason)
        try:
            return fallback.mapped(self.model, images, self.parameters, self.multiple, self.temperatures)
        except (RuntimeError, ValueError):
            return fallback.looped(self.model, images, self.parameters, self.multiple, self.temperatures)

    def _replayed(self, plan: Plan, images: Tensor, rules: Rules) -> tuple[Tensor, Replay]:
        """Logits [N, C], and what the way back from them needs."""
        names = {id(one): name for name, one in self.parameters.items()}
        anchor = torch.zeros((), device=images.device, requires_grad=True)
        arranged = images.contiguous(memory_format=plan.memory_format)
        replay = Replay(plan, names, rules, Tally(len(images)), anchor, self.precision)
        with torch.enable_grad(), replay:
            return self.model(arranged), replay

    def _by_rules(self, plan: Plan, images: Tensor, rules: Rules) -> fallback.Answer:
        logits, replay = self._replayed(plan, images, rules)
        tally, anchor = replay.tally, replay.anchor
        levels = []
        for temperature in self.temperatures:
            seeds, scales = unit_seeds(entropy_gradient(logits, self.multiple, temperature))
            tally.clear()
            if logits.requires_grad:
                last = temperature is self.temperatures[-1]
                torch.autograd.grad(logits, anchor, seeds.to(logits), retain_graph=not last, allow_unused=True)
                pull_back(tally, replay.derived_weights(), self.parameters)
            levels.append(tally.table(self.parameters, scales))
        return logits.detach().to(images.dtype), torch.stack(levels)


def _key(images: Tensor) -> tuple[object, ...]:
    """What a plan depends on."""
    return images.shape[1:], images.dtype, images.device, channels_last(images)


def _state(tensor: Tensor) -> tuple[int, object]:
    """What changes when the tensor's numbers do; tensors of torch.inference_mode do not tell, so theirs always differs."""
    return tensor.data_ptr(), object() if tensor.is_inference() else tensor._version


def _refuse_training(modules: Sequence[nn.Module], model: nn.Module) -> None:
    if not any(module.training for module in modules):
        return
    name = next(name for name, module in model.named_modules() if module.training)
    where = name or type(model).__name__
    raise ValueError(f"{where} is in training mode: call eval() first, or BatchNorm and Dropout falsify the norms.")


def _check_finite(logits: Tensor, tensors: Tensor, start: int) -> None:
    for values, where in ((logits, "the logits"), (tensors.transpose(0, 1), "the gradient norms")):
        bad = ~torch.isfinite(values).flatten(1).all(1)
        if bad.any():
            raise NonFiniteScore([start + n for n in bad.nonzero().flatten().tolist()], where)
