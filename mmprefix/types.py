"""The values that travel from encoder to decoder, and the letters of their shapes.

B batch · S samples or pixels · T feature frames · D encoder width · G summary width · P prefix positions ·
E decoder width · L decoder layers · H heads · H' query heads, a multiple of H · K head width · N text tokens ·
V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from mmprefix.kv_cache.side_terms import SideTerm


def _map(value: Any, method: str, *args: Any) -> Any:
    """``value`` with every tensor (or tensor-bearing value of this module) replaced by ``tensor.method(*args)``."""
    if isinstance(value, dict):
        return {key: _map(item, method, *args) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, tuple):
        return tuple(_map(item, method, *args) for item in cast("tuple[Any, ...]", value))
    return getattr(value, method)(*args) if hasattr(value, method) else value


class Tensors:
    """Base of the values below: all tensors of one move to another device together, and are pinned together."""

    def to(self, device: torch.device | str) -> Self:
        """Copy to ``device``; strings and absent tensors stay as they are."""
        return self._each("to", device)

    def pin_memory(self) -> Self:
        """Copy to page-locked memory, so that transfers to a GPU overlap with compute."""
        return self._each("pin_memory")

    def _each(self, method: str, *args: Any) -> Self:
        return replace(cast(Any, self), **{name: _map(value, method, *args) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Media(Tensors):
    """Input of an encoder: waveforms padded with zeros (B S), pixels (B 3 Y X), or those of F video frames (B F 3 Y X).

    ``lengths`` (B) counts the samples of each waveform, the frames of each video; it is 1 for every picture.
    """

    values: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Features(Tensors):
    """Output of an encoder: frames (B T D), their mask (B T, True where real), and a summary (B G).

    Without frames T = 0, without a summary G = 0: absence has a shape.
    """

    frames: Tensor
    mask: Tensor
    pooled: Tensor

    @classmethod
    def empty(cls, count: int, device: torch.device | str = "cpu", frames: int = 0, summary: int = 0) -> Features:
        """Features of ``count`` absent inputs: no frames (B 0 ``frames``), a summary of zeros (B ``summary``)."""
        mask = torch.zeros(count, 0, dtype=torch.bool, device=device)
        return cls(torch.zeros(count, 0, frames, device=device), mask, torch.zeros(count, summary, device=device))

    @classmethod
    def concat(cls, several: Sequence[Features]) -> Features:
        """Frames of the same inputs one after the other in time, (B T1+T2+... D); the summary is the first one's."""
        if len(several) == 1:
            return several[0]
        frames, mask = torch.cat([f.frames for f in several], dim=1), torch.cat([f.mask for f in several], dim=1)
        return cls(frames, mask, several[0].pooled)

    def mask_rows(self, rows: Tensor) -> Features:
        """Copy in which the ``rows`` (B, True) of absent inputs have no real frame and a summary of zeros."""
        return replace(self, mask=self.mask & ~rows[:, None], pooled=self.pooled.masked_fill(rows[:, None], 0))

    def to_dtype(self, dtype: torch.dtype) -> Features:
        """Copy with frames and summary in ``dtype``."""
        return replace(self, frames=self.frames.to(dtype), pooled=self.pooled.to(dtype))


@dataclass(frozen=True)
class Prefix(Tensors):
    """Embeddings (B P E) that a decoder reads before any text, and their mask (B P, True where real).

    ``text_updates`` (B N E), where there are any, are added to the embeddings of the first N tokens of the text behind
    all prefixes: prompt, question and target alike (see ``mmprefix.mappers.dept``). ``gates`` (B P 2 L E) are factors
    and shifts of each position's hidden state in every layer (see ``mmprefix.kv_cache.gated_positions``).
    """

    embeds: Tensor
    mask: Tensor
    text_updates: Tensor | None = None
    gates: Tensor | None = None

    @classmethod
    def empty(cls, count: int, width: int, device: torch.device | str = "cpu") -> Prefix:
        """Prefix of no positions (B 0 E) for ``count`` inputs."""
        mask = torch.zeros(count, 0, dtype=torch.bool, device=device)
        return cls(torch.zeros(count, 0, width, device=device), mask)

    def mask_rows(self, rows: Tensor) -> Prefix:
        """Copy in which no position is real in the ``rows`` (B, True) of absent inputs."""
        updates = None if self.text_updates is None else self.text_updates.masked_fill(rows[:, None, None], 0)
        return replace(self, mask=self.mask & ~rows[:, None], text_updates=updates)

    def expand(self, count: int) -> Prefix:
        """Prefix of one input (1 P E), repeated for ``count`` inputs without a copy."""
        updates = None if self.text_updates is None else self.text_updates.expand(count, -1, -1)
        gates = None if self.gates is None else self.gates.expand(count, -1, -1, -1, -1)
        return Prefix(self.embeds.expand(count, -1, -1), self.mask.expand(count, -1), updates, gates)


