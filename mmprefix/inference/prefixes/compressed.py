"""A model's deep prefix in 8 or 4 bits a number, saved and loaded as any other.

small = compress_prefix(mmprefix.load("runs/task/model"), bits=4)
small.save("runs/task/small")
"""

from __future__ import annotations

from typing import cast

import torch

from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.inference.prefixes.joined import built_already
from mmprefix.mappers.base import Mapper
from mmprefix.mappers.compressed import CompressedTable, Scales
from mmprefix.model import Branch, PrefixLM
from mmprefix.types import DeepPrefix, Features


@torch.no_grad()
def compress_prefix(predictor: Predictor, bits: int = 8, *, scales: Scales = "head", exact: int = 1) -> Predictor:
    """Copy of ``predictor`` whose task prefix is a ``CompressedTable`` of these options; the other parts are shared.

    Raises InputError for a model whose task prefix is no deep one that is the same for every input.
    """
    model = predictor.model.merged()
    mapper = model.task_prefix
    prefix = None if mapper is None or mapper.reads_input else mapper(Features.empty(1, predictor.device))
    if not isinstance(prefix, DeepPrefix):
        raise InputError("compress_prefix: this model has no task prefix (model.prefix) of keys and values, or it "
                         "depends on the input; only such a one is the same numbers for all")  # fmt: skip
    table = CompressedTable(
        cast(Mapper, mapper).sizes, length=prefix.mask.shape[1], bits=bits, scales=scales, exact=exact
    )
    table.to(predictor.device).fill(prefix)
    branches = {
        n: Branch(model.encoder(n), built_already(model.mapper(n)), model.contexts.get(n)) for n in model.encoders
    }
    small = PrefixLM(branches, model.decoder, lambda sizes: table, wording=model.wording, transcriber=model.transcriber)
    return Predictor(small, predictor.settings, predictor.source, predictor.users)
