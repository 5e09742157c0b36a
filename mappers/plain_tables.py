"""Plain tables: what is left of a learned prefix after training, whatever made its numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.p_tuning_v2 import DeepTable


@torch.no_grad()
def table_of_embeddings(sizes: Sizes, embeds: Tensor) -> Mapper:
    """Mapper to ``embeds`` (P E), the same for every input."""
    table = Learned(sizes, length=len(embeds)).to(embeds.device)
    table.embeds.copy_(embeds)
    return table


@torch.no_grad()
def table_of_key_values(sizes: Sizes, vectors: Tensor) -> Mapper:
    """Mapper to the keys and values ``vectors`` (P 2*L*H*K) of every layer, the same for every input."""
    table = DeepTable(sizes, length=len(vectors)).to(vectors.device)
    table.table.copy_(vectors)
    return table
