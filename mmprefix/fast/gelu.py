"""Fused GELU: one kernel of torch in place of a formula in eight operations.

Claim: the tanh approximation of GELU, which Transformers computes in eight operations (for GPT-2), is one kernel of
torch; results are equal up to rounding (1e-12 in float64).
Measure: ``benchmarks/train_step.py``, with and without; each of the eight operations reads and writes (B N 4E) numbers.
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
