"""Top-k by chunks: the greatest of many values without sorting copies of all of them.

Claim: on a CPU ``torch.topk`` sorts copies of all values with their indices. The greatest of each chunk of 64 are
sorted instead, and then the chunks that the first ``count`` of them are in. Values and indices are those of ``topk``.
Measure: ``benchmarks/generate.py``, beams, with and without.
Off: ``MMPREFIX_FAST`` without ``chunked_topk``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmprefix.fast import switches

CHUNK = 64  # tokens whose greatest is compared first


def chunked_topk(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` greatest of values (... V) and their indices, (... C) both, the greatest first."""
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