@dataclass(frozen=True)
class DeepPrefix(Tensors):
    """Keys and values (L B H P K) that stand in a decoder's cache before any text, and their mask (B P)."""

    keys: Tensor
    values: Tensor
    mask: Tensor

    def mask_rows(self, rows: Tensor) -> DeepPrefix:
        """Copy in which no position is real in the ``rows`` (B, True) of absent inputs."""
        return replace(self, mask=self.mask & ~rows[:, None])

    def expand(self, count: int) -> DeepPrefix:
        """Prefix of one input (L 1 H P K), repeated for ``count`` inputs without a copy."""
        keys, values = (part.expand(-1, count, -1, -1, -1) for part in (self.keys, self.values))
        return DeepPrefix(keys, values, self.mask.expand(count, -1))


@dataclass(frozen=True)
class MixedPrefix(Tensors):
    """A deep prefix, and embeddings that are read behind it."""

    deep: DeepPrefix
    soft: Prefix

    @property
    def mask(self) -> Tensor:
        """Mask (B P1+P2) of all positions, in their order."""
        return torch.cat([self.deep.mask, self.soft.mask], dim=1)

    def mask_rows(self, rows: Tensor) -> MixedPrefix:
        """Copy in which no position is real in the ``rows`` (B, True) of absent inputs."""
        return MixedPrefix(self.deep.mask_rows(rows), self.soft.mask_rows(rows))

    def expand(self, count: int) -> MixedPrefix:
        """Prefix of one input, repeated for ``count`` inputs without a copy."""
        return MixedPrefix(self.deep.expand(count), self.soft.expand(count))


PlainPrefix = Prefix | DeepPrefix | MixedPrefix


@dataclass(frozen=True)
class SidePrefix(Tensors):
    """Terms beside the cache, and the prefix that stands in the cache (perhaps without positions)."""

    inner: PlainPrefix
    terms: tuple[SideTerm, ...]

    @classmethod
    def alone(cls, term: SideTerm, count: int, width: int, device: torch.device | str) -> SidePrefix:
        """``term`` without positions in the cache, for ``count`` inputs of a decoder of ``width`` E."""
        return cls(Prefix.empty(count, width, device), (term,))

    def mask_rows(self, rows: Tensor) -> SidePrefix:
        """Copy in which no position and no term counts in the ``rows`` (B, True) of absent inputs."""
        return SidePrefix(self.inner.mask_rows(rows), tuple(term.mask_rows(rows) for term in self.terms))

    def expand(self, count: int) -> SidePrefix:
        """Prefix of one input, for ``count`` inputs without a copy."""
        return SidePrefix(self.inner.expand(count), self.terms)


AnyPrefix = Prefix | DeepPrefix | MixedPrefix | SidePrefix


def split_side(prefix: AnyPrefix) -> tuple[PlainPrefix, tuple[SideTerm, ...]]:
    """Prefix in the cache, and terms beside it."""
    return (prefix.inner, prefix.terms) if isinstance(prefix, SidePrefix) else (prefix, ())


@dataclass(frozen=True)
class Batch(Tensors):
    """B examples: inputs of the encoders by branch name, and the strings that the decoder reads.

    ``targets`` may hold several texts an example, or none. ``questions``, where there are any, holds one for each
    target, which stands between the prompt and the target. ``absent`` (B, True) marks by branch the rows whose input
    is to be treated as missing. ``sources`` are the files of each example, for reports; ``users`` who each is from.
    """

    inputs: Mapping[str, Media | Features]
    prompts: list[str]
    targets: list[list[str]]
    contexts: list[str]
    ids: list[str]
    sources: list[str] = field(default_factory=list[str])
    questions: list[list[str]] = field(default_factory=list[list[str]])
    absent: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    users: list[str] = field(default_factory=list[str])

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Candidate:
    """Generated text and its score (see ``GenerateOptions.ranking``); higher is better."""

    text: str
    score: float


