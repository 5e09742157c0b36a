"""Top-k by chunks: the greatest of many values without sorting copies of all of them.

Claim: on a CPU ``torch.topk`` sorts copies of all values with their indices. Here the maxima of chunks of 64 are sorted
first, and then the values of the chunks with the ``count`` greatest maxima. Values and indices are those of ``topk``.
Measure: ``benchmarks/generate.py``, beam search, with and without.
Off: ``MMPREFIX_FAST`` without ``chunked_topk``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmprefix.fast import switches

CHUNK = 64  # values of a chunk, whose maximum is compared first


def chunked_topk(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Greatest ``count`` of values (... V) and their indices, (... C) both, in descending order."""
    chunks = values.shape[-1] // CHUNK
    if values.device.type != "cpu" or chunks < 4 * count or "chunked_topk" not in switches.ENABLED:
        return values.topk(count, dim=-1)
    even, rest = values.split([chunks * CHUNK, values.shape[-1] - chunks * CHUNK], dim=-1)
    even = even.unflatten(-1, (chunks, CHUNK))
    best = even.amax(-1).topk(count, dim=-1).indices[..., None]  # (... C 1) chunks
    inside = even.gather(-2, best.expand(*best.shape[:-1], CHUNK)).flatten(-2)
    ids = (best * CHUNK + torch.arange(CHUNK)).flatten(-2)
    ends = torch.arange(chunks * CHUNK, values.shape[-1]).expand(rest.shape)
    top = torch.cat([inside, rest], dim=-1).topk(count, dim=-1)
    return top.values, torch.cat([ids, ends], dim=-1).gather(-1, top.indices)
