"""Training steps to compare: mmprefix's own, one that makes logits at all positions, and the published algorithms.

Every variant is a ``Loss`` from a mapper and a decoder; ``TrainStep`` trains with it. All of them compute the same sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.lib.workload import LONGEST, CaptionBatch
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.word_level import WordDecoder
from mmprefix.kv_cache.state import State
from mmprefix.mappers.base import Mapper

Loss = Callable[[CaptionBatch], Tensor]  # the summed negative log-likelihood of all captions


def shared_prefix_loss(mapper: Mapper, decoder: ComposedDecoder) -> Loss:
    """The loss as mmprefix computes it: one prefill an input, from which all its captions continue."""

    def loss(batch: CaptionBatch) -> Tensor:
        state = decoder.prefill(mapper(batch.features))
        return decoder.text_loss(state, [""] * len(batch.texts), batch.texts).nll.sum()

    return loss


def unshared_prefix_loss(mapper: Mapper, decoder: ComposedDecoder) -> Loss:
    """The loss with one prefill a caption."""
    loss = shared_prefix_loss(mapper, decoder)
    return lambda batch: loss(batch.one_caption_per_input())


class FullLogitsDecoder(ComposedDecoder):
    """Makes logits at all positions that it runs, prefix and padding too; mmprefix makes them at target tokens only."""

    def forward_tokens(
        self, state: State, cache: DynamicCache, embeds: Tensor, *, visible: Tensor, position_ids: Tensor
    ) -> Tensor:
        """Embeddings (B N E) → logits (B N V), which stand in for the hidden states."""
        hidden = super().forward_tokens(state, cache, embeds, visible=visible, position_ids=position_ids)
        return super().logits(hidden)

    def target_nll(self, hidden: Tensor, row: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
        """Logits (R V), and for each of C target tokens its row → nll (C,)."""
        return -hidden.float().log_softmax(-1)[row.to(hidden.device), target.to(hidden.device)]

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits that ``forward_tokens`` has made already."""
        return hidden


class FullLogitsCausalDecoder(FullLogitsDecoder, CausalDecoder):
    """Logits at all positions by the language model's own head."""


class FullLogitsWordDecoder(FullLogitsDecoder, WordDecoder):
    """Logits at all positions by a head over words."""


def naive_loss(
    mapper: Mapper,
    own_head: nn.Linear | None,
    folder: str | Path,
    *,
    weight_gradients: bool,
    dtype: str = "float32",
    longest: int | None = LONGEST,
    text_ids: Callable[[str], list[int]] | None = None,
) -> Loss:
    """The loss as the public code of ClipCap computes it, or with an ``own_head`` over words that of Prefix-AAC.

    Written anew from their descriptions (https://arxiv.org/abs/2111.09734, https://arxiv.org/abs/2303.17489), on
    Transformers' model in ``folder``. Every caption reads its own prefix, is padded to the ``longest`` caption of the
    data set (None: of the batch), and gets logits at every position. ``text_ids`` are a caption's token ids, its end
    included; without it word "w7" is token 7, and the last token the end.
    ``weight_gradients``: gradients into the frozen language model's weights are computed and never used; ClipCap's code
    does that, Prefix-AAC's does not. Two differences: ClipCap's captions end with an end-of-text token, as ours do, and
    Prefix-AAC's word 0, which no caption has, keeps its logit. As in Prefix-AAC's code, word i is read by row i of the
    embeddings.
    """
    device = next(mapper.parameters()).device
    lm: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    lm = lm.to(device).eval().requires_grad_(weight_gradients)
    head: nn.Linear = lm.lm_head if own_head is None else own_head
    ids_of = text_ids or (lambda text: [*(int(word[1:]) for word in text.split()), head.out_features - 1])

    def loss(batch: CaptionBatch) -> Tensor:
        rows = [ids_of(text) for texts in batch.texts for text in texts]
        width = longest or max(map(len, rows))
        labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows], device=device)
        prefix = mapper(batch.one_caption_per_input().features).embeds.to(lm.dtype)
        embeds = torch.cat([prefix, lm.get_input_embeddings()(labels.clamp(min=0))], dim=1)
        mask = torch.cat([labels.new_ones(prefix.shape[:2]), (labels >= 0).long()], dim=1)
        hidden = lm.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        logits = head(hidden)
        predicted = logits[:, prefix.shape[1] - 1 : -1].reshape(-1, logits.shape[-1])
        return F.cross_entropy(predicted, labels.flatten(), ignore_index=-100, reduction="sum")

    return loss


def unshared_positions(batch: CaptionBatch) -> tuple[int, int]:
    """Text positions that must be run, and those that are run with a row for each caption."""
    return batch.one_caption_per_input().text_positions()


def naive_positions(batch: CaptionBatch) -> tuple[int, int]:
    """Text positions that must be run, and those that are run where every caption is padded to the longest."""
    return unshared_positions(batch)[0], LONGEST * sum(map(len, batch.texts))


@dataclass
class TrainStep:
    """One step on each of ``batches``, one after the other; its result is the mean loss over the tokens of all.

    The learning rate is zero: all the work of a step is done, and every repetition starts from the same weights.
    ``text_positions`` counts for a batch the text positions that must be run, and those that this variant runs.
    """

    loss: Loss
    optimizer: torch.optim.Optimizer
    batches: list[CaptionBatch]
    dtype: torch.dtype = torch.float32
    text_positions: Callable[[CaptionBatch], tuple[int, int]] = CaptionBatch.text_positions

    def __call__(self) -> float:
        tokens = sum(batch.tokens for batch in self.batches)
        total = 0.0
        self.optimizer.zero_grad()
        for batch in self.batches:
            with torch.autocast(batch.features.pooled.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss = self.loss(batch) / tokens
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return total

    @property
    def padding(self) -> float:
        """The share of padding among the text positions that are run."""
        real, run = (sum(counts) for counts in zip(*map(self.text_positions, self.batches), strict=True))
        return 1 - real / run
