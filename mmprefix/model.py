"""Encoder → mapper → prefix → decoder: the only place that sees all three."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mmprefix.decoders.base import Decoder, TextLoss
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.kv_cache.state import State
from mmprefix.mappers.base import Mapper
from mmprefix.parts import from_recipe, to_recipe
from mmprefix.prompt_template import PromptTemplate
from mmprefix.types import AnyPrefix, Batch, Candidate, Features, Prefix, concat_prefixes

if TYPE_CHECKING:
    from mmprefix.transcriber import Transcriber


@dataclass
class Branch:
    """One way in: a frozen encoder and the mapper that reads it.

    ``mapper`` may still want its sizes; it is then called with (dim, pooled_dim, width). None: nothing is made of this
    input but what a decoder with cross-attention looks at.
    """

    encoder: Encoder
    mapper: Callable[[int, int, int], Mapper] | None = None


class PrefixLM(nn.Module):
    """Branches by name, and the decoder that all of them speak to.

    An input may have any subset of the branches; the prefixes of those it has are joined in the order of the branches.
    A decoder with cross-attention (see ``CrossDecoder``) looks at the frames of all branches that are as wide as those
    of its own encoder.

    Args:
        branches: at least one, unless there is a ``prefix``.
        decoder: what writes.
        prefix: a mapper that reads nothing (``Learned``, ``DeepTable``, ``Deep`` over ``Learned``): the task's own
            prefix, the same for every input, before those of the branches.
        wording: how context, prompt and question are written to the decoder.
        transcriber: what writes the context of an input that has none, from its sound (see ``mmprefix.transcriber``).
    """

    def __init__(
        self,
        branches: dict[str, Branch],
        decoder: Decoder,
        prefix: Callable[[int, int, int], Mapper] | None = None,
        wording: PromptTemplate | None = None,
        transcriber: Transcriber | None = None,
    ) -> None:
        super().__init__()
        if not branches and prefix is None:
            raise InputError("model.branches: at least one branch is needed, such as image or audio, or model.prefix")
        if taken := branches.keys() & {"decoder", "transcriber"}:
            raise InputError(f"model.branches.{min(taken)}: is the name of another part; call the branch otherwise")
        self.decoder = decoder
        self.wording = wording or PromptTemplate()
        if transcriber is not None and not self.wording.context:
            raise InputError(
                "model.transcriber: nothing reads what it writes; give model.wording.context or leave it out"
            )
        self.transcriber = transcriber
        self.encoders = nn.ModuleDict({name: branch.encoder for name, branch in branches.items()})
        mapped = {name: branch for name, branch in branches.items() if branch.mapper is not None}
        self.mappers = nn.ModuleDict({name: _mapper(branch, decoder) for name, branch in mapped.items()})
        self.task_prefix = None if prefix is None else _made(prefix, 0, 0, decoder)
        for name in self.encoders:
            _refuse_unread(name, self.encoder(name), name in self.mappers, decoder)
        if decoder.memory_dim is not None and all(self.encoder(name).dim != decoder.memory_dim for name in branches):
            raise InputError(
                f"model.branches: the decoder {decoder.identity.source!r} looks at frames that are "
                f"{decoder.memory_dim} wide, and no branch has any; add one with the encoder of the same model"
            )

    def encoder(self, name: str) -> Encoder:
        """The frozen encoder of branch ``name``."""
        return cast(Encoder, self.encoders[name])

    def features(self, inputs: Mapping[str, Any]) -> dict[str, Features]:
        """Media, or features found before, by branch name → features, in the order of the branches."""
        unknown = inputs.keys() - self.encoders.keys()
        if unknown or (not inputs and self.encoders and not self.reads_text):
            have = ", ".join(self.encoders)
            raise InputError(
                f"no branch for input {', '.join(sorted(unknown)) or '(none given)'}; this model reads {have}"
            )
        found: dict[str, Features] = {}
        for name in self.encoders:
            if name in inputs:
                value = inputs[name]
                found[name] = value if isinstance(value, Features) else self.encoders[name](value)
        return found

    def build_prefix(
        self, inputs: Mapping[str, Any], absent: Mapping[str, Tensor] | None = None, count: int | None = None
    ) -> AnyPrefix:
        """Media, or features found before, by branch name → the joined prefix of B inputs.

        ``absent`` (B, True) says by branch which inputs lack it after all; ``count`` is B where no branch tells.
        """
        return self._prefix(self.features(inputs), absent or {}, count)

    def _prefix(self, features: Mapping[str, Features], absent: Mapping[str, Tensor], count: int | None) -> AnyPrefix:
        count = next((len(found.mask) for found in features.values()), count or 1)
        parts: list[AnyPrefix] = []
        if self.task_prefix is not None:
            one = cast(AnyPrefix, self.task_prefix(_nothing(1, self._device)))
            parts.append(one.expand(count))
        for name, found in features.items():
            if name in self.mappers:
                made = cast(AnyPrefix, self.mappers[name](_as(found, self._mapper_dtype)))
                parts.append(made.mask_rows(absent[name]) if name in absent else made)
        empty = torch.zeros(count, 0, self.decoder.width, device=self._device)
        return (
            concat_prefixes(parts)
            if parts
            else Prefix(empty, torch.zeros(count, 0, dtype=torch.bool, device=empty.device))
        )

    def prefill(self, batch: Batch) -> State:
        """What the decoder knows of the batch's inputs before any text."""
        features = self.features(batch.inputs)
        prefix = self._prefix(features, batch.absent, len(batch))
        if self.decoder.memory_dim is None:
            return self.decoder.prefill(prefix)
        looked = [found for found in features.values() if found.frames.shape[2] == self.decoder.memory_dim]
        return self.decoder.prefill(prefix, _memory(looked))

    def prompts(self, batch: Batch) -> list[str]:
        """What the decoder reads of each input's context and prompt."""
        return [self.wording.render_prompt(c, p) for c, p in zip(batch.contexts, batch.prompts, strict=True)]

    def questions(self, batch: Batch) -> list[list[str]]:
        """What the decoder reads of each input's questions."""
        return [[self.wording.render_question(question) for question in row] for row in batch.questions]

    @property
    def reads_text(self) -> bool:
        """Whether the context is written to the decoder, so that an input may be text alone."""
        return bool(self.wording.context)

    def text_loss(self, batch: Batch) -> TextLoss:
        """How badly each target of the batch is predicted."""
        return self.decoder.text_loss(self.prefill(batch), self.prompts(batch), batch.targets, self.questions(batch))

    def generate(self, batch: Batch, options: GenerateOptions) -> list[list[Candidate]]:
        """For each input its texts, the best first."""
        return self.decoder.generate(self.prefill(batch), self.prompts(batch), options)

    @torch.no_grad()
    def merged(self) -> PrefixLM:
        """The same model with mappers as they are used (see ``Mapper.folded``); the frozen parts are shared."""
        branches = {
            name: Branch(
                self.encoder(name), cast(Mapper, self.mappers[name]).merged() if name in self.mappers else None
            )
            for name in self.encoders
        }
        prefix = None if self.task_prefix is None else self.task_prefix.merged()
        return PrefixLM(branches, self.decoder, prefix, self.wording, self.transcriber)

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters among ``trained``, those of an encoder that is frozen by now too: an optimiser keeps them."""
        names = self.trained.keys()
        return [parameter for name, parameter in self.named_parameters() if name in names]

    @property
    def trained(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name: all of the mappers, and what frozen parts say of themselves."""
        parts = [(f"encoders.{name}.", self.encoder(name).trained) for name in self.encoders]
        parts += [("decoder.", self.decoder.trained)]
        starts = ("mappers.", "task_prefix.", *(place + start for place, inside in parts for start in inside))
        kept: dict[str, Tensor] = {}
        seen: set[tuple[int, torch.Size]] = set()
        for name, tensor in self.state_dict().items():
            key = (tensor.data_ptr(), tensor.shape)
            if name.startswith(starts) and (key not in seen or not tensor.numel()):  # tied tensors count once
                kept[name] = tensor
                seen.add(key)
        return kept

    def reads_frames(self, name: str) -> bool:
        """Whether a branch's frames are looked at, by its mapper or by a decoder with cross-attention."""
        looks = self.decoder.memory_dim is not None or name not in self.mappers
        return looks or cast(Mapper, self.mappers[name]).reads_frames

    @property
    def frozen_parts(self) -> dict[str, Encoder | Decoder | Transcriber]:
        """The parts that are not saved, by the name that messages and overrides use: branch names, "decoder", and
        "transcriber" where there is one."""
        parts: dict[str, Encoder | Decoder | Transcriber] = {name: self.encoder(name) for name in self.encoders}
        writes = {} if self.transcriber is None else {"transcriber": self.transcriber}
        return {**parts, "decoder": self.decoder, **writes}

    def recipe(self) -> dict[str, Any]:
        """The plain data that ``from_recipe`` builds this model from, without what was trained."""
        branches = {
            name: {"encoder": to_recipe(self.encoder(name))}
            | ({"mapper": to_recipe(self.mappers[name])} if name in self.mappers else {})
            | ({"tuned": True} if self.encoder(name).tuned else {})
            for name in self.encoders
        }
        found: dict[str, Any] = {"branches": branches, "decoder": to_recipe(self.decoder)}
        if self.task_prefix is not None:
            found["prefix"] = to_recipe(self.task_prefix)
        if self.wording != PromptTemplate():
            found["wording"] = asdict(self.wording)
        if self.transcriber is not None:
            found["transcriber"] = to_recipe(self.transcriber)
        return found

    @classmethod
    def from_recipe(cls, data: dict[str, Any]) -> PrefixLM:
        """The model that ``recipe()`` wrote down, its mappers not yet trained."""
        try:
            branches = {
                name: Branch(
                    from_recipe(branch["encoder"], Encoder),
                    from_recipe(branch["mapper"], Mapper) if "mapper" in branch else None,
                )
                for name, branch in data["branches"].items()
            }
            decoder = from_recipe(data["decoder"], Decoder)
            prefix = from_recipe(data["prefix"], Mapper) if "prefix" in data else None
            transcriber = _transcriber(data["transcriber"]) if "transcriber" in data else None
            model = cls(branches, decoder, prefix, PromptTemplate(**data.get("wording", {})), transcriber)
            for name, branch in data["branches"].items():
                model.encoder(name).tuned = bool(branch.get("tuned"))
            return model
        except (KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f"recipe: branches, their encoder and mapper, or the decoder are missing ({error})"
            ) from error

    @property
    def _mapper_dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.mappers.parameters()), torch.float32)

    @property
    def _device(self) -> torch.device:
        return next(self.decoder.parameters()).device


