"""Plain tables: the numbers that they are made of come back for every input, and nothing else is kept."""

from __future__ import annotations

import torch

from mmprefix.mappers.base import Sizes, join_layers
from mmprefix.mappers.plain_tables import table_of_embeddings, table_of_key_values
from mmprefix.types import Features

SIZES = Sizes(0, 0, 8, 2, 2, 4)
NOTHING = Features.empty(3, torch.device("cpu"))


def test_embeddings_come_back_for_every_input() -> None:
    embeds = torch.randn(5, 8)
    table = table_of_embeddings(SIZES, embeds)
    prefix = table(NOTHING)
    assert torch.equal(prefix.embeds, embeds.expand(3, 5, 8))
    assert prefix.mask.all()
    assert sum(part.numel() for part in table.parameters()) == embeds.numel()


def test_keys_and_values_come_back_for_every_input() -> None:
    vectors = torch.randn(5, 2 * 2 * 2 * 4)
    table = table_of_key_values(SIZES, vectors)
    prefix = table(NOTHING)
    assert torch.equal(join_layers(prefix), vectors.expand(3, 5, 32))
    assert prefix.mask.all()
    assert sum(part.numel() for part in table.parameters()) == vectors.numel()
