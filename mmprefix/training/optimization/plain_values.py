"""Values of a search over NumPy as tensors and Python's numbers, and back: a checkpoint of them runs no code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def plain_value(value: Any) -> Any:
    """Arrays as tensors, numbers of NumPy as Python's, anything else as it is."""
    if hasattr(value, "shape") and value.shape:
        return torch.as_tensor(value)
    return getattr(value, "item", lambda: value)()


def array_value(value: Any) -> Any:
    """Tensors as arrays of their own, anything else as it is."""
    return value.cpu().numpy().copy() if isinstance(value, Tensor) else value
