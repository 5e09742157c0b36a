"""Generation options: number of tokens, beams and texts, sampling, ranking, constraints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmprefix.errors import InputError

IMPOSSIBLE = float("-inf")  # log-probability of a token or hypothesis that is excluded


@dataclass(frozen=True)
class GenerateOptions:
    """Options of a search. Contradictions are refused when the options are made.

    ``num_beams`` above 1 searches with beams; ``sample`` draws, with ``temperature`` and ``top_p``, the same draw
    for the same ``seed`` whatever the batch; neither is greedy. ``num_return`` texts an input. A text's score is the
    sum of its tokens' log-probabilities (the end of text included) over length to the power ``length_penalty``.
    No text ends before ``min_new_tokens``; none has the same ``no_repeat_ngram_size`` tokens in a row twice (0: may).
    ``ranking="clipcap"`` keeps the beams of ClipCap's published code: mean log-probability decides at every step,
    and finished hypotheses stay among the beams.
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
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0

    @property
    def width(self) -> int:
        """The number W of hypotheses of an input during the search."""
        return self.num_return if self.sample else self.num_beams

    def __post_init__(self) -> None:
        def need(valid: bool, option: str, advice: str) -> None:
            if not valid:
                raise InputError(f"generate: {option}={getattr(self, option)}: {advice}")

        for option in ("max_new_tokens", "num_beams", "num_return"):
            need(getattr(self, option) >= 1, option, "must be at least 1")
        for option in ("min_new_tokens", "no_repeat_ngram_size"):
            need(getattr(self, option) >= 0, option, "must be at least 0")
        most = self.max_new_tokens
        need(self.min_new_tokens <= most, "min_new_tokens", f"must be at most max_new_tokens={most}")
        need(
            not (self.sample and self.num_beams > 1),
            "num_beams",
            "sample=True draws single texts; use num_beams=1",
        )
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
