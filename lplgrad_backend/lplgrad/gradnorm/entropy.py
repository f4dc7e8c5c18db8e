"""Entropy of the predicted distribution, differentiated by hand.

    u_c = z_c / T - max_j z_j / T,  p = softmax(u)       one class per image
    H       = -sum_c p_c log p_c
    dH/dz_c = -p_c (log p_c + H) / T = -p_c (u_c - sum_j p_j u_j) / T

    u_c = z_c / T,  s = sigmoid                          any number of classes per image
    H       = sum_c of the entropy of a coin with P = s(u_c)
    dH/dz_c = -u_c s(u_c) s(-u_c) / T

Both last forms subtract nothing that nearly cancels, so they hold for saturated logits, and are exactly 0 for equal ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

TEMPERATURES = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""The ladder over which ties are repaired: at T an image counts as undecided whose logits differ by less than about T."""


def entropy_gradient(logits: Tensor, multiple: bool, temperature: float = 1.0) -> Tensor:
    """dH/dlogits.

    Args:
        logits: finite, [N, C], any floating dtype.
        multiple: a sigmoid for each class instead of one softmax.
        temperature: T > 0; 1 is the paper's entropy.

    Returns:
        float64 [N, C].
    """
    scaled = logits.detach().double() / temperature
    if multiple:
        return -scaled * torch.sigmoid(scaled) * torch.sigmoid(-scaled) / temperature
    shifted = scaled - scaled.amax(1, keepdim=True)
    probabilities = torch.softmax(shifted, 1)
    mean = (probabilities * shifted).sum(1, keepdim=True)
    return -probabilities * (shifted - mean) / temperature
