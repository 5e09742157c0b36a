"""Top-k log-probabilities, a few hypotheses at a time, so that no copy of (B W V) logits is made."""

from __future__ import annotations

import torch
from torch import Tensor

NUMBERS = 1 << 20  # logits at once on a CPU


CHUNK = 64  # tokens whose greatest is looked at first


def chunked_topk(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` greatest of values (... V) and their places, the greatest first.

    On a CPU torch sorts copies of all values with their places; here first the greatest of each chunk are sorted, and
    then the chunks that the first ``count`` of them are in.
    """
    if count == 1:
        found = values.max(-1, keepdim=True)
        return found.values, found.indices
    chunks = values.shape[-1] // CHUNK
    if values.device.type != "cpu" or chunks < 4 * count:
        return values.topk(count, dim=-1)
    even, rest = values.split([chunks * CHUNK, values.shape[-1] - chunks * CHUNK], dim=-1)
    even = even.unflatten(-1, (chunks, CHUNK))
    places = even.amax(-1).topk(count, dim=-1).indices[..., None]  # (... C 1)
    inside = even.gather(-2, places.expand(*places.shape[:-1], CHUNK)).flatten(-2)
    ids = (places * CHUNK + torch.arange(CHUNK)).flatten(-2)
    ends = torch.arange(chunks * CHUNK, values.shape[-1]).expand(rest.shape)
    found = torch.cat([inside, rest], dim=-1).topk(count, dim=-1)
    return found.values, torch.cat([ids, ends], dim=-1).gather(-1, found.indices)
