"""What callers of the gradient norms rely on: proved coverage, numerics, memory, threads, errors that name the image."""

from __future__ import annotations

import copy
import decimal
import math
import warnings
from decimal import Decimal

import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import CLASSES, NETWORKS, Body, build, pictures, unsettle
from torch import Tensor, nn

from lplgrad_backend.errors import NonFiniteScore
from lplgrad_backend.lplgrad.gradnorm import GradientNorms, SlowGradientNorms, gradient_norms
from lplgrad_backend.lplgrad.gradnorm.entropy import entropy_gradient

SIMPLE = "residual"


def assert_exact(found: Tensor, oracle: Tensor) -> None:
    torch.testing.assert_close(found, oracle, rtol=1e-3, atol=1e-6 * oracle.abs().max().item())


# What is not known has no rule, and is exact all the same


class Mixture(nn.Module):
    """A parameter that meets the images in an einsum, for which there is no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mixing = nn.Conv2d(3, 5, 3), nn.Parameter(torch.randn(5, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("nchw,ck->nk", F.relu(self.conv(images)), self.mixing) / 9


class Gated(nn.Module):
    """An activation that cannot be mapped over images: it asks for a tensor's value."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold, self.head = nn.Parameter(torch.tensor(0.4)), nn.Linear(3, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        pooled = images.mean((2, 3))
        if pooled.sum().item() > -1e9:
            pooled = torch.where(pooled > self.threshold, pooled * self.threshold, pooled)
        logits: Tensor = self.head(pooled)
        return logits


class Halving(torch.autograd.Function):
    """x / 2 * w, in a way that no one outside can see."""

    @staticmethod
    def forward(ctx, x, weight):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        ctx.save_for_backward(x, weight)
        return x * weight / 2

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        x, weight = ctx.saved_tensors
        return gradient * weight / 2, (gradient * x / 2).sum().reshape(1)


class Unseen(nn.Module):
    """A parameter that reaches the images inside a function of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.tensor([1.5])), nn.Linear(3, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(Halving.apply(images.mean((2, 3)), self.weight))
        return logits


class Cross(nn.Module):
    """Attention of some learned questions to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.questions, self.attention = nn.Parameter(torch.randn(2, 6)), nn.MultiheadAttention(6, 2, batch_first=True)
        self.patches, self.head = nn.Conv2d(3, 6, 3, 3), nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).mT
        questions = self.questions.unsqueeze(0).expand(len(x), -1, -1)
        logits: Tensor = self.head(self.attention(questions, x, x)[0].mean(1))
        return logits


