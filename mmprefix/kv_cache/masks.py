"""Attention masks: booleans → additive biases."""

from __future__ import annotations

import torch
from torch import Tensor


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Which keys each query may look at, (B N T) → what is added to their scores, (B 1 N T)."""
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return zeros.masked_fill(~visible, torch.finfo(dtype).min)[:, None]
