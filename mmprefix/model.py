"""Encoder → mapper → prefix → decoder: the only place that sees all three."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmprefix.decoder import Decoder, State, TextLoss
from mmprefix.encoders.base import Encoder
from mmprefix.generation import GenerateOptions
from mmprefix.mappers.base import Mapper
from mmprefix.mappers.parallel import join
from mmprefix.parts import build, recipe
from mmprefix.types import Batch, Candidate, Features, InputError, Prefix


@dataclass
class Branch:
    """One way in: a frozen encoder and the mapper that reads it.

    ``mapper`` may still want its sizes; it is then called with (dim, pooled_dim, width).
    """

    encoder: Encoder
    mapper: Callable[[int, int, int], Mapper]


class PrefixLM(nn.Module):
    """Branches by name, and the decoder that all of them speak to.

    An input may have any subset of the branches; the prefixes of those it has are joined in the order of the branches.
    """

    def __init__(self, branches: dict[str, Branch], decoder: Decoder) -> None:
        super().__init__()
        if not branches:
            raise InputError("model.branches: at least one branch is needed, such as image or audio")
        self.decoder = decoder
        self.encoders = nn.ModuleDict({name: branch.encoder for name, branch in branches.items()})
        self.mappers = nn.ModuleDict(
            {name: _mapper(branch, decoder.width) for name, branch in branches.items()},
        )

    def encoder(self, name: str) -> Encoder:
        """The frozen encoder of branch ``name``."""
        return cast(Encoder, self.encoders[name])

    def prefix(self, inputs: Mapping[str, Any]) -> Prefix:
        """Media, or features found before, by branch name → the joined prefix (B P E)."""
        unknown = inputs.keys() - self.encoders.keys()
        if unknown or not inputs:
            have = ", ".join(self.encoders)
            raise InputError(
                f"no branch for input {', '.join(sorted(unknown)) or '(none given)'}; this model reads {have}"
            )
        found = []
        for name in self.encoders:
            if name in inputs:
                value = inputs[name]
                features = value if isinstance(value, Features) else self.encoders[name](value)
                found.append(self.mappers[name](_as(features, self._mapper_dtype)))
        return join(found)

    def start(self, batch: Batch) -> State:
        """What the decoder knows of the batch's inputs before any text."""
        return self.decoder.start(self.prefix(batch.inputs))

    def text_loss(self, batch: Batch) -> TextLoss:
        """How badly each target of the batch is predicted."""
        return self.decoder.text_loss(self.start(batch), batch.prompts, batch.targets)

    def generate(self, batch: Batch, options: GenerateOptions) -> list[list[Candidate]]:
        """For each input its texts, the best first."""
        return self.decoder.generate(self.start(batch), batch.prompts, options)

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters among ``trained``, those of an encoder that is frozen by now too: an optimiser keeps them."""
        names = self.trained.keys()
        return [parameter for name, parameter in self.named_parameters() if name in names]

    @property
    def trained(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name: all of the mappers, and what frozen parts say of themselves."""
        parts = [(f"encoders.{name}.", self.encoder(name).trained) for name in self.encoders]
        parts += [("decoder.", self.decoder.trained)]
        starts = ("mappers.", *(place + start for place, inside in parts for start in inside))
        kept: dict[str, Tensor] = {}
        seen: set[tuple[int, torch.Size]] = set()
        for name, tensor in self.state_dict().items():
            key = (tensor.data_ptr(), tensor.shape)
            if name.startswith(starts) and (key not in seen or not tensor.numel()):  # tied tensors count once
                kept[name] = tensor
                seen.add(key)
        return kept

    @property
    def frozen_parts(self) -> dict[str, Encoder | Decoder]:
        """The parts that are not saved, by the name that messages and overrides use: branch names, and "decoder"."""
        parts: dict[str, Encoder | Decoder] = {name: self.encoder(name) for name in self.encoders}
        return {**parts, "decoder": self.decoder}

    def recipe(self) -> dict[str, Any]:
        """The plain data that ``from_recipe`` builds this model from, without what was trained."""
        branches = {
            name: {"encoder": recipe(self.encoder(name)), "mapper": recipe(self.mappers[name])}
            | ({"tuned": True} if self.encoder(name).tuned else {})
            for name in self.encoders
        }
        return {"branches": branches, "decoder": recipe(self.decoder)}

    @classmethod
    def from_recipe(cls, data: dict[str, Any]) -> PrefixLM:
        """The model that ``recipe()`` wrote down, its mappers not yet trained."""
        try:
            branches = {
                name: Branch(build(branch["encoder"], Encoder), build(branch["mapper"], Mapper))
                for name, branch in data["branches"].items()
            }
            model = cls(branches, build(data["decoder"], Decoder))
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


def _mapper(branch: Branch, width: int) -> Mapper:
    if isinstance(branch.mapper, Mapper):
        return branch.mapper
    return branch.mapper(branch.encoder.dim, branch.encoder.pooled_dim, width)


def _as(features: Features, dtype: torch.dtype) -> Features:
    return Features(features.frames.to(dtype), features.mask, features.pooled.to(dtype))
