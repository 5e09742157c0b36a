"""Timestamps in Whisper's texts: the rules by which they are written, and where the next window begins.

Robust Speech Recognition via Large-Scale Weak Supervision, https://arxiv.org/abs/2212.04356, sections 2.3 and 4.5.
Ids from ``first`` on are timestamps, one a frame of the encoder; those below the end of text are words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmprefix.generation.options import IMPOSSIBLE


@dataclass(frozen=True)
class TimestampRules:
    """Logits processor: timestamps in pairs, never decreasing, one at the start, and wherever they are likelier.

    ``first`` is the id of timestamp 0, ``end_of_text`` that of the end; ``latest_start`` is the last timestamp that may
    begin a text (None: any). The log-probabilities that remain sum to 1.
    """

    first: int
    end_of_text: int
    latest_start: int | None = None

    def __call__(self, log_probs: Tensor, hypotheses: Tensor) -> Tensor:
        """Log-probabilities (B W V) of the next token after ``hypotheses`` (B W n) → those that the rules leave."""
        tokens = torch.arange(log_probs.shape[-1], device=log_probs.device)
        is_stamp = tokens >= self.first
        excluded = (tokens == self.first - 1) | self._out_of_order(tokens, is_stamp, hypotheses)
        log_probs = log_probs.masked_fill(excluded, IMPOSSIBLE).log_softmax(-1)
        stamps, others = log_probs[..., self.first :], log_probs[..., : self.first]
        likelier = stamps.logsumexp(-1) > others.amax(-1)  # some timestamp than any one word
        return log_probs.masked_fill(likelier[..., None] & ~is_stamp, IMPOSSIBLE).log_softmax(-1)

    def _out_of_order(self, tokens: Tensor, is_stamp: Tensor, hypotheses: Tensor) -> Tensor:
        """Mask (B W V) of the tokens (V) that cannot follow ``hypotheses``, True for those."""
        length = hypotheses.shape[-1]
        if not length:
            last = len(tokens) if self.latest_start is None else self.first + self.latest_start
            return ~is_stamp | (tokens > last)
        stamps = hypotheses >= self.first
        after_stamp = stamps[..., -1:]  # (B W 1)
        in_pair = stamps[..., -2:-1] if length > 1 else torch.ones_like(after_stamp)
        closes = after_stamp & ~in_pair  # a timestamp behind words: another one or the end follows
        latest = hypotheses.masked_fill(~stamps, self.first - 1).amax(-1, keepdim=True)
        earliest = torch.where(closes, latest, latest + 1)
        return (
            (is_stamp & (tokens < earliest))
            | (after_stamp & in_pair & is_stamp)
            | (closes & (tokens < self.end_of_text))
        )


def finished_part(ids: list[int], first: int) -> tuple[list[int], int | None]:
    """Tokens of a window that are kept, and the timestamp at which the next window begins (None: behind this window).

    ``ids`` are without the end of text. A window that ends in the middle of a sentence is kept up to the last pair of
    timestamps: the next window hears the rest again, from its start.
    """
    stamps = [number >= first for number in ids]
    pairs = [n for n in range(1, len(ids)) if stamps[n - 1] and stamps[n]]
    if not pairs or stamps[-2:] == [False, True]:
        return ids, None
    return ids[: pairs[-1]], ids[pairs[-1] - 1] - first
