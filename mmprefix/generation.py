"""How text is searched for: greedy, sampling and beams, all growing as one tree on a shared trunk.

A decoder has read a prefix and a prompt once: the trunk. Every step adds ``width`` nodes to each input's tree, one
for each line of text being written, and a mask says which nodes are a line's own ancestors. So the trunk's keys and
values are stored once an input, and no cache is copied or reordered when beams change places.

A ``Picker`` decides what a step adds: it is given log-probabilities and answers with parents and tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from mmprefix.types import InputError

NEVER = float("-inf")  # the log-probability of a line that does not exist
Line = tuple[list[int], float]  # token ids without what ended them, and the score


@dataclass(frozen=True)
class GenerateOptions:
    """What to write. Contradictions are refused when the options are made.

    ``num_beams`` above 1 searches with beams; ``sample`` draws, with ``temperature`` and ``top_p``, the same draw
    for the same ``seed`` whatever the batch; neither is greedy. ``num_return`` texts an input. A text's score is the
    sum of its tokens' log-probabilities (the end of text included) over length to the power ``length_penalty``.
    ``ranking="clipcap"`` keeps the beams of ClipCap's published code: mean log-probability decides at every step,
    and finished lines hold their place among the beams.
    """

    max_new_tokens: int = 30
    num_beams: int = 1
    num_return: int = 1
    length_penalty: float = 1.0
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    ranking: Literal["default", "clipcap"] = "default"

    def __post_init__(self) -> None:
        def need(good: bool, option: str, advice: str) -> None:
            if not good:
                raise InputError(f"generate: {option}={getattr(self, option)}: {advice}")

        for option in ("max_new_tokens", "num_beams", "num_return"):
            need(getattr(self, option) >= 1, option, "must be at least 1")
        need(not (self.sample and self.num_beams > 1), "num_beams", "sample=True draws single lines; use num_beams=1")
        most = self.num_return if self.sample else self.num_beams
        need(self.num_return <= most, "num_return", f"num_beams={self.num_beams} gives no more texts; raise num_beams")
        need(self.temperature > 0, "temperature", "must be above 0; for the likeliest words leave sample=False")
        need(
            self.temperature == 1 or self.sample or self.num_beams > 1,
            "temperature",
            "changes nothing in greedy search; set sample=True or num_beams",
        )
        need(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        need(self.top_p == 1 or self.sample, "top_p", "only sampling uses it; set sample=True")
        need(self.seed is None or self.sample, "seed", "only sampling draws; set sample=True")
        need(self.ranking in ("default", "clipcap"), "ranking", "must be 'default' or 'clipcap'")
        need(self.ranking == "default" or self.num_beams > 1, "ranking", "is a rule for beams; set num_beams above 1")


class Picker(Protocol):
    """What grows on the tree. ``width`` lines are open for each of B inputs."""

    width: int

    def pick(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B W V) of the next token → parents (B W) among the open lines, and tokens (B W)."""
        ...

    def done(self) -> bool:
        """True when no input can gain by another step."""
        ...

    def lines(self) -> list[list[Line]]:
        """For each input its finished lines, the best first."""
        ...


def grow(first: Tensor, step: Callable[[Tensor, Tensor], Tensor], picker: Picker, steps: int) -> list[list[Line]]:
    """Writes at most ``steps`` tokens a line.

    ``first`` (B V) are the logits after the trunk; ``step(tokens (B W), ancestry (B W M))`` adds a node for each line
    and gives the logits (B W V) after them, where ``ancestry`` says which of the M nodes a line has passed through,
    the new ones last.
    """
    width, count = picker.width, len(first)
    own = torch.eye(width, dtype=torch.bool, device=first.device).expand(count, -1, -1)
    ancestry = own[:, :, :0]
    log_probs = first.float().log_softmax(-1)[:, None].expand(-1, width, -1)
    for left in range(steps - 1, -1, -1):
        parents, tokens = picker.pick(log_probs)
        if picker.done() or not left:
            break
        inherited = ancestry.gather(1, parents[..., None].expand(-1, -1, ancestry.shape[-1]))
        ancestry = torch.cat([inherited, own], dim=-1)  # (B W M)
        log_probs = step(tokens, ancestry).float().log_softmax(-1)
    return picker.lines()


