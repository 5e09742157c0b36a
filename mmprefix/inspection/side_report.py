"""Parts of a prefix at no position: terms of attention, gates of positions, updates of the text's embeddings.

What a layer's attention gives to them is measured while the decoder reads the prompt and a text behind the prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, Unpack, cast

import torch
from torch import Tensor

from mmprefix.inference.call_options import CallOptions
from mmprefix.inference.inputs import Input
from mmprefix.inference.predictor import Predictor
from mmprefix.inspection.prefix_rows import one_input, run_inputs
from mmprefix.inspection.words import composed
from mmprefix.kv_cache.side_attention import plain_attention
from mmprefix.kv_cache.side_terms import AddedTerm, AttentionCall, CrossKeyValues, JointTerm, SideTerm
from mmprefix.types import AnyPrefix, Batch, MixedPrefix, Prefix, split_side, to_list


@dataclass(frozen=True)
class SideLayer:
    """Part of a term in one layer.

    ``gates`` (H') where it has any · ``norms``: mean Euclidean norm of the vectors of each of its tensors, by name ·
    ``share`` of the layer's attention that it takes, mean over heads and tokens (see ``SideReport.measure``); None
    where it is not measured.
    """

    layer: int
    gates: list[float]
    norms: dict[str, float]
    share: float | None


@dataclass(frozen=True)
class SideReport:
    """Term of attention: the name of its class, how its ``share`` is measured, and its layers.

    Of the softmax: its weights in the sum of all. Of the length: ||added|| / (||added|| + ||attention||).
    """

    kind: str
    measure: str
    layers: list[SideLayer]


@dataclass(frozen=True)
class BesidePositions:
    """Terms of attention; gates' mean factor and mean norm of shifts by layer; norms (N) of the text's updates."""

    terms: list[SideReport]
    gates: list[tuple[float, float]]
    text_updates: list[float]

    def __bool__(self) -> bool:
        return bool(self.terms or self.gates or self.text_updates)


def beside_positions(
    model: Predictor, file: Input | None, *, text: str = "", **options: Unpack[CallOptions]
) -> BesidePositions:
    """Parts of the prefix of one input that stand at no position.

    Shares are measured over the tokens of the prompt and of ``text``, such as the model's caption. ``options``: prompt,
    context, user ...; see ``CallOptions``.
    """
    decoder = composed(model.model.decoder)

    def compute(batch: Batch) -> list[BesidePositions]:
        features: dict[str, Any] = model.model.features(batch.inputs)
        batch = replace(batch, inputs=features)
        prefix: AnyPrefix = model.model.build_prefix(features, batch.absent, len(batch))
        plain, terms = split_side(prefix)
        state = model.model.prefill(batch)
        watched = tuple(map(watch, state.side))
        if watched:
            prompts = model.model.prompts(batch)
            decoder.text_loss(replace(state, side=watched), prompts, [[text]] * len(batch))
        reports = [_report(term, seen) for term, seen in zip(terms, watched, strict=True) if _counts(term)]
        soft = plain.soft if isinstance(plain, MixedPrefix) else plain
        return [BesidePositions(reports, *_of_positions(soft if isinstance(soft, Prefix) else None))]

    return run_inputs(model, [one_input(file, options)], options, compute)[0]


@dataclass(frozen=True)
class WatchedAdded(AddedTerm):
    """``inner`` term, and by layer the shares of the attention's length (each a tensor) that it took so far."""

    inner: AddedTerm
    shares: dict[int, list[Tensor]] = field(default_factory=dict[int, list[Tensor]])

    def added(self, call: AttentionCall) -> Tensor | None:
        """Tensor of the ``inner`` term, whose length beside that of the layer's own attention is kept."""
        added = self.inner.added(call)
        if added is not None:
            own = plain_attention(call).transpose(1, 2).float().norm(dim=-1)
            length = added.float().norm(dim=-1).expand_as(own)
            self.shares.setdefault(call.layer, []).append(length / (length + own).clamp(min=1e-12))
        return added

    def select(self, rows: Tensor) -> Self:
        """Term of the inputs ``rows``; what it keeps is shared."""
        return replace(self, inner=self.inner.select(rows))


@dataclass(frozen=True)
class WatchedJoint(JointTerm):
    """``inner`` term, and by layer the shares of the softmax (each a tensor) that it took so far."""

    inner: JointTerm
    shares: dict[int, list[Tensor]] = field(default_factory=dict[int, list[Tensor]])

    def mass(self, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor] | None:
        """Mass of the ``inner`` term, whose share beside the layer's own keys is kept."""
        mass = self.inner.mass(call)
        if mass is not None:
            _, weights, log_factor = mass
            own = call.masked_scores().float().logsumexp(-1)
            self.shares.setdefault(call.layer, []).append((weights.log() + log_factor - own).sigmoid())
        return mass

    def select(self, rows: Tensor) -> Self:
        """Term of the inputs ``rows``; what it keeps is shared."""
        return replace(self, inner=self.inner.select(rows))


def watch(term: SideTerm) -> SideTerm:
    """``term`` with a record of the shares that it takes; one that joins frames in cross-attention as it is."""
    if isinstance(term, AddedTerm):
        return WatchedAdded(term, active=term.active)
    return WatchedJoint(term, active=term.active) if isinstance(term, JointTerm) else term


def _counts(term: SideTerm) -> bool:
    return term.active is None or bool(term.active.all())


def _report(term: SideTerm, watched: SideTerm) -> SideReport:
    """Numbers of the first input's ``term``, and the shares that it took when it was ``watched``."""
    tensors = {name: part for name, part in vars(term).items() if isinstance(part, Tensor) and name != "active"}
    count = max(part.shape[1] for part in tensors.values())
    first = cast(int, getattr(term, "first", 0))
    shares = watched.shares if isinstance(watched, WatchedAdded | WatchedJoint) else {}
    layers: list[SideLayer] = []
    for index in range(count):
        own = {name: part[0, index if part.shape[1] > 1 else 0].float() for name, part in tensors.items()}
        gates: list[float] = to_list(own.pop("gate")) if "gate" in own else []
        norms = {name: float(part.norm(dim=-1).mean()) for name, part in own.items()}
        taken = shares.get(first + index)
        share = None if not taken else float(torch.cat([part.flatten() for part in taken]).mean())
        layers.append(SideLayer(first + index, gates, norms, share))
    measure = "the length of attention" if isinstance(watched, WatchedAdded) else "the softmax"
    measure = "(not measured: keys and values before the frames)" if isinstance(term, CrossKeyValues) else measure
    return SideReport(type(term).__name__, measure, layers)


def _of_positions(soft: Prefix | None) -> tuple[list[tuple[float, float]], list[float]]:
    """Mean factor and mean norm of the shifts of a prefix's gates by layer, and norms of its updates."""
    gates: list[tuple[float, float]] = []
    if soft is not None and soft.gates is not None:
        factors, shifts = soft.gates[0].float().unbind(1)  # (P L E)
        means: Sequence[tuple[Tensor, Tensor]] = list(
            zip(factors.mean(dim=(0, 2)), shifts.norm(dim=-1).mean(0), strict=True)
        )
        gates = [(float(factor), float(shift)) for factor, shift in means]
    updates = None if soft is None else soft.text_updates
    return gates, [] if updates is None else to_list(updates[0].float().norm(dim=-1))