class FeatureRow(NamedTuple):
    """Features of one input: frames (T D) and a summary (G,). Without frames T = 0, without a summary G = 0."""

    frames: Tensor
    pooled: Tensor


def to_list(values: Tensor) -> list[Any]:
    """Numbers of a tensor as nested Python lists; torch leaves the type of ``Tensor.tolist`` open."""
    return cast(list[Any], values.tolist())  # pyright: ignore[reportUnknownMemberType]


def concat_prefixes(prefixes: Sequence[AnyPrefix]) -> AnyPrefix:
    """Prefixes of the same inputs, one after the other.

    Embeddings (B P1 E), (B P2 E) ... → (B P1+P2+... E), keys and values likewise. Where there are both, keys and values
    stand before all embeddings. Updates of the text are added up, terms beside the cache collected.
    """
    if len(prefixes) == 1:
        return prefixes[0]
    parts = [split_side(prefix) for prefix in prefixes]
    terms = tuple(term for _, own in parts for term in own)
    if terms:
        return SidePrefix(_concat_plain([plain for plain, _ in parts]), terms)
    return _concat_plain([plain for plain, _ in parts])


def _concat_plain(prefixes: Sequence[PlainPrefix]) -> PlainPrefix:
    """Prefixes in the cache, one after the other; those of no positions and no updates leave no trace."""
    empty = [isinstance(p, Prefix) and not p.mask.shape[1] and p.text_updates is None for p in prefixes]
    prefixes = [p for p, nothing in zip(prefixes, empty, strict=True) if not nothing] or prefixes[:1]
    if len(prefixes) == 1:
        return prefixes[0]
    deep = [p.deep if isinstance(p, MixedPrefix) else p for p in prefixes if not isinstance(p, Prefix)]
    soft = [p.soft if isinstance(p, MixedPrefix) else p for p in prefixes if not isinstance(p, DeepPrefix)]
    if not soft:
        return concat_deep(deep)
    embeds, mask = torch.cat([p.embeds for p in soft], dim=1), torch.cat([p.mask for p in soft], dim=1)
    updates = _sum_updates([p.text_updates for p in soft if p.text_updates is not None])
    whole = Prefix(embeds, mask, updates, _concat_gates(soft))
    return MixedPrefix(concat_deep(deep), whole) if deep else whole


def _concat_gates(prefixes: Sequence[Prefix]) -> Tensor | None:
    """Gates (B P 2 L E) of prefixes one after the other, ones and zeros where there are none; None for none at all."""
    shape = next((p.gates.shape[2:] for p in prefixes if p.gates is not None), None)
    if shape is None:
        return None
    neutral = torch.tensor([1.0, 0.0], device=prefixes[0].mask.device)[:, None, None].expand(shape)
    none = [neutral.expand(*p.mask.shape, *shape) for p in prefixes]
    return torch.cat([n if p.gates is None else p.gates for p, n in zip(prefixes, none, strict=True)], dim=1)


def _sum_updates(updates: Sequence[Tensor]) -> Tensor | None:
    """Sum of updates (B N E), of which some are shorter than others; None for none."""
    longest = max((part.shape[1] for part in updates), default=0)
    padded = [pad(part, (0, 0, 0, longest - part.shape[1])) for part in updates]
    return torch.stack(padded).sum(0) if padded else None


def concat_deep(prefixes: Sequence[DeepPrefix]) -> DeepPrefix:
    """Keys and values (L B H P1 K), (L B H P2 K) ... of the same inputs → (L B H P1+P2+... K)."""
    if len(prefixes) == 1:
        return prefixes[0]
    keys, values = torch.cat([p.keys for p in prefixes], dim=3), torch.cat([p.values for p in prefixes], dim=3)
    return DeepPrefix(keys, values, torch.cat([p.mask for p in prefixes], dim=1))


def all_real(embeds: Tensor) -> Tensor:
    """Mask (B P) of a prefix (B P E) without padding."""
    return embeds.new_ones(embeds.shape[:2], dtype=torch.bool)
