"""Generation options: number of tokens, beams and texts, sampling, ranking, constraints."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from mmprefix.errors import InputError
from mmprefix.generation.phrases import require_phrases
from mmprefix.trust.limits import limit
from mmprefix.trust.option_types import require_types

MIN_CONSTRAINED_BEAMS = 4  # fewer beams would leave a phrase no place but the end
IMPOSSIBLE = float("-inf")  # log-probability of a token or hypothesis that is excluded


@dataclass(frozen=True)
class GenerateOptions:
    """Options of a search. Raises InputError for contradictions.

    Without ``sample`` and with one beam the search is greedy.

    Args:
        max_new_tokens: most tokens of a text, end of text included.
        num_beams: beam search with that many hypotheses, where above 1.
        num_return: texts per input.
        length_penalty: the score of a text is the sum of its tokens' log-probabilities (end of text included) divided
            by its length to this power.
        sample: draw tokens with ``temperature`` and ``top_p``, without beams.
        temperature: logits are divided by it; below 1 the likely tokens become likelier.
        top_p: draw among the likeliest tokens that have this probability together.
        seed: of the draws; the same seed gives the same text whatever the batch.
        ranking: "clipcap": beam search as in ClipCap's published code, where the mean log-probability ranks hypotheses
            at every step and finished ones stay among the beams.
        min_new_tokens: no text ends earlier.
        no_repeat_ngram_size: no n-gram of this size occurs twice in a text; 0: it may.
        start_with: how every text begins. It counts as part of the text: in ``max_new_tokens``, length and score.
        must_hold: words or phrases that every text contains, whole and in any case (docs/constraints.md). They are
            searched for with beams, at least ``MIN_CONSTRAINED_BEAMS``; a sampled text is made to contain them before
            its tokens run out.
        avoid: words or phrases that no text contains, whole and in any case, however they are spelled in tokens.
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
    start_with: str = ""
    must_hold: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Number W of hypotheses per input during the search."""
        if self.allots_beams:
            return max(self.num_beams, MIN_CONSTRAINED_BEAMS)
        return self.num_return if self.sample else self.num_beams

    @property
    def allots_beams(self) -> bool:
        """True if the beams are shared out by what is missing of ``must_hold``."""
        return bool(self.must_hold) and not self.sample and self.ranking == "default"

    @property
    def constrains(self) -> bool:
        """True if a text must hold or avoid something."""
        return bool(self.must_hold or self.avoid)

    def __post_init__(self) -> None:
        def require(valid: bool, option: str, advice: str) -> None:
            if not valid:
                raise InputError(f"generate: {option}={getattr(self, option)}: {advice}")

        require_types(GenerateOptions, vars(self), "generate")
        for option in ("must_hold", "avoid"):  # a list of a recipe; frozen, as all options are
            phrases = (phrase.strip() for phrase in getattr(self, option))
            object.__setattr__(self, option, tuple(dict.fromkeys(phrases)))
        require_phrases(self.start_with, self.must_hold, self.avoid)
        for option, name in (("max_new_tokens", "tokens"), ("num_beams", "beams"), ("num_return", "beams")):
            require(getattr(self, option) >= 1, option, "must be at least 1")
            raised = f"the limit is {limit(name):,.0f}; raise it by MMPREFIX_MAX_{name.upper()}"
            require(getattr(self, option) <= limit(name), option, raised)
        require(isfinite(self.length_penalty), "length_penalty", "must be a finite number")
        require(self.seed is None or abs(self.seed) < 1 << 63, "seed", "must have at most 63 bits")
        for option in ("min_new_tokens", "no_repeat_ngram_size"):
            require(getattr(self, option) >= 0, option, "must be at least 0")
        most = self.max_new_tokens
        require(self.min_new_tokens <= most, "min_new_tokens", f"must be at most max_new_tokens={most}")
        require(
            not (self.sample and self.num_beams > 1),
            "num_beams",
            "sample=True draws texts without beams; use num_beams=1",
        )
        most = self.num_return if self.sample else self.num_beams
        require(self.num_return <= most, "num_return", f"num_beams={self.num_beams} gives fewer texts; raise num_beams")
        require(self.temperature > 0, "temperature", "must be above 0; for the likeliest tokens leave sample=False")
        require(
            self.temperature == 1 or self.sample or self.num_beams > 1,
            "temperature",
            "has no effect in greedy search; set sample=True or num_beams",
        )
        require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        require(self.top_p == 1 or self.sample, "top_p", "is for sampling only; set sample=True")
        require(self.seed is None or self.sample, "seed", "is for sampling only; set sample=True")
        require(self.ranking in ("default", "clipcap"), "ranking", "must be 'default' or 'clipcap'")
        require(
            self.ranking == "default" or self.num_beams > 1, "ranking", "is for beam search only; set num_beams above 1"
        )
