"""Online and offline expert of one saved model, asked together; see ``mmprefix.mappers.online_offline``.

both = join_models(experts_of(mmprefix.load("runs/task2/model")), Strongest())
"""

from __future__ import annotations

from collections.abc import Callable

from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.online_offline import OnlineOffline
from mmprefix.model import Branch, PrefixLM


def experts_of(predictor: Predictor) -> list[Predictor]:
    """Predictors with the online and with the offline experts of a model. Raises InputError where it has none."""
    model = predictor.model
    mappers = [model.task_prefix, *model.mappers.values()]
    if not any(isinstance(mapper, OnlineOffline) for mapper in mappers):
        raise InputError("experts_of: the model has no mmprefix.mappers.online_offline.OnlineOffline; train one")
    return [
        Predictor(_with(model, offline), predictor.settings, predictor.source, predictor.users)
        for offline in (False, True)
    ]


def _with(model: PrefixLM, offline: bool) -> PrefixLM:
    """Model whose mappers are one expert each."""

    def expert(mapper: Mapper | None) -> Callable[[Sizes], Mapper] | None:
        if isinstance(mapper, OnlineOffline):
            mapper = mapper.offline_expert() if offline else mapper.mapper
        own = mapper
        return None if own is None else lambda sizes: own

    branches = {n: Branch(model.encoder(n), expert(model.mapper(n)), model.contexts.get(n)) for n in model.encoders}
    prefix = expert(model.task_prefix)
    return PrefixLM(branches, model.decoder, prefix, wording=model.wording, transcriber=model.transcriber)
