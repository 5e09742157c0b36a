"""What a line may not go on with: a search is offered no such token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmprefix.generation.options import IMPOSSIBLE, GenerateOptions

# log-probabilities (B W V) of the next tokens, and the lines (B W n) so far → the log-probabilities that are offered
LogitsProcessor = Callable[[Tensor, Tensor], Tensor]


def processors_for(options: GenerateOptions, stops: Tensor) -> list[LogitsProcessor]:
    """The rules that ``options`` ask for."""
    rules: list[LogitsProcessor] = []
    if options.no_repeat_ngram_size:
        rules.append(NoRepeatNgram(options.no_repeat_ngram_size))
    if options.min_new_tokens:
        rules.append(SuppressTokens(stops, until=options.min_new_tokens))
    return rules


class SuppressTokens:
    """Some tokens are not taken, ``until`` a line has so many (None: at all)."""

    def __init__(self, tokens: Tensor, until: int | None = None) -> None:
        self.tokens, self.until = tokens, until

    def __call__(self, log_probs: Tensor, lines: Tensor) -> Tensor:
        if self.until is not None and lines.shape[-1] >= self.until:
            return log_probs
        return log_probs.index_fill(-1, self.tokens[self.tokens < log_probs.shape[-1]], IMPOSSIBLE)


class NoRepeatNgram:
    """No ``size`` tokens in a row come twice in a line."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, log_probs: Tensor, lines: Tensor) -> Tensor:
        before, length = self.size - 1, lines.shape[-1]
        if length < self.size:
            return log_probs
        windows = lines.unfold(-1, self.size, 1)  # (B W n-size+1 size)
        same = (windows[..., :-1] == lines[..., None, length - before :]).all(-1)  # what came before is what comes now
        barred = torch.where(same, IMPOSSIBLE, 0.0).to(log_probs.dtype)
        return log_probs.scatter_add(-1, windows[..., -1], barred)


def renormalize(log_probs: Tensor, lines: Tensor) -> Tensor:
    """What is left, as probabilities again."""
    return log_probs.log_softmax(-1)
