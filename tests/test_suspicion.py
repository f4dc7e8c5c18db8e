"""Labels that look wrong, by loss against expectation."""

from __future__ import annotations

import torch

from lplgrad_backend.lplgrad.suspicion import excess_losses, suspected


def losses_along_a_line(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    predicted = torch.linspace(-3, 2, count)
    return 2.0 + 0.5 * predicted + 0.05 * torch.randn(count, generator=random), predicted


def test_one_loss_far_above_its_expectation_stands_out() -> None:
    losses, predicted = losses_along_a_line()
    losses[7] += 3.0
    excess, expected = excess_losses(losses, predicted)
    assert suspected(excess, torch.ones(40, dtype=torch.bool)) == [7]
    assert float(losses[7] - expected[7]) > 2.0


def test_a_large_loss_that_was_expected_does_not() -> None:
    losses, predicted = losses_along_a_line()
    losses[-1], predicted[-1] = 4.5, 5.0  # on the line
    assert suspected(excess_losses(losses, predicted)[0], torch.ones(40, dtype=torch.bool)) == []


def test_a_label_that_the_model_would_choose_too_is_not_suspected() -> None:
    losses, predicted = losses_along_a_line()
    losses[7] += 3.0
    assert suspected(excess_losses(losses, predicted)[0], torch.zeros(40, dtype=torch.bool)) == []


def test_the_most_suspect_comes_first() -> None:
    losses, predicted = losses_along_a_line()
    losses[30] += 5.0
    losses[3] += 2.0
    assert suspected(excess_losses(losses, predicted)[0], torch.ones(40, dtype=torch.bool)) == [30, 3]


def test_too_few_images_and_equal_losses_have_no_spread() -> None:
    for losses in (torch.tensor([0.1, 9.0]), torch.ones(20), torch.zeros(0)):
        excess, expected = excess_losses(losses, torch.arange(len(losses)).float())
        assert excess.tolist() == [0.0] * len(losses)
        assert torch.isfinite(expected).all()
