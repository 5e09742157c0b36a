"""Top-k next-token log-probabilities, a few hypotheses at a time, and the logits processors that constrain them.

A vocabulary is wide, and a search needs a handful of its tokens. The logits of a few hypotheses stay in the CPU's cache
from softmax to top-k, and no (B W V) tensor is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor

from mmprefix.fast.chunked_topk import chunked_topk
from mmprefix.generation.options import IMPOSSIBLE, GenerateOptions

MAX_LOGITS = 1 << 20  # logits in a block on a CPU

# next-token log-probabilities (B W V) and hypotheses so far (B W n) → constrained log-probabilities (B W V)
LogitsProcessor = Callable[[Tensor, Tensor], Tensor]


class NextTokens:
    """Next-token log-probabilities of W hypotheses (B W n) of each of B inputs.

    ``logits`` (B W V), or (B 1 V) while all hypotheses of an input are equal.
    """

    def __init__(self, logits: Tensor, hypotheses: Tensor, processors: Sequence[LogitsProcessor]) -> None:
        self.logits, self.processors, self.width = logits, processors, hypotheses.shape[1]
        self.hypotheses = hypotheses[:, : logits.shape[1]]

    def top(self, count: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probabilities and ids (B W C) of the likeliest tokens of each hypothesis; C is ``count``, at most V.

        ``temperature`` is applied after the processors; probabilities sum to 1 again.
        """
        inputs, width, vocabulary = self.logits.shape
        count = min(count, vocabulary)
        size = max(1, MAX_LOGITS // (width * vocabulary) if self.logits.device.type == "cpu" else inputs)
        blocks = [_top(self._processed(slice(b, b + size), temperature), count) for b in range(0, inputs, size)]
        values, tokens = (torch.cat(parts).expand(-1, self.width, -1) for parts in zip(*blocks, strict=True))
        return values, tokens

    def among(self, processor: LogitsProcessor) -> NextTokens:
        """Next tokens after one more logits processor."""
        selected = copy(self)
        selected.processors = [*self.processors, processor]
        return selected

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of all tokens (B W V)."""
        return self._processed(slice(None), temperature).expand(-1, self.width, -1)

    def _processed(self, inputs: slice, temperature: float) -> Tensor:
        """Processed log-probabilities (b W V) of a slice of inputs."""
        log_probs = self.logits[inputs].float().log_softmax(-1)
        for processor in self.processors:
            log_probs = processor(log_probs, self.hypotheses[inputs])
        if temperature == 1:
            return log_probs
        return (log_probs / temperature).log_softmax(-1).nan_to_num(IMPOSSIBLE, neginf=IMPOSSIBLE)  # where all are out


def _top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Greatest ``count`` of values (... V) and their indices, (... C) both."""
    if count == 1:
        greatest = values.max(-1, keepdim=True)
        return greatest.values, greatest.indices
    return chunked_topk(values, count)


def processors_for(options: GenerateOptions, stops: Tensor) -> list[LogitsProcessor]:
    """Logits processors for ``options``; ``stops`` (any number) are the token ids that end a text."""
    processors: list[LogitsProcessor] = []
    if options.no_repeat_ngram_size:
        processors.append(NoRepeatNgram(options.no_repeat_ngram_size))
    if options.min_new_tokens:
        processors.append(SuppressTokens(stops, until=options.min_new_tokens))
    return processors


class SuppressTokens:
    """Logits processor: ``tokens`` are excluded until a hypothesis has ``until`` tokens (None: always)."""

    def __init__(self, tokens: Tensor, until: int | None = None) -> None:
        self.tokens, self.until = tokens, until

    def __call__(self, log_probs: Tensor, hypotheses: Tensor) -> Tensor:
        if self.until is not None and hypotheses.shape[-1] >= self.until:
            return log_probs
        return log_probs.index_fill(-1, self.tokens[self.tokens < log_probs.shape[-1]], IMPOSSIBLE)


class NoRepeatNgram:
    """Logits processor: no n-gram of ``size`` tokens occurs twice in a hypothesis."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, log_probs: Tensor, hypotheses: Tensor) -> Tensor:
        before, length = self.size - 1, hypotheses.shape[-1]
        if length < self.size:
            return log_probs
        windows = hypotheses.unfold(-1, self.size, 1)  # (B W n-size+1 size)
        repeats = (windows[..., :-1] == hypotheses[..., None, length - before :]).all(
            -1
        )  # start equals the latest tokens
        penalty = torch.where(repeats, IMPOSSIBLE, 0.0).to(log_probs.dtype)
        return log_probs.scatter_add(-1, windows[..., -1], penalty)


def renormalize(log_probs: Tensor, hypotheses: Tensor) -> Tensor:
    """Logits processor: the probabilities of the remaining tokens sum to 1 again."""
    return log_probs.log_softmax(-1)
