"""Chunked negative log-likelihood: targets after hidden states, without the logits of all positions at once.

Claim: a vocabulary is wide; the logits of a batch, their softmax and its gradient are the largest tensors of a training
step. Here logits, log-likelihoods and the gradient into the hidden states are computed for a few rows at a time; only
that gradient, as wide as the hidden states, is kept. Values agree with the plain formula to 2e-6, gradients to 5e-6.
The idea is fused linear cross-entropy, as in Liger Kernel (Hsu et al. 2024, https://arxiv.org/abs/2410.10989), here for
a frozen matrix and with one weight per target.
Measure: ``benchmarks/train_step.py`` (time) and ``benchmarks/memory.py`` (peak memory, also with a wider vocabulary).
Off: ``MMPREFIX_FAST`` without ``chunked_nll``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MAX_ROWS, MIN_ROWS = 128, 32  # rows of logits in a block: enough for fast matrix products, few enough to stay small
MAX_LOGITS = 1 << 23  # logits in a block, unless MIN_ROWS rows are more
ALIGN = 16  # fast products of half precision need rows whose length is a multiple of this
GPU_FACTOR = 8  # rows and logits of a block on a GPU are this many times more


def chunked_nll(
    hidden: Tensor, head: nn.Linear, row: Tensor, target: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Hidden states (R E), a frozen output matrix (V E) → the negative log-likelihood (C,) float32 of ``target`` (C,).

    Target c is predicted by hidden state ``row[c]``; a row may predict several targets, or none. The gradient goes into
    the hidden states only; ``label_smoothing`` spreads that share of each target evenly over the vocabulary. Keep
    ``row`` and ``target`` on the CPU: then nothing waits for a GPU. Within autocast the products have its dtype.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    bias: Tensor | None = head.bias
    matrix = _OutputMatrix(head.weight.to(dtype), None if bias is None else bias.to(dtype))
    with torch.autocast(kind, enabled=False):
        nll: Tensor = _TargetNLL.apply(hidden.to(dtype), matrix, _Targets(row, target))
        if not label_smoothing:
            return nll
        return nll + label_smoothing * _above_mean(hidden.to(dtype), matrix, row.to(hidden.device), target)


def _above_mean(hidden: Tensor, head: _OutputMatrix, row: Tensor, target: Tensor) -> Tensor:
    """Logit of each target above the mean logit of its row, (C,) float32: the mean is a product with the mean word."""
    target = target.to(hidden.device)
    words = head.weight[target].float() - head.weight.mean(0, dtype=torch.float32)
    above = (hidden[row].float() * words).sum(-1)
    return above if head.bias is None else above + head.bias[target].float() - head.bias.mean(dtype=torch.float32)


@dataclass(frozen=True)
class _OutputMatrix:
    """Frozen weight (V E) and bias (V,)."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class _Targets:
    """For each target its row of hidden states (C,) and its token id (C,)."""

    row: Tensor
    ids: Tensor


class _TargetNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: _OutputMatrix, targets: _Targets) -> Tensor:
        """Save each row's mean (R E) of the output matrix under its softmax: the gradient is computed from it."""
        weight, bias, row, target = head.weight, head.bias, targets.row, targets.ids
        factor = GPU_FACTOR if hidden.is_cuda else 1
        count, size = len(hidden), min(MAX_ROWS * factor, max(MIN_ROWS, MAX_LOGITS * factor // len(weight)))
        needs_grad = ctx.needs_input_grad[0]
        expected = torch.empty_like(hidden) if needs_grad else hidden.new_empty(0)
        total = torch.empty(count, dtype=torch.float32, device=hidden.device)  # log-sum-exp over the vocabulary
        chosen = torch.empty(len(row), dtype=torch.float32, device=hidden.device)
        order = row.argsort()  # targets sorted by row: each block of rows has a contiguous run of them
        ends = torch.searchsorted(row[order], torch.arange(0, count + size, size, device=row.device).clamp(max=count))
        bounds = ends.tolist()
        order, row, target = (part.to(hidden.device, non_blocking=True) for part in (order, row, target))
        padded = -(-len(weight) // ALIGN) * ALIGN
        # zeros: bfloat16 kernels for AMX multiply what stands behind a row, too, and NaN times zero is NaN
        buffer = hidden.new_zeros(min(size, count), padded)[:, : len(weight)]
        for block, start in enumerate(range(0, count, size)):
            part = hidden[start : start + size]
            logits = torch.mm(part, weight.T, out=buffer[: len(part)])
            if bias is not None:
                logits += bias
            own = order[bounds[block] : bounds[block + 1]]
            chosen[own] = logits[row[own] - start, target[own]].float()
            mass = logits if logits.dtype == torch.float32 else logits.float()
            greatest = mass.amax(-1, keepdim=True)
            mass.sub_(greatest).exp_()
            sums = mass.sum(-1, keepdim=True)
            total[start : start + size] = (greatest + sums.log())[:, 0]
            if needs_grad:
                expected[start : start + size] = (logits.copy_(mass) @ weight).div_(sums)
        ctx.save_for_backward(expected, weight, row, target)
        return total[row] - chosen

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        expected, weight, row, target = ctx.saved_tensors
        above = upstream[0]
        share = above.new_zeros(len(expected)).index_add(0, row, above)
        gradient = expected * share[:, None]
        gradient = gradient.index_add(0, row, (weight[target] * -above[:, None]).to(gradient.dtype))
        return gradient.to(expected.dtype), None, None
