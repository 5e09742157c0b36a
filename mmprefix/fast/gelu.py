"""Fused GELU: torch's own kernel in the place of a library's formula.

Claim: the tanh form of GELU that Transformers writes out in eight passes (GPT-2's) is one kernel of torch; results are
equal up to rounding (1e-12 in float64).
Measure: ``benchmarks/train_step.py``, with and without; the eight passes read and write (B N 4E) numbers each.
Off: ``MMPREFIX_FAST`` without ``gelu``.
"""

from __future__ import annotations

from torch import nn
from transformers.activations import NewGELUActivation


def fuse_gelu(model: nn.Module) -> None:
    """Replace every ``NewGELUActivation`` in ``model`` by ``nn.GELU(approximate="tanh")``."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
