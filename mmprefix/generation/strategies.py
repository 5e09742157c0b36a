"""Search strategies: greedy search or sampling, beam search as in Hugging Face, beam search as in ClipCap's code.

A strategy holds W hypotheses for each of B inputs as tensors and steps all of them together.
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from mmprefix.generation.next_tokens import NextTokens
from mmprefix.generation.options import IMPOSSIBLE, GenerateOptions
from mmprefix.types import to_list

Hypothesis = tuple[list[int], float]  # token ids, stop token included, and score


class Opening(NamedTuple):
    """Tokens (N,) that every text begins with, and the sum of their log-probabilities for each input (B,)."""

    tokens: Tensor
    score: Tensor

    @classmethod
    def none(cls, batch: int, device: torch.device) -> Opening:
        """No tokens before ``batch`` texts."""
        return cls(torch.zeros(0, dtype=torch.long, device=device), torch.zeros(batch, device=device))

    def rows(self, width: int) -> Tensor:
        """The tokens of ``width`` hypotheses of each input (B W N)."""
        return self.tokens.expand(len(self.score), width, -1)


class SearchStrategy(Protocol):
    """Choice of the next tokens of W open hypotheses (``GenerateOptions.width``) for each of B inputs."""

    tokens: Tensor  # (B W n), open hypotheses so far

    @property
    def active(self) -> Tensor:
        """(B,) bool: inputs whose search is not finished."""
        ...

    def step(self, next_tokens: NextTokens) -> tuple[Tensor, Tensor]:
        """Append one token to every hypothesis → its parent (B W) among the former hypotheses, and the tokens (B W)."""
        ...

    def select(self, rows: Tensor) -> Self:
        """Strategy with the inputs ``rows`` alone."""
        ...

    def finished(self) -> list[list[Hypothesis]]:
        """Finished hypotheses of each input, the best first."""
        ...

    def settled(self) -> list[int]:
        """Tokens of the first input that its best hypothesis begins with, whatever the next steps bring."""
        ...


class BatchedState:
    """Tensors (B ...) of a strategy, from which inputs can be selected; ``shared`` names those that have no B."""

    shared = ("stops",)

    def select(self, rows: Tensor) -> Self:
        """Strategy with the inputs ``rows`` alone."""
        selected = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name not in self.shared:
                setattr(selected, name, value[rows])
        return selected


class GreedyOrSampled(BatchedState):
    """Greedy search or sampling: ``width`` independent hypotheses."""

    def __init__(self, stops: Tensor, options: GenerateOptions, opening: Opening) -> None:
        self.options, self.stops = options, stops
        self.width = options.width
        batch, device = len(opening.score), stops.device
        self.tokens = opening.rows(self.width)
        self.score = opening.score[:, None].expand(-1, self.width)
        self.length = torch.full((batch, self.width), len(opening.tokens), device=device)
        self.ended = torch.zeros(batch, self.width, dtype=torch.bool, device=device)
        self.generator = None if options.seed is None else torch.Generator().manual_seed(options.seed)
        self.parents = torch.arange(self.width, device=device).expand(batch, -1)

    def step(self, next_tokens: NextTokens) -> tuple[Tensor, Tensor]:
        if self.options.sample:
            log_probs = next_tokens.log_probs()
            tokens = self._draw(log_probs)  # (B W)
            gain = log_probs.gather(-1, tokens[..., None])[..., 0]
        else:
            gain, tokens = (part[..., 0] for part in next_tokens.top(1))
        self.score = self.score + gain.masked_fill(self.ended, 0)
        self.length = self.length + ~self.ended
        self.ended = self.ended | torch.isin(tokens, self.stops)
        self.tokens = torch.cat([self.tokens, tokens[..., None]], dim=-1)
        return self.parents, tokens

    def _draw(self, log_probs: Tensor) -> Tensor:
        scaled = (log_probs / self.options.temperature).log_softmax(-1)
        if self.options.top_p < 1:
            ranked, order = scaled.sort(dim=-1, descending=True)
            before = ranked.exp().cumsum(-1) - ranked.exp()  # probability of all likelier tokens
            ranked = ranked.masked_fill(before >= self.options.top_p, float("-inf"))
            scaled = torch.empty_like(ranked).scatter(-1, order, ranked)
        # Gumbel-max trick: with this noise the argmax is a sample. With a seed all inputs share one noise, so that the
        # text of an input does not depend on the rest of the batch
        shape = log_probs.shape[1:] if self.generator else log_probs.shape
        noise = torch.rand(shape, generator=self.generator, dtype=torch.float64).clamp(min=1e-300)
        gumbel = -(-noise.log()).clamp(min=1e-300).log()
        return (scaled + gumbel.to(scaled)).argmax(-1)

    @property
    def active(self) -> Tensor:
        return ~self.ended.all(-1)

    def finished(self) -> list[list[Hypothesis]]:
        score = self.score / self.length**self.options.length_penalty
        return _ranked(self.tokens, self.length, score, self.width)

    def settled(self) -> list[int]:
        return _shared(self.tokens[0], self.length[0])


class BeamSearch(BatchedState):
    """Beam search that keeps finished hypotheses apart, as ``generate`` of Hugging Face does.

    Twice as many continuations as beams are compared; those among the best ``num_beams`` that end are finished, the
    best others stay open. An input is done when its best open hypothesis, by its score so far, is no better than its
    worst finished one.
    """

    def __init__(self, stops: Tensor, options: GenerateOptions, opening: Opening) -> None:
        self.options, self.stops, self.width = options, stops, options.width
        batch, device = len(opening.score), stops.device
        self.keep = self.width * (1 + max(1, min(len(stops), 4)))
        shape = (batch, self.width)
        self.score = torch.full(shape, IMPOSSIBLE, device=device)
        self.score[:, 0] = opening.score  # all hypotheses are equal before the first token
        self.tokens = opening.rows(self.width)
        self.finished_score = torch.full(shape, IMPOSSIBLE, device=device)
        self.finished_length = torch.zeros(shape, dtype=torch.long, device=device)
        self.finished_tokens = torch.zeros(*shape, options.max_new_tokens, dtype=torch.long, device=device)
        self.active = torch.ones(batch, dtype=torch.bool, device=device)

    def step(self, next_tokens: NextTokens) -> tuple[Tensor, Tensor]:
        length = self.tokens.shape[-1] + 1
        log_probs, tokens = next_tokens.top(self.keep, self.options.temperature)  # (B W c)
        total = (self.score[..., None] + log_probs).flatten(1)  # the best overall are among the best of each
        score, index = total.topk(min(self.keep, total.shape[-1]), dim=-1)  # (B C)
        parents, tokens = index // log_probs.shape[-1], tokens.flatten(1).gather(1, index)
        hypotheses = torch.cat([_take(self.tokens, parents), tokens[..., None]], dim=-1)  # (B C length)
        ends = torch.isin(tokens, self.stops)
        last = length == self.options.max_new_tokens
        self._finish(score, hypotheses, ends | last, length)
        best = score.masked_fill(ends, IMPOSSIBLE).topk(self.width, dim=-1).indices
        self.score, self.tokens = score.masked_fill(ends, IMPOSSIBLE).gather(1, best), _take(hypotheses, best)
        worst = torch.where((self.finished_score > IMPOSSIBLE).all(-1), self.finished_score.amin(-1), IMPOSSIBLE)
        self.active = self.active & (self.score[:, 0] / length**self.options.length_penalty > worst) & (not last)
        return parents.gather(1, best), tokens.gather(1, best)

    def _finish(self, score: Tensor, hypotheses: Tensor, ends: Tensor, length: int) -> None:
        """Merge the hypotheses that end now, among the best ``width`` candidates, into the finished ones."""
        counts = ends & self.active[:, None]
        counts[:, self.width :] = False
        score = (score / length**self.options.length_penalty).masked_fill(~counts, IMPOSSIBLE)
        room = self.finished_tokens.shape[-1] - length
        hypotheses = torch.nn.functional.pad(hypotheses, (0, room))
        lengths = torch.full_like(score, length, dtype=torch.long)
        merged = torch.cat([self.finished_score, score], dim=1)
        self.finished_score, best = merged.topk(self.width, dim=-1)
        self.finished_tokens = _take(torch.cat([self.finished_tokens, hypotheses], dim=1), best)
        self.finished_length = torch.cat([self.finished_length, lengths], dim=1).gather(1, best)

    def finished(self) -> list[list[Hypothesis]]:
        return _ranked(self.finished_tokens, self.finished_length, self.finished_score, self.options.num_return)

    def settled(self) -> list[int]:
        """Tokens that the open hypotheses share with the best finished one; an equally good one counts too."""
        length, finished = self.tokens.shape[-1], self.finished_score[0]
        may_win = (finished > IMPOSSIBLE) & (finished == finished.max())
        is_open = (self.score[0] > IMPOSSIBLE) & self.active[0]
        tokens = torch.cat([self.finished_tokens[0, may_win, :length], self.tokens[0, is_open]])
        open_lengths = torch.full_like(self.finished_length[0], length)[is_open]
        return _shared(tokens, torch.cat([self.finished_length[0, may_win], open_lengths]))


class ClipCapBeamSearch(BatchedState):
    """Beam search of ClipCap's published code: the mean log-probability of a hypothesis ranks it at every step.

    A finished hypothesis stays among the beams with its length fixed; the search ends when all beams are finished.
    """

    def __init__(self, stops: Tensor, options: GenerateOptions, opening: Opening) -> None:
        self.options, self.stops, self.width = options, stops, options.width
        shape, device = (len(opening.score), self.width), stops.device
        self.opened = len(opening.tokens)
        self.total = opening.score[:, None].expand(-1, self.width)
        self.length = torch.full(shape, self.opened + 1.0, device=device)
        self.ended = torch.zeros(shape, dtype=torch.bool, device=device)
        self.tokens = opening.rows(self.width)

    def step(self, next_tokens: NextTokens) -> tuple[Tensor, Tensor]:
        log_probs = next_tokens.log_probs(self.options.temperature)
        v = log_probs.shape[-1]
        if self.tokens.shape[-1] == self.opened:
            gain, tokens = log_probs[:, 0].topk(self.width, dim=-1)
            self.total = self.total + gain
            parents = torch.zeros_like(tokens)
            hypotheses = self.tokens
        else:
            idle = torch.full_like(log_probs[0, 0], float("-inf"))
            idle[0] = 0.0
            log_probs = torch.where(self.ended[..., None], idle, log_probs)
            length = self.length + ~self.ended
            total = self.total[..., None] + log_probs
            mean, index = (total / length[..., None]).flatten(1).topk(self.width, dim=-1)
            parents, tokens = index // v, index % v
            self.length, self.ended = length.gather(1, parents), self.ended.gather(1, parents)
            self.total, hypotheses = mean * self.length, _take(self.tokens, parents)
        self.tokens = torch.cat([hypotheses, tokens[..., None]], dim=-1)
        self.ended = self.ended | torch.isin(tokens, self.stops)
        return parents, tokens

    @property
    def active(self) -> Tensor:
        return ~self.ended.all(-1)

    def finished(self) -> list[list[Hypothesis]]:
        return _ranked(self.tokens, self.length.long(), self.total / self.length, self.options.num_return)

    def settled(self) -> list[int]:
        possible = self.total[0] > IMPOSSIBLE
        return _shared(self.tokens[0, possible], self.length[0, possible].long())


def strategy_for(options: GenerateOptions, stops: Tensor, opening: Opening) -> SearchStrategy:
    """Strategy for ``options``; ``stops`` (any number) are the token ids that end a hypothesis."""
    if options.num_beams == 1:
        return GreedyOrSampled(stops, options, opening)
    return (ClipCapBeamSearch if options.ranking == "clipcap" else BeamSearch)(stops, options, opening)


def _take(hypotheses: Tensor, index: Tensor) -> Tensor:
    """Hypotheses (B W N) at index (B C) → (B C N)."""
    return hypotheses.gather(1, index[..., None].expand(-1, -1, hypotheses.shape[-1]))


def _shared(tokens: Tensor, length: Tensor) -> list[int]:
    """Tokens that hypotheses (W N) of ``length`` (W,) begin with, all of them."""
    return shared_start([row[:n] for row, n in zip(to_list(tokens), to_list(length), strict=True)])


def shared_start(rows: list[list[int]]) -> list[int]:
    """Tokens that all of ``rows`` begin with; none where there are no rows."""
    if not rows:
        return []
    count = next((n for n, each in enumerate(zip(*rows, strict=False)) if len(set(each)) > 1), min(map(len, rows)))
    return rows[0][:count]


def _ranked(tokens: Tensor, length: Tensor, score: Tensor, count: int) -> list[list[Hypothesis]]:
    """Best ``count`` hypotheses (B W N) of each input, cut to their lengths (B W), without excluded ones."""
    order = score.argsort(dim=-1, descending=True, stable=True)[:, :count]
    ids, lengths, scores = (_take(tokens, order), length.gather(1, order), score.gather(1, order))
    rows = zip(*(to_list(part) for part in (ids, lengths, scores)), strict=True)
    return [[(t[:n], s) for t, n, s in zip(*row, strict=True) if s > IMPOSSIBLE] for row in rows]