def _mapper(branch: Branch, decoder: Decoder) -> Mapper:
    assert branch.mapper is not None
    return _made(branch.mapper, branch.encoder.dim, branch.encoder.pooled_dim, decoder)


def _made(mapper: Callable[[int, int, int], Mapper], dim: int, pooled_dim: int, decoder: Decoder) -> Mapper:
    made = mapper if isinstance(mapper, Mapper) else mapper(dim, pooled_dim, decoder.width)
    made.for_decoder(decoder.layers, decoder.heads, decoder.head_width)
    return made


def _refuse_unread(name: str, encoder: Encoder, mapped: bool, decoder: Decoder) -> None:
    """Refuses a branch whose features go nowhere: no mapper reads them, and no cross-attention looks at them."""
    if mapped or encoder.dim == decoder.memory_dim:
        return
    if decoder.memory_dim is None or not encoder.dim:
        why = f"the decoder {decoder.identity.source!r} looks at no frames" if encoder.dim else "it has no frames"
        raise InputError(f"model.branches.{name}: has no mapper, and {why}; give it a mapper")
    raise InputError(
        f"model.branches.{name}: has no mapper, its frames are {encoder.dim} wide, and the decoder "
        f"{decoder.identity.source!r} looks at frames that are {decoder.memory_dim} wide; use the encoder of the same "
        "model, or give it a mapper"
    )


def _nothing(count: int, device: torch.device) -> Features:
    empty = torch.zeros(count, 0, device=device)
    return Features(empty[..., None].expand(-1, -1, 0), empty.bool(), empty)


def _memory(found: list[Features]) -> Features | None:
    """The frames of all branches one after the other, (B T1+T2+... D)."""
    if len(found) < 2:
        return found[0] if found else None
    frames, mask = torch.cat([f.frames for f in found], dim=1), torch.cat([f.mask for f in found], dim=1)
    return Features(frames, mask, found[0].pooled)


def _as(features: Features, dtype: torch.dtype) -> Features:
    return Features(features.frames.to(dtype), features.mask, features.pooled.to(dtype))


def _transcriber(data: dict[str, Any]) -> Transcriber:
    from mmprefix.transcriber import Transcriber

    return from_recipe(data, Transcriber)
