"""Several trained models that write one text: same inputs, same decoder, a prefix each; see ``generation.several``.

guided = join_models([mmprefix.load("runs/formal/model"), None], Guidance(2.0))
guided("dog.wav", num_beams=4)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from torch import nn

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.generation.several.join import Join
from mmprefix.generation.several.search import write_joined
from mmprefix.inference.predictor import Predictor
from mmprefix.kv_cache.state import State
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.model import Branch, PrefixLM
from mmprefix.types import Batch, Candidate, Prefix


def join_models(models: Sequence[Predictor | None], join: Join) -> Predictor:
    """Predictor whose texts ``join`` makes of what all ``models`` say; None is the decoder without any prefix.

    Inputs and decoding defaults are those of the first model that is one; another reads what it has branches for. Only
    whole texts are written together: all other calls raise InputError, and so do models over different decoders, or
    over one that they train.
    """
    join.require(len(models))
    first = next((model for model in models if model is not None), None)
    if first is None:
        raise InputError("join_models: needs a model; None is the decoder of the others without a prefix")
    joined = JoinedLM([None if model is None else model.model for model in models], join)
    return Predictor(joined, first.settings, first.source, first.users)


class JoinedLM(PrefixLM):
    """First of the ``models``, whose texts are written with the prefixes of all of them."""

    def __init__(self, models: Sequence[PrefixLM | None], join: Join) -> None:
        first = next(model for model in models if model is not None)
        branches = {
            name: Branch(first.encoder(name), built_already(first.mapper(name)), first.contexts.get(name))
            for name in first.encoders
        }
        prefix = built_already(first.task_prefix)
        super().__init__(branches, first.decoder, prefix, wording=first.wording, transcriber=first.transcriber)
        self.join, self.order = join, [model is not None for model in models]
        self.models = nn.ModuleList([model for model in models if model is not None])
        for model in models:
            if model is not None:
                _require_same(first, model)

    def states(self, batch: Batch) -> list[State]:
        """States of the first model's decoder after each model's prefix and prompt."""
        models, states = iter(self.models), list[State]()
        for exists in self.order:
            if exists:
                model = cast(PrefixLM, next(models))
                own = replace(batch, inputs={n: value for n, value in batch.inputs.items() if n in model.encoders})
                states.append(self.decoder.append(model.prefill(own), model.prompts(own)))
            else:
                empty = Prefix.empty(len(batch), self.decoder.width, next(self.parameters()).device)
                states.append(self.decoder.append(self.decoder.prefill(empty), self.prompts(batch)))
        return states

    def prefill(self, batch: Batch) -> State:
        """Refuse what goes on from one state: several models write, and answer nothing else together."""
        raise InputError("join_models: several models write whole texts together and nothing else (no stream, choose, "
                         "score); ask one of them")  # fmt: skip

    def generate(self, batch: Batch, options: GenerateOptions) -> list[list[Candidate]]:
        """Texts of each input that all prefixes write together, the best first."""
        decoder = cast(ComposedDecoder, self.decoder)
        return write_joined(decoder, self.states(batch), self.join, options, before=self.prompts(batch))

    def merged(self) -> PrefixLM:
        """Refuse to be saved: each of its models is saved on its own."""
        raise InputError("join_models: several models are not saved as one; save each of them, and join them again")


def built_already(mapper: Mapper | None) -> Callable[[Sizes], Mapper] | None:
    """Builder of a mapper that is built already."""
    return None if mapper is None else lambda sizes: mapper


def _require_same(first: PrefixLM, model: PrefixLM) -> None:
    """Refuse a decoder that is trained, or another than the first model's."""
    own, other = first.decoder, model.decoder
    if other.trained:
        raise InputError(f"join_models: the decoder {other.identity.source!r} is trained by one of the models; its "
                         "prefix means nothing to the others' decoder")  # fmt: skip
    if own is not other and own.identity.sha256 != other.identity.sha256:
        raise InputError(f"join_models: one model has the decoder {other.identity.source!r}, the first one "
                         f"{own.identity.source!r}; join models over one decoder")  # fmt: skip
