"""Beam search for phrases that a text must hold: the beams are shared out by how much of the phrases is still missing.

Dynamic beam allocation (Post and Vilar, https://arxiv.org/abs/1804.06609) after grid beam search (Hokamp and Liu,
https://arxiv.org/abs/1704.07138), over the states of an automaton (Anderson and others,
https://arxiv.org/abs/1612.00576): a phrase is begun in every step by some beam, and stays where it is likely.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from mmprefix.generation.constraints import PhraseConstraint
from mmprefix.generation.next_tokens import NextTokens
from mmprefix.generation.options import IMPOSSIBLE, GenerateOptions
from mmprefix.generation.phrase_tables import FAR, TextState
from mmprefix.generation.strategies import BatchedState, Hypothesis, Opening, shared_start
from mmprefix.types import to_list

Choice = tuple[float, int, int]  # score, parent, token


class ConstrainedBeamSearch(BatchedState):
    """Beams in banks by the number of tokens that a text still needs; ended texts are kept apart.

    A text that ends is finished if it is among the best W of the bank that needs nothing. An input is done when its
    best open hypothesis, by its score so far, is no better than the worst of ``num_beams`` finished ones.
    """

    def __init__(self, stops: Tensor, options: GenerateOptions, opening: Opening, constraint: PhraseConstraint) -> None:
        self.options, self.stops, self.width, self.constraint = options, stops, options.width, constraint
        batch = len(opening.score)
        self.score = torch.full((batch, self.width), IMPOSSIBLE, device=stops.device)
        self.score[:, 0] = opening.score  # all hypotheses are equal before the first token
        self.tokens = opening.rows(self.width)
        self.active = torch.ones(batch, dtype=torch.bool, device=stops.device)
        self.ended: list[list[Hypothesis]] = [[] for _ in range(batch)]
        self.banks = min(self.width, constraint.start_distance + 1)

    def select(self, rows: Tensor) -> Self:
        """Search of the inputs ``rows`` alone."""
        selected = super().select(rows)
        selected.ended = [self.ended[row] for row in to_list(rows)]
        return selected

    def step(self, next_tokens: NextTokens) -> tuple[Tensor, Tensor]:
        keep = self.width * (1 + max(1, min(len(self.stops), 4)))
        parts = [next_tokens.top(keep, self.options.temperature)]
        if any(0 < left < FAR for row in self._left(next_tokens.hypotheses) for left in row):
            parts.append(next_tokens.among(self.constraint.nearer).top(self.width, self.options.temperature))
        log_probs, tokens = (torch.cat(each, dim=-1) for each in zip(*parts, strict=True))  # (B W C)
        total = self.score[..., None] + log_probs
        states, active, last = self.constraint.states(self.tokens), to_list(self.active), self._is_last()
        chosen: list[list[Choice]] = []
        for b, (scores, ids) in enumerate(zip(to_list(total), to_list(tokens), strict=True)):
            pairs = ((s, w, t) for w in range(self.width) for s, t in zip(scores[w], ids[w], strict=True))
            ranked = sorted({choice for choice in pairs if choice[0] > IMPOSSIBLE}, key=lambda c: (-c[0], c[1:]))
            banks = self._sort(b, ranked if active[b] else [], states[b], last)
            chosen.append(_share_out(banks, self.width))
        return self._append(chosen, last)

    def _left(self, hypotheses: Tensor) -> list[list[int]]:
        return [[self.constraint.tables.left(state) for state in row] for row in self.constraint.states(hypotheses)]

    def _is_last(self) -> bool:
        return self.tokens.shape[-1] + 1 == self.options.max_new_tokens

    def _sort(self, b: int, ranked: list[Choice], states: list[TextState], last: bool) -> list[list[Choice]]:
        """Choices of an input in banks, the one that needs nothing first; those that end now are finished."""
        banks: list[list[Choice]] = [[] for _ in range(self.banks)]
        complete = 0
        for choice in ranked:
            score, parent, token = choice
            left = self.constraint.tables.left(self.constraint.advance(states[parent], token))
            if left >= FAR:
                continue
            complete += left == 0
            if token in self.constraint.stop_set or last:
                if left == 0 and complete <= self.width:
                    self._finish(b, [*to_list(self.tokens[b, parent]), token], score)
            else:
                banks[min(left * self.banks // (self.constraint.start_distance + 1), self.banks - 1)].append(choice)
        return banks

    def _finish(self, b: int, tokens: list[int], score: float) -> None:
        self.ended[b].append((tokens, score / len(tokens) ** self.options.length_penalty))
        self.ended[b].sort(key=lambda each: -each[1])
        del self.ended[b][self.options.num_beams :]

    def _append(self, chosen: list[list[Choice]], last: bool) -> tuple[Tensor, Tensor]:
        """Make the ``chosen`` the open hypotheses → parents and tokens (B W); places that stay empty are excluded."""
        rows = [[*row, *[(IMPOSSIBLE, 0, 0)] * (self.width - len(row))] for row in chosen]
        device = self.tokens.device
        self.score = torch.tensor([[score for score, _, _ in row] for row in rows], device=device)
        parents = torch.tensor([[parent for _, parent, _ in row] for row in rows], device=device)
        tokens = torch.tensor([[token for _, _, token in row] for row in rows], device=device)
        inherited = self.tokens.gather(1, parents[..., None].expand(-1, -1, self.tokens.shape[-1]))
        self.tokens = torch.cat([inherited, tokens[..., None]], dim=-1)
        length = self.tokens.shape[-1] ** self.options.length_penalty
        is_open = [
            bool(row) and not last and max(score for score, _, _ in row) / length > self._worst(b)
            for b, row in enumerate(chosen)
        ]
        self.active = self.active & torch.tensor(is_open, device=device)
        return parents, tokens

    def _worst(self, b: int) -> float:
        """Score of the worst finished text; any is better while there are too few."""
        return self.ended[b][-1][1] if len(self.ended[b]) >= self.options.num_beams else IMPOSSIBLE

    def finished(self) -> list[list[Hypothesis]]:
        return [row[: self.options.num_return] for row in self.ended]

    def settled(self) -> list[int]:
        """Tokens that the open hypotheses share with the best finished one."""
        possible = (self.score[0] > IMPOSSIBLE) & self.active[0]
        rows = [tokens for tokens, _ in self.ended[0][:1]] + to_list(self.tokens[0, possible])
        return shared_start(rows)


def _share_out(banks: list[list[Choice]], count: int) -> list[Choice]:
    """Best choice of each bank, then the second best of each, until there are ``count``; the best come first."""
    longest = max(map(len, banks), default=0)
    turns = [bank[n] for n in range(longest) for bank in banks if n < len(bank)]
    return sorted(turns[:count], key=lambda choice: -choice[0])
