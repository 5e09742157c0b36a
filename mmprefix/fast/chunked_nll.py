"""Chunked negative log-likelihood: targets after hidden states, without the logits of all positions at once.

Claim: a vocabulary is wide; the logits of a batch, their softmax and its gradient are the largest tensors of a training
step. Here a few rows at a time become logits, their log-likelihoods, and the gradient into the hidden states; only that
gradient, as wide as the hidden states, is kept. Values to 2e-6 and gradients to 5e-6 of the plain formula's (the idea
of fused linear cross-entropy, as in Liger Kernel, Hsu et al. 2024, https://arxiv.org/abs/2410.10989, here for a frozen
matrix, and with a weight of its own for each target).
Measure: ``benchmarks/train_step.py`` (time) and ``benchmarks/memory.py`` (peak memory, also with a wider vocabulary).
Off: ``MMPREFIX_FAST`` without ``chunked_nll``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MAX_ROWS, MIN_ROWS = 128, 32  # rows of logits at once: enough for fast matrix products, few enough to stay small
MAX_LOGITS = 1 << 23  # logits at once, where that is more rows than MIN_ROWS
ALIGN = 16  # numbers
GPU_FACTOR = 8  # times as many of both on a GPU, which has more to do at once


def chunked_nll(hidden: Tensor, head: nn.Linear, row: Tensor, target: Tensor) -> Tensor:
    """Hidden states (R E), a frozen output matrix (V E) → the negative log-likelihood (C,) float32 of ``target`` (C,).

    Target c is predicted by hidden state ``row[c]``; a row may predict several targets, or none. The gradient goes into
    the hidden states only. ``row`` and ``target`` are best on the CPU: nothing has to wait for a GPU then. Within
    autocast the products are in its type.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    weight, bias = (None if part is None else part.to(dtype) for part in (head.weight, head.bias))
    with torch.autocast(kind, enabled=False):
        return _TargetNLL.apply(hidden.to(dtype), weight, bias, row, target)  # pyright: ignore


class _TargetNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, row: Tensor, target: Tensor) -> Tensor:
        """Save the mean (R E) of the output matrix' rows under each row's softmax, of which the gradient is made."""
        factor = GPU_FACTOR if hidden.is_cuda else 1
        count, size = len(hidden), min(MAX_ROWS * factor, max(MIN_ROWS, MAX_LOGITS * factor // len(weight)))
        needs_grad = ctx.needs_input_grad[0]
        expected = torch.empty_like(hidden) if needs_grad else hidden.new_empty(0)
        total = torch.empty(count, dtype=torch.float32, device=hidden.device)  # log of the sum over the vocabulary
        chosen = torch.empty(len(row), dtype=torch.float32, device=hidden.device)
        order = row.argsort()  # targets in the order of their rows, so that each block has a run of them
        ends = torch.searchsorted(row[order], torch.arange(0, count + size, size, device=row.device).clamp(max=count))
        bounds = ends.tolist()
        order, row, target = (part.to(hidden.device, non_blocking=True) for part in (order, row, target))
        padded = -(-len(weight) // ALIGN) * ALIGN  # fast products of half precision need rows aligned to such multiples
        buffer = hidden.new_empty(min(size, count), padded)[:, : len(weight)]
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
        return gradient.to(expected.dtype), None, None, None, None
