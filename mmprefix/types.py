"""The values that travel along the straight line, and the letters their shapes are written in.

B batch · S samples or pixels · T feature frames · D encoder width · G summary width · P prefix positions ·
E decoder width · L decoder layers · H heads · K head width · N text tokens · V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, cast

import torch
from torch import Tensor

from mmprefix.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")


def _map(value: Any, method: str, *args: Any) -> Any:
    """``value`` with every tensor (or tensor-bearing value of this module) replaced by ``tensor.method(*args)``."""
    if isinstance(value, dict):
        return {key: _map(item, method, *args) for key, item in cast("dict[str, Any]", value).items()}
    return getattr(value, method)(*args) if hasattr(value, method) else value


class Tensors:
    """What the values below share: they move between devices whole and are pinned whole."""

    def to(self, device: torch.device | str) -> Self:
        """The same value on ``device``; strings and absent tensors stay as they are."""
        return self._each("to", device)

    def pin_memory(self) -> Self:
        """The same value in page-locked memory, for copies to a GPU that overlap with compute."""
        return self._each("pin_memory")

    def _each(self, method: str, *args: Any) -> Self:
        return replace(cast(Any, self), **{name: _map(value, method, *args) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Media(Tensors):
    """What an encoder reads: waveforms padded with zeros (B S), or pixels (B 3 Y X).

    ``lengths`` (B) counts the samples of each waveform; it is 1 for every picture.
    """

    values: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Features(Tensors):
    """What an encoder found: frames (B T D), their mask (B T, True where real), and a summary (B G).

    Without frames T = 0, without a summary G = 0: absence has a shape.
    """

    frames: Tensor
    mask: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class Prefix(Tensors):
    """Embeddings (B P E) that a decoder reads before any text, and their mask (B P, True where real)."""

    embeds: Tensor
    mask: Tensor

    def mask_rows(self, rows: Tensor) -> Prefix:
        """The same with nothing real in the ``rows`` (B, True) of inputs that are absent."""
        return replace(self, mask=self.mask & ~rows[:, None])

    def expand(self, count: int) -> Prefix:
        """The prefix of one input (1 P E), the same for ``count`` inputs."""
        return Prefix(self.embeds.expand(count, -1, -1), self.mask.expand(count, -1))


@dataclass(frozen=True)
class DeepPrefix(Tensors):
    """Keys and values (L B H P K) that stand in a decoder's cache before any text, and their mask (B P).

    ``gate`` (L H) scales what each head reads from the prefix; None lets prefix and text share one softmax.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    gate: Tensor | None = None

    def mask_rows(self, rows: Tensor) -> DeepPrefix:
        """The same with nothing real in the ``rows`` (B, True) of inputs that are absent."""
        return replace(self, mask=self.mask & ~rows[:, None])

    def expand(self, count: int) -> DeepPrefix:
        """The prefix of one input (L 1 H P K), the same for ``count`` inputs."""
        keys, values = (part.expand(-1, count, -1, -1, -1) for part in (self.keys, self.values))
        return DeepPrefix(keys, values, self.mask.expand(count, -1), self.gate)


@dataclass(frozen=True)
class MixedPrefix(Tensors):
    """A deep prefix, and embeddings that are read behind it."""

    deep: DeepPrefix
    soft: Prefix

    def mask_rows(self, rows: Tensor) -> MixedPrefix:
        """The same with nothing real in the ``rows`` (B, True) of inputs that are absent."""
        return MixedPrefix(self.deep.mask_rows(rows), self.soft.mask_rows(rows))

    def expand(self, count: int) -> MixedPrefix:
        """The prefix of one input, the same for ``count`` inputs."""
        return MixedPrefix(self.deep.expand(count), self.soft.expand(count))


AnyPrefix = Prefix | DeepPrefix | MixedPrefix


@dataclass(frozen=True)
class Batch(Tensors):
    """B examples: what the encoders read, by branch name, and beside it strings that only the decoder opens.

    ``targets`` may hold several texts an example, or none. ``questions``, where there are any, holds one for each
    target: what stands between prompt and it. ``absent`` (B, True) says by branch which rows lack that input after all.
    """

    inputs: Mapping[str, Media | Features]
    prompts: list[str]
    targets: list[list[str]]
    contexts: list[str]
    ids: list[str]
    sources: list[str] = field(default_factory=list[str])  # the files an example was read from, for reports
    questions: list[list[str]] = field(default_factory=list[list[str]])
    absent: Mapping[str, Tensor] = field(default_factory=dict[str, "Tensor"])

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Candidate:
    """One text that a decoder wrote, and its score (see ``GenerateOptions.ranking``); higher is better."""

    text: str
    score: float


class FeatureRow(NamedTuple):
    """What was found in one input: frames (T D) and a summary (G,). Without frames T = 0, without a summary G = 0."""

    frames: Tensor
    pooled: Tensor


def concat_prefixes(prefixes: Sequence[AnyPrefix]) -> AnyPrefix:
    """Prefixes of the same inputs, one after the other: embeddings (B P1 E), (B P2 E) ... → (B P1+P2+... E), keys and
    values likewise. Where there are both, all that is deep stands before all embeddings.

    Raises InputError for several deep prefixes of which some are gated: a gate is one for all positions.
    """
    if len(prefixes) == 1:
        return prefixes[0]
    deep = [p.deep if isinstance(p, MixedPrefix) else p for p in prefixes if not isinstance(p, Prefix)]
    soft = [p.soft if isinstance(p, MixedPrefix) else p for p in prefixes if not isinstance(p, DeepPrefix)]
    if len(deep) > 1 and any(p.gate is not None for p in deep):
        raise InputError("a gated deep prefix cannot be joined with another deep prefix; use one of them")
    if not soft:
        return _concat_deep(deep)
    embeds, mask = torch.cat([p.embeds for p in soft], dim=1), torch.cat([p.mask for p in soft], dim=1)
    return MixedPrefix(_concat_deep(deep), Prefix(embeds, mask)) if deep else Prefix(embeds, mask)


def _concat_deep(prefixes: list[DeepPrefix]) -> DeepPrefix:
    if len(prefixes) == 1:
        return prefixes[0]
    keys, values = torch.cat([p.keys for p in prefixes], dim=3), torch.cat([p.values for p in prefixes], dim=3)
    return DeepPrefix(keys, values, torch.cat([p.mask for p in prefixes], dim=1))
