"""Encoder → mapper → prefix → decoder: the one file that knows all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmprefix.decoders.base import Decoder, TextLoss, require_frames_are_read
from mmprefix.encoders.base import Encoder, EncoderMode
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.kv_cache.state import State
from mmprefix.mappers.base import Mapper, Sizes, check_context
from mmprefix.parts import builder_from_recipe, from_recipe, to_recipe
from mmprefix.prompt_template import PromptTemplate
from mmprefix.transcriber import Transcriber
from mmprefix.types import AnyPrefix, Batch, Candidate, Features, Prefix, concat_prefixes

FrozenParts = dict[str, Encoder | Decoder | Transcriber]
PartsCheck = Callable[[FrozenParts], None]
MapperBuilder = Callable[[dict[str, Any], str], Callable[[Sizes], Mapper]]


@dataclass
class Branch:
    """One input of the model: a frozen encoder, and the mapper that reads its features.

    Args:
        encoder: the frozen encoder.
        mapper: reads its features; None if only the decoder's cross-attention or another branch's mapper does.
        context: name of a branch whose features this mapper reads beside its own.
    """

    encoder: Encoder
    mapper: Callable[[Sizes], Mapper] | None = None
    context: str | None = None


class PrefixLM(nn.Module):
    """Branches by name, and the decoder that reads their prefixes.

    An input may have any subset of the branches; their prefixes are joined in the order of the branches. A mapper gets
    the features of its ``context`` too, with nothing real in rows that lack them. A decoder with cross-attention (see
    ``CrossDecoder``) attends to the frames of all branches that are as wide as those of its own encoder.

    Args:
        branches: at least one, unless there is a ``prefix``, or a text is read (``wording.context``).
        decoder: language model that reads prefixes and writes text.
        prefix: mapper that reads no input (``Learned``, ``DeepTable`` ...): the task's prefix, before all others.
        wording: templates of context, prompt and question.
        transcriber: writes the context of an input that has none, from its sound (see ``mmprefix.transcriber``).
    """

    def __init__(
        self,
        branches: dict[str, Branch],
        decoder: Decoder,
        prefix: Callable[[Sizes], Mapper] | None = None,
        *,
        wording: PromptTemplate | None = None,
        transcriber: Transcriber | None = None,
    ) -> None:
        super().__init__()
        if not branches and prefix is None and not (wording and wording.context):
            raise InputError("model.branches: at least one branch is needed, such as image or audio, or model.prefix")
        if taken := branches.keys() & {"decoder", "transcriber"}:
            raise InputError(f"model.branches.{min(taken)}: is the name of another part; give the branch another")
        self.decoder = decoder
        self.wording = wording or PromptTemplate()
        if transcriber is not None and not self.wording.context:
            raise InputError("model.transcriber: nothing reads its text; give model.wording.context or leave it out")
        self.transcriber = transcriber
        self.encoders = nn.ModuleDict({name: branch.encoder for name, branch in branches.items()})
        self.contexts = _contexts(branches)
        self.mappers = nn.ModuleDict()
        for name, branch in branches.items():
            if branch.mapper is not None:
                self.mappers[name] = branch.mapper(self._sizes(name))
        self.task_prefix = None if prefix is None else prefix(self._sizes(None))
        self._refuse_misfits()

    def encoder(self, name: str) -> Encoder:
        """Encoder of branch ``name``."""
        return cast(Encoder, self.encoders[name])

    def mapper(self, name: str) -> Mapper | None:
        """Mapper of branch ``name``, None for a branch without one."""
        return cast(Mapper, self.mappers[name]) if name in self.mappers else None

    def _sizes(self, name: str | None) -> Sizes:
        """Sizes between which the mapper of branch ``name`` (None: of the task prefix) is built."""
        decoder, beside = self.decoder, self._widths(None if name is None else self.contexts.get(name))
        heads = (decoder.heads, decoder.head_width, *beside, decoder.query_heads)
        return Sizes(*self._widths(name), decoder.width, decoder.layers, *heads, hidden=decoder.hidden_width)

    def _widths(self, name: str | None) -> tuple[int, int]:
        return (0, 0) if name is None else (self.encoder(name).dim, self.encoder(name).pooled_dim)

    def _refuse_misfits(self) -> None:
        """Refuse a branch that nothing reads, and a mapper that lacks a context or has no use for one."""
        if self.task_prefix is not None:
            check_context(self.task_prefix, None, "model.prefix")
        for name in self.encoders:
            mapper = self.mapper(name)
            if mapper is not None:
                check_context(mapper, self.contexts.get(name), f"model.branches.{name}")
            elif name not in self.contexts.values():
                require_frames_are_read(self.decoder, name, self.encoder(name).dim)
        memory_dim = self.decoder.memory_dim
        if memory_dim is not None and all(self.encoder(name).dim != memory_dim for name in self.encoders):
            raise InputError(
                f"model.branches: the decoder {self.decoder.identity.source!r} looks at frames that are "
                f"{memory_dim} wide, and no branch has any; add one with the encoder of the same model"
            )

    def features(self, inputs: Mapping[str, Any]) -> dict[str, Features]:
        """Media, or features encoded before, by branch name → features, in the order of the branches."""
        unknown = inputs.keys() - self.encoders.keys()
        if unknown or (not inputs and self.encoders and not self.reads_text):
            names = ", ".join(sorted(unknown)) or "(none given)"
            raise InputError(f"no branch for input {names}; this model reads {', '.join(self.encoders)}")
        ordered = {name: inputs[name] for name in self.encoders if name in inputs}
        return {n: value if isinstance(value, Features) else self.encoders[n](value) for n, value in ordered.items()}

    def build_prefix(
        self, inputs: Mapping[str, Any], absent: Mapping[str, Tensor] | None = None, count: int | None = None
    ) -> AnyPrefix:
        """Media, or features encoded before, by branch name → joined prefix of B inputs.

        ``absent`` (B, True) marks by branch the inputs to be treated as missing; ``count`` is B if ``inputs`` is empty.
        """
        return self._prefix(self.features(inputs), absent or {}, count)

    def _prefix(self, features: Mapping[str, Features], absent: Mapping[str, Tensor], count: int | None) -> AnyPrefix:
        count = next((len(value.mask) for value in features.values()), count or 1)
        device = next(self.decoder.parameters()).device
        dtype = next((p.dtype for p in self.mappers.parameters()), torch.float32)
        features = {name: value.to_dtype(dtype) for name, value in features.items()}
        prefixes: list[AnyPrefix] = []
        if self.task_prefix is not None:
            prefixes.append(cast(AnyPrefix, self.task_prefix(Features.empty(1, device))).expand(count))
        for name, value in features.items():
            if name in self.mappers:
                context = self._context(name, features, absent)
                prefix = cast(AnyPrefix, self.mappers[name](value, context))
                prefixes.append(prefix.mask_rows(absent[name]) if name in absent else prefix)
        return concat_prefixes(prefixes) if prefixes else Prefix.empty(count, self.decoder.width, device)

    def _context(self, name: str, features: Mapping[str, Features], absent: Mapping[str, Tensor]) -> Features | None:
        """Features that the mapper of branch ``name`` reads as its context, nothing real in rows that lack them."""
        context = self.contexts.get(name)
        if context is None:
            return None
        own, value = features[name], features.get(context)
        if value is None:
            return Features.empty(len(own.mask), own.mask.device, *self._widths(context)).to_dtype(own.frames.dtype)
        return value.mask_rows(absent[context]) if context in absent else value

    def prefill(self, batch: Batch) -> State:
        """State of the decoder after the prefixes of the batch, before any text."""
        features = self.features(batch.inputs)
        prefix = self._prefix(features, batch.absent, len(batch))
        if self.decoder.memory_dim is None:
            return self.decoder.prefill(prefix)
        memory = [value for name, value in features.items() if self.encoder(name).dim == self.decoder.memory_dim]
        return self.decoder.prefill(prefix, Features.concat(memory) if memory else None)

    def prompts(self, batch: Batch) -> list[str]:
        """Context and prompt of each input as the decoder reads them."""
        return [self.wording.render_prompt(c, p) for c, p in zip(batch.contexts, batch.prompts, strict=True)]

    def questions(self, batch: Batch) -> list[list[str]]:
        """Questions of each input as the decoder reads them."""
        return [[self.wording.render_question(question) for question in row] for row in batch.questions]

    @property
    def reads_text(self) -> bool:
        """True if the decoder reads contexts, so that an input may be text alone."""
        return bool(self.wording.context)

    def text_loss(self, batch: Batch, smoothing: float = 0.0) -> TextLoss:
        """Negative log-likelihood of each target of the batch; see ``Decoder.text_loss``."""
        state, prompts, questions = self.prefill(batch), self.prompts(batch), self.questions(batch)
        return self.decoder.text_loss(state, prompts, batch.targets, questions, smoothing=smoothing)

    def generate(self, batch: Batch, options: GenerateOptions) -> list[list[Candidate]]:
        """Generated texts of each input, the best first."""
        return self.decoder.generate(self.prefill(batch), self.prompts(batch), options)

    @torch.no_grad()
    def merged(self) -> PrefixLM:
        """Model for use after training, with merged mappers (see ``Mapper.merged``); the frozen parts are shared."""
        branches = {n: Branch(self.encoder(n), _merged(self.mapper(n)), self.contexts.get(n)) for n in self.encoders}
        prefix = _merged(self.task_prefix)
        return PrefixLM(branches, self.decoder, prefix, wording=self.wording, transcriber=self.transcriber)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters among ``trained``, also those of an encoder that is frozen by now: an optimiser keeps them."""
        names = self.trained.keys()
        return {name: parameter for name, parameter in self.named_parameters() if name in names}

    @property
    def trained(self) -> dict[str, Tensor]:
        """Tensors that training changes, by name: all of the mappers, and those that frozen parts declare."""
        parts = {f"encoders.{name}.": self.encoder(name).trained for name in self.encoders}
        parts["decoder."] = self.decoder.trained
        starts = ("mappers.", "task_prefix.", *(part + start for part, inside in parts.items() for start in inside))
        kept, seen = dict[str, Tensor](), set[tuple[int, torch.Size]]()
        for name, tensor in self.state_dict().items():
            key = (tensor.data_ptr(), tensor.shape)
            if name.startswith(starts) and (key not in seen or not tensor.numel()):  # tied tensors count once
                kept[name] = tensor
                seen.add(key)
        return kept

    def reads_frames(self, name: str) -> bool:
        """True if a branch's frames are read: by its mapper, as context of another, or by cross-attention."""
        shared = self.decoder.memory_dim is not None or name in self.contexts.values()
        mapper = self.mapper(name)
        return shared or mapper is None or mapper.reads_frames

    @property
    def frozen_parts(self) -> FrozenParts:
        """Parts that are not saved, by name: of their branch, "decoder", and "transcriber" if there is one."""
        return _frozen({name: self.encoder(name) for name in self.encoders}, self.decoder, self.transcriber)

    def recipe(self) -> dict[str, Any]:
        """Plain data from which ``from_recipe`` builds this model, without trained tensors."""
        branches = {
            name: {"encoder": to_recipe(self.encoder(name))}
            | ({"mapper": to_recipe(self.mappers[name])} if name in self.mappers else {})
            | ({"context": self.contexts[name]} if name in self.contexts else {})
            | ({"tuned": True} if self.encoder(name).saved else {})
            for name in self.encoders
        }
        recipe: dict[str, Any] = {"branches": branches, "decoder": to_recipe(self.decoder)}
        if self.task_prefix is not None:
            recipe["prefix"] = to_recipe(self.task_prefix)
        if self.wording != PromptTemplate():
            recipe["wording"] = asdict(self.wording)
        if self.transcriber is not None:
            recipe["transcriber"] = to_recipe(self.transcriber)
        return recipe

    @classmethod
    def from_recipe(
        cls,
        data: dict[str, Any],
        build: MapperBuilder | None = None,
        check: Callable[[FrozenParts], None] | None = None,
    ) -> PrefixLM:
        """Untrained model of ``recipe()``. ``build`` makes builders of mappers, ``check`` sees frozen parts first."""
        build = build or (lambda recipe, _: builder_from_recipe(recipe, Mapper))
        try:
            branches = {
                name: Branch(
                    from_recipe(branch["encoder"], Encoder),
                    build(branch["mapper"], f"mappers.{name}") if "mapper" in branch else None,
                    branch.get("context"),
                )
                for name, branch in data["branches"].items()
            }
            decoder = from_recipe(data["decoder"], Decoder)
            prefix = build(data["prefix"], "task_prefix") if "prefix" in data else None
            transcriber = from_recipe(data["transcriber"], Transcriber) if "transcriber" in data else None
            if check is not None:
                check(_frozen({name: branch.encoder for name, branch in branches.items()}, decoder, transcriber))
            wording = PromptTemplate(**data.get("wording", {}))
            model = cls(branches, decoder, prefix, wording=wording, transcriber=transcriber)
            for name in (name for name, branch in data["branches"].items() if branch.get("tuned")):
                model.encoder(name).set_mode(EncoderMode.TUNED)
            return model
        except (KeyError, AttributeError, TypeError) as error:
            raise InputError(f"recipe: branches, encoders, mappers or decoder are missing ({error})") from error


def _frozen(encoders: dict[str, Encoder], decoder: Decoder, transcriber: Transcriber | None) -> FrozenParts:
    return {**encoders, "decoder": decoder} | ({} if transcriber is None else {"transcriber": transcriber})


def _merged(mapper: Mapper | None) -> Callable[[Sizes], Mapper] | None:
    """Builder of the merged ``mapper``, which is built already."""
    merged = None if mapper is None else mapper.merged()
    return None if merged is None else lambda sizes: merged


def _contexts(branches: Mapping[str, Branch]) -> dict[str, str]:
    """Context of each branch that has one; InputError if it is no other branch, or no mapper reads it."""
    contexts = {name: branch.context for name, branch in branches.items() if branch.context is not None}
    for name, context in contexts.items():
        option, others = f"model.branches.{name}.context {context!r}", [other for other in branches if other != name]
        if context not in others:
            raise InputError(f"{option}: is no other branch; there are {', '.join(others) or 'none'}")
        if branches[name].mapper is None:
            raise InputError(f"{option}: no mapper reads it; give this branch one, or no context")
    return contexts