UNKNOWN = {
    "einsum": (Mixture, "mixing"),
    "asking for values": (Gated, "Gated"),
    "a function of its own": (Unseen, "Unseen"),
    "attention to something else": (Cross, "attention"),
    "uneven padding": (lambda: Body(nn.Conv2d(3, 5, 2, padding="same"), nn.Tanh(), channels=5), "layers.0.weight"),
}


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize(("builder", "named"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_has_no_rule_is_exact_and_one_warning_names_it(builder: type[nn.Module], named: str) -> None:
    network, images = build(builder), pictures(5)
    with pytest.warns(SlowGradientNorms, match=named) as caught:
        scorer = GradientNorms(network)
        found = scorer.measure(images)
        scorer.measure(images)
    assert len([one for one in caught if one.category is SlowGradientNorms]) == 1
    assert_exact(found.tensors[0], reference.gradient_norms(network, images, per_tensor=True))


def test_images_that_mix_are_taken_one_by_one() -> None:
    """BatchNorm without running averages looks at its batch; the score is that of an image that comes alone."""
    network = build(lambda: Body(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, track_running_stats=False), channels=5))
    with pytest.warns(SlowGradientNorms, match="Body"):
        found = gradient_norms(network, pictures(3))
    assert_exact(found, reference.gradient_norms(network, pictures(3)))


class Fork(nn.Module):
    """Takes other weights for bright images, and for those that come in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.bright, self.dark = nn.Linear(3, CLASSES), nn.Linear(3, CLASSES, bias=False)
        self.first = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        is_bright = bool(images[0].mean() > 0.5)
        pooled = self.first[int(is_bright)](images).mean((2, 3))
        logits: Tensor = self.bright(pooled) if is_bright else self.dark(pooled)
        return logits


@pytest.mark.parametrize("frozen", ["nothing", "bright", "first.1.1", "first"])
def test_a_network_that_takes_another_way_for_other_images_is_still_exact(frozen: str) -> None:
    network = build(Fork)
    for name, one in network.named_parameters():
        one.requires_grad_(not name.startswith(frozen))
    dark, bright = pictures(2) * 0.2, 1 - pictures(2) * 0.2
    scorer = GradientNorms(network, memory_budget=1)  # one image at a time
    assert_exact(scorer.measure(dark).norms, reference.gradient_norms(network, dark))
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always", SlowGradientNorms)
        found = scorer.measure(torch.cat([dark, bright])).norms
    assert_exact(found, reference.gradient_norms(network, torch.cat([dark, bright])))


# Numbers


def head_of(logits: Tensor) -> tuple[nn.Module, Tensor]:
    """A network and images [N, 3, 1, 1] whose logits are these [N, 3]."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    with torch.no_grad():
        network.get_parameter("1.weight").copy_(torch.eye(3))
        network.get_parameter("1.bias").zero_()
    return network.eval(), logits.reshape(-1, 3, 1, 1)


def exact_norms(row: list[float]) -> list[float]:
    """||dH/dW|| and ||dH/db|| of z = W x + b at W = 1, b = 0, in 200 digits."""
    with decimal.localcontext(prec=200):
        z = [Decimal(one) for one in row]
        total = sum((one.exp() for one in z), Decimal(0))
        p = [one.exp() / total for one in z]
        entropy = -sum((one * one.ln() for one in p), Decimal(0))
        bias = sum(((one * (one.ln() + entropy)) ** 2 for one in p), Decimal(0)).sqrt()
        length = sum((one * one for one in z), Decimal(0)).sqrt()
        return [float(bias * length), float(bias)]


@pytest.mark.parametrize("gap", [16.0, 40.0, 80.0, 200.0])
def test_saturated_logits_keep_their_digits(gap: float) -> None:
    """Two equal among them too, where autograd in float64 cancels."""
    rows = [[gap, 0.0, -1.0], [0.0, -gap, 0.0], [0.0, gap, gap + 1]]
    network, images = head_of(torch.tensor(rows))
    found = gradient_norms(network, images, per_tensor=True)
    for norms, row in zip(found.tolist(), rows, strict=True):
        assert norms == pytest.approx(exact_norms(row), rel=1e-3, abs=0.0)


def test_equal_logits_are_exactly_zero() -> None:
    network, images = head_of(torch.full((2, 3), 0.7))
    assert gradient_norms(network, images).tolist() == [0.0, 0.0]
    network, images = head_of(torch.zeros(2, 3))
    assert gradient_norms(network, images, multiple=True).tolist() == [0.0, 0.0]


@given(st.lists(st.floats(-300, 300), min_size=2, max_size=6), st.booleans(), st.floats(0.25, 8))
def test_the_entropys_gradient_is_finite_and_right(row: list[float], multiple: bool, temperature: float) -> None:
    logits = torch.tensor([row], dtype=torch.float64)
    found = entropy_gradient(logits, multiple, temperature)
    scaled = (logits / temperature).requires_grad_()
    if multiple:
        on, off = F.logsigmoid(scaled), F.logsigmoid(-scaled)
        entropy = -(on.exp() * on + off.exp() * off).sum()
    else:
        entropy = -(torch.softmax(scaled, 1) * torch.log_softmax(scaled, 1)).sum()
    [wanted] = torch.autograd.grad(entropy, scaled)
    assert found.isfinite().all()
    torch.testing.assert_close(found, wanted / temperature, rtol=1e-6, atol=1e-12)


def test_two_classes_and_one_label() -> None:
    network = build(lambda: nn.Sequential(nn.Flatten(), nn.Linear(243, 2)))
    assert_exact(gradient_norms(network, pictures(4)), reference.gradient_norms(network, pictures(4)))
    network = build(lambda: nn.Sequential(nn.Flatten(), nn.Linear(243, 1)))
    oracle = reference.gradient_norms(network, pictures(4), multiple=True)
    assert_exact(gradient_norms(network, pictures(4), multiple=True), oracle)


def test_confident_and_undecided_images() -> None:
    network = build(NETWORKS[SIMPLE])
    for factor in (0.001, 1.0, 30.0, 300.0):
        sharp = copy.deepcopy(network)
        with torch.no_grad():
            sharp.get_parameter("head.weight").mul_(factor)
        found, oracle = gradient_norms(sharp, pictures(6)), reference.gradient_norms(sharp, pictures(6))
        torch.testing.assert_close(found, oracle, rtol=1e-3, atol=1e-6 * oracle.max().item())


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(7)), st.sampled_from([SIMPLE, "attention", "shared", "group norm"]))
def test_the_order_of_a_batch_is_the_order_of_its_norms(order: list[int], name: str) -> None:
    network, images = build(NETWORKS[name]), pictures(7)
    norms, permuted = gradient_norms(network, images), gradient_norms(network, images[order])
    torch.testing.assert_close(permuted, norms[order], rtol=1e-4, atol=1e-7)


