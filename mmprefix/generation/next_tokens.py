"""What a search is offered: the log-probabilities of each line's next token, a few lines at a time.

A vocabulary is wide, and a search wants a handful of its tokens. A few lines' logits stay in the processor's cache from
the softmax to the choice, and nothing as wide as the vocabulary is made for all lines at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmprefix.fast.chunked_topk import NUMBERS, chunked_topk
from mmprefix.generation.constraints import LogitsProcessor


class NextTokens:
    """The next tokens of the W lines (B W n) of B inputs.

    ``logits`` (B W V), or (B 1 V) where all lines of an input are still the same; ``rules`` say what is not offered.
    """

    def __init__(self, logits: Tensor, lines: Tensor, rules: Sequence[LogitsProcessor]) -> None:
        self.logits, self.rules, self.width = logits, rules, lines.shape[1]
        self.lines = lines[:, : logits.shape[1]]

    def top(self, count: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """The log-probabilities and ids (B W C) of each line's likeliest tokens; C is ``count``, or V if that is less.

        A ``temperature`` is applied to what is left by the rules, which is made probabilities again.
        """
        inputs, width, wide = self.logits.shape
        count = min(count, wide)
        size = max(1, NUMBERS // (width * wide) if self.logits.device.type == "cpu" else inputs)
        parts = [chunked_topk(self._of(slice(at, at + size), temperature), count) for at in range(0, inputs, size)]
        values, tokens = (torch.cat(some).expand(-1, self.width, -1) for some in zip(*parts, strict=True))
        return values, tokens

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """Of all tokens (B W V)."""
        return self._of(slice(None), temperature).expand(-1, self.width, -1)

    def _of(self, inputs: slice, temperature: float) -> Tensor:
        """All tokens of some inputs."""
        found = self.logits[inputs].float().log_softmax(-1)
        for rule in self.rules:
            found = rule(found, self.lines[inputs])
        return found if temperature == 1 else (found / temperature).log_softmax(-1)
