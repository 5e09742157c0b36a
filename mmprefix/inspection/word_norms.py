"""Norm of each position of a prefix, beside the norms of the decoder's own word embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch

from mmprefix.errors import InputError
from mmprefix.inference.call_options import CallOptions
from mmprefix.inference.inputs import Input
from mmprefix.inference.predictor import Predictor
from mmprefix.inspection.prefix_rows import prefix_row
from mmprefix.inspection.words import composed, embedding_rows
from mmprefix.types import to_list


@dataclass(frozen=True)
class Norms:
    """Euclidean norms of a prefix's embeddings, ``positions`` (P), and of the embeddings of all tokens.

    ``mean``, ``low``, ``median`` and ``high`` are the mean and the 5th, 50th and 95th percentile over the tokens.
    ``deep`` positions of keys and values stand before these and have no norm that could be compared.
    """

    positions: list[float]
    mean: float
    low: float
    median: float
    high: float
    deep: int = 0

    @property
    def outside(self) -> list[int]:
        """Positions (counted from 0 among the embeddings) that are shorter or longer than nine words in ten."""
        return [n for n, norm in enumerate(self.positions) if not self.low <= norm <= self.high]


def norms(model: Predictor, file: Input | None, **options: Unpack[CallOptions]) -> Norms:
    """Norms of the prefix of one input. ``options``: prompt, context, user ...; see ``CallOptions``.

    Raises InputError for a prefix of keys and values alone: no word has any to compare with.
    """
    row = prefix_row(model, file, options)
    if row.soft is None:
        raise InputError("norms: this model's prefix is keys and values, which no word's embedding compares with")
    own = row.soft.embeds[0].float().norm(dim=1)
    words = torch.cat([matrix.norm(dim=1) for _, matrix in embedding_rows(composed(model.model.decoder))])
    low, median, high = to_list(words.quantile(torch.tensor([0.05, 0.5, 0.95], device=words.device)))
    return Norms(to_list(own), float(words.mean()), low, median, high, row.lengths[0])