class Singles:
    """Greedy or sampled lines, ``width`` of them side by side, none knowing of the others."""

    def __init__(self, batch: int, stops: Tensor, options: GenerateOptions, device: torch.device) -> None:
        self.options, self.stops = options, stops
        self.width = options.num_return if options.sample else 1
        self.tokens = torch.zeros(batch, self.width, 0, dtype=torch.long, device=device)
        self.score = torch.zeros(batch, self.width, device=device)
        self.length = torch.zeros(batch, self.width, dtype=torch.long, device=device)
        self.ended = torch.zeros(batch, self.width, dtype=torch.bool, device=device)
        self.generator = None if options.seed is None else torch.Generator().manual_seed(options.seed)
        self.parents = torch.arange(self.width, device=device).expand(batch, -1)

    def pick(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self._draw(log_probs) if self.options.sample else log_probs.argmax(-1)  # (B W)
        gained = log_probs.gather(-1, tokens[..., None])[..., 0]
        self.score = self.score + gained.masked_fill(self.ended, 0)
        self.length = self.length + ~self.ended
        self.ended = self.ended | torch.isin(tokens, self.stops)
        self.tokens = torch.cat([self.tokens, tokens[..., None]], dim=-1)
        return self.parents, tokens

    def _draw(self, log_probs: Tensor) -> Tensor:
        scaled = (log_probs / self.options.temperature).log_softmax(-1)
        if self.options.top_p < 1:
            ranked, order = scaled.sort(dim=-1, descending=True)
            before = ranked.exp().cumsum(-1) - ranked.exp()  # the mass of all likelier tokens
            ranked = ranked.masked_fill(before >= self.options.top_p, float("-inf"))
            scaled = torch.empty_like(ranked).scatter(-1, order, ranked)
        # the Gumbel trick: adding this noise makes the maximum a draw; one noise for all inputs where a seed is set,
        # so that what an input is given does not depend on its neighbours
        shape = log_probs.shape[1:] if self.generator else log_probs.shape
        noise = torch.rand(shape, generator=self.generator, dtype=torch.float64).clamp(min=1e-300)
        gumbel = -(-noise.log()).clamp(min=1e-300).log()
        return (scaled + gumbel.to(scaled)).argmax(-1)

    def done(self) -> bool:
        return bool(self.ended.all())

    def lines(self) -> list[list[Line]]:
        score = self.score / self.length**self.options.length_penalty
        return _ranked(self.tokens, self.length, score, self.width)


class Beams:
    """Beam search that keeps finished lines apart; the rule of Hugging Face's ``generate``.

    Twice as many continuations as beams are looked at; those among the best ``num_beams`` that end are kept as
    finished, the best others go on. An input is done when its best open line, by its score so far, is no better
    than its worst finished one.
    """

    def __init__(self, batch: int, stops: Tensor, options: GenerateOptions, device: torch.device) -> None:
        self.options, self.stops, self.width = options, stops, options.num_beams
        self.keep = self.width * (1 + max(1, min(len(stops), 4)))
        shape = (batch, self.width)
        self.score = torch.zeros(shape, device=device)
        self.score[:, 1:] = NEVER  # all lines are the same before the first token
        self.tokens = torch.zeros(*shape, 0, dtype=torch.long, device=device)
        self.finished_score = torch.full(shape, NEVER, device=device)
        self.finished_length = torch.zeros(shape, dtype=torch.long, device=device)
        self.finished = torch.zeros(*shape, options.max_new_tokens, dtype=torch.long, device=device)
        self.open = torch.ones(batch, dtype=torch.bool, device=device)

    def pick(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        length = self.tokens.shape[-1] + 1
        if self.options.temperature != 1:
            log_probs = (log_probs / self.options.temperature).log_softmax(-1)
        v = log_probs.shape[-1]
        total = (self.score[..., None] + log_probs).flatten(1)  # (B W*V)
        score, index = total.topk(min(self.keep, total.shape[-1]), dim=-1)  # (B C)
        parents, tokens = index // v, index % v
        lines = torch.cat([_take(self.tokens, parents), tokens[..., None]], dim=-1)  # (B C length)
        ends = torch.isin(tokens, self.stops)
        last = length == self.options.max_new_tokens
        self._finish(score, lines, ends | last, length)
        best = score.masked_fill(ends, NEVER).topk(self.width, dim=-1).indices
        self.score, self.tokens = score.masked_fill(ends, NEVER).gather(1, best), _take(lines, best)
        worst = torch.where((self.finished_score > NEVER).all(-1), self.finished_score.amin(-1), NEVER)
        self.open = self.open & (self.score[:, 0] / length**self.options.length_penalty > worst) & (not last)
        return parents.gather(1, best), tokens.gather(1, best)

    def _finish(self, score: Tensor, lines: Tensor, ends: Tensor, length: int) -> None:
        """Merges the lines that end now, among the best ``width`` candidates, into the finished ones."""
        counts = ends & self.open[:, None]
        counts[:, self.width :] = False
        score = (score / length**self.options.length_penalty).masked_fill(~counts, NEVER)
        room = self.finished.shape[-1] - length
        lines = torch.nn.functional.pad(lines, (0, room))
        lengths = torch.full_like(score, length, dtype=torch.long)
        merged = torch.cat([self.finished_score, score], dim=1)
        self.finished_score, best = merged.topk(self.width, dim=-1)
        self.finished = _take(torch.cat([self.finished, lines], dim=1), best)
        self.finished_length = torch.cat([self.finished_length, lengths], dim=1).gather(1, best)

    def done(self) -> bool:
        return not bool(self.open.any())

    def lines(self) -> list[list[Line]]:
        return _ranked(self.finished, self.finished_length, self.finished_score, self.options.num_return)


class ClipCapBeams:
    """The beams of ClipCap's published code: the mean log-probability of a line ranks it at every step.

    A finished line stays among the beams with its length frozen; the search ends when all beams have.
    """

    def __init__(self, batch: int, stops: Tensor, options: GenerateOptions, device: torch.device) -> None:
        self.options, self.stops, self.width = options, stops, options.num_beams
        shape = (batch, self.width)
        self.total = torch.zeros(shape, device=device)
        self.length = torch.ones(shape, device=device)
        self.ended = torch.zeros(shape, dtype=torch.bool, device=device)
        self.tokens = torch.zeros(*shape, 0, dtype=torch.long, device=device)

    def pick(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        if self.options.temperature != 1:
            log_probs = (log_probs / self.options.temperature).log_softmax(-1)
        v = log_probs.shape[-1]
        if not self.tokens.shape[-1]:
            self.total, tokens = log_probs[:, 0].topk(self.width, dim=-1)
            parents = torch.zeros_like(tokens)
            lines = self.tokens
        else:
            idle = torch.full_like(log_probs[0, 0], float("-inf"))
            idle[0] = 0.0
            log_probs = torch.where(self.ended[..., None], idle, log_probs)
            length = self.length + ~self.ended
            total = self.total[..., None] + log_probs
            mean, index = (total / length[..., None]).flatten(1).topk(self.width, dim=-1)
            parents, tokens = index // v, index % v
            self.length, self.ended = length.gather(1, parents), self.ended.gather(1, parents)
            self.total, lines = mean * self.length, _take(self.tokens, parents)
        self.tokens = torch.cat([lines, tokens[..., None]], dim=-1)
        self.ended = self.ended | torch.isin(tokens, self.stops)
        return parents, tokens

    def done(self) -> bool:
        return bool(self.ended.all())

    def lines(self) -> list[list[Line]]:
        return _ranked(self.tokens, self.length.long(), self.total / self.length, self.options.num_return)


def picker_for(options: GenerateOptions, batch: int, stops: Tensor) -> Picker:
    """The picker that ``options`` ask for; ``stops`` (any number) are the token ids that end a line."""
    kind = Singles if options.num_beams == 1 else ClipCapBeams if options.ranking == "clipcap" else Beams
    return kind(batch, stops, options, stops.device)


def _take(lines: Tensor, index: Tensor) -> Tensor:
    """Lines (B W N) at index (B C) → (B C N)."""
    return lines.gather(1, index[..., None].expand(-1, -1, lines.shape[-1]))


def _ranked(tokens: Tensor, length: Tensor, score: Tensor, count: int) -> list[list[Line]]:
    """Lines (B W N) cut to their lengths (B W), the ``count`` best of an input first, without those that never were."""
    order = score.argsort(dim=-1, descending=True, stable=True)[:, :count]
    ids, lengths, scores = (_take(tokens, order), length.gather(1, order), score.gather(1, order))
    rows = zip(*(cast(list[Any], part.tolist()) for part in (ids, lengths, scores)), strict=True)  # pyright: ignore
    return [[(t[:n], s) for t, n, s in zip(*row, strict=True) if s > NEVER] for row in rows]