@settings(deadline=None, max_examples=25)
@given(st.floats(-20, 20))
def test_what_all_logits_share_changes_nothing_before_the_head(shift: float) -> None:
    """Softmax does not see a constant, and the head's weight is multiplied with none of it."""
    network, shifted = build(NETWORKS[SIMPLE]), build(NETWORKS[SIMPLE])
    with torch.no_grad():
        shifted.get_parameter("head.bias").add_(shift)
    norms, same = (gradient_norms(one, pictures(4), per_tensor=True) for one in (network, shifted))
    torch.testing.assert_close(same, norms, rtol=1e-3, atol=1e-5 * norms.max().item())


def test_temperatures_share_one_look() -> None:
    network, images = build(NETWORKS["relu"]), pictures(4)
    found = GradientNorms(network, temperatures=(1.0, 2.0, 5.0)).measure(images)
    for temperature, norms in zip((1.0, 2.0, 5.0), found.ladder, strict=True):
        assert_exact(norms, reference.gradient_norms(network, images, temperature=temperature))
        assert_exact(norms, gradient_norms(network, images, temperature=temperature))
    torch.testing.assert_close(found.norms, found.ladder[0])


# What a measurement says


def test_the_table_adds_up_and_has_a_name_for_each_column() -> None:
    network, images = build(NETWORKS["unused head"]), pictures(3)
    found = GradientNorms(network).measure(images)
    assert found.names == tuple(name for name, _ in network.named_parameters())
    torch.testing.assert_close(found.tensors[0].sum(1), gradient_norms(network, images))
    unused = [at for at, name in enumerate(found.names) if name.startswith("other_head")]
    assert not found.tensors[0][:, unused].any()
    torch.testing.assert_close(found.logits, network(images))


def test_the_network_is_left_as_it_was() -> None:
    network = build(NETWORKS[SIMPLE])
    before = copy.deepcopy(network.state_dict())
    gradient_norms(network, pictures(3))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(one.grad is None and one.requires_grad for one in network.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())


def test_weights_may_change_between_batches() -> None:
    network, images = build(NETWORKS[SIMPLE]), pictures(3)
    scorer = GradientNorms(network)
    scorer.measure(images)
    unsettle(network, seed=9)
    assert_exact(scorer.measure(images).norms, reference.gradient_norms(network, images))


def test_what_is_kept_of_weights_lasts_as_long_as_they() -> None:
    network, images = build(NETWORKS[SIMPLE]), pictures(3)
    scorer = GradientNorms(network)
    scorer.measure(images)
    kept = dict(next(iter(scorer._rules.values())))
    scorer.measure(pictures(2))
    assert kept and all(rule is next(iter(scorer._rules.values()))[place] for place, rule in kept.items())
    unsettle(network, seed=9)
    scorer.measure(images)
    assert not {*map(id, kept.values())} & {*map(id, next(iter(scorer._rules.values())).values())}


def test_weights_that_do_not_tell_of_their_changes() -> None:
    with torch.inference_mode():
        network = build(NETWORKS[SIMPLE])
    scorer, images = GradientNorms(network), pictures(3)
    first = scorer.measure(images).norms
    with torch.inference_mode():
        for one in network.parameters():
            one.mul_(1.5)
    assert not torch.allclose(scorer.measure(images).norms, first)


def test_no_images_have_no_norms() -> None:
    found = GradientNorms(build(NETWORKS[SIMPLE])).measure(pictures(0))
    assert found.norms.shape == (0,)
    assert gradient_norms(build(NETWORKS[SIMPLE]), pictures(0)).shape == (0,)


# What is refused


def test_training_mode_is_refused() -> None:
    network = build(NETWORKS[SIMPLE])
    network.get_submodule("layers.1.layers.1").train()
    with pytest.raises(ValueError, match=r"layers.1.layers.1 is in training mode"):
        gradient_norms(network, pictures(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_image_that_is_not_finite_is_named(bad: float) -> None:
    images = pictures(5)
    images[1, 0, 2, 2] = images[4, 1, 0, 0] = bad
    with pytest.raises(NonFiniteScore) as caught:
        gradient_norms(build(NETWORKS["relu"]), images, memory_budget=1)
    assert caught.value.indices in ([1], [4])
    with pytest.raises(NonFiniteScore) as caught:
        gradient_norms(build(NETWORKS["relu"]), images)
    assert caught.value.indices == [1, 4]


def test_an_image_that_overflows_inside_is_named() -> None:
    network, images = build(NETWORKS["linear"]), pictures(3)
    images[2] = torch.finfo(torch.float32).max
    with pytest.raises(NonFiniteScore) as caught:
        gradient_norms(network, images)
    assert caught.value.indices == [2]


def test_the_slow_way_names_the_image_too() -> None:
    network, images = build(Mixture), pictures(4)
    images[3] = math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowGradientNorms)
        with pytest.raises(NonFiniteScore) as caught:
            gradient_norms(network, images)
    assert caught.value.indices == [3]
