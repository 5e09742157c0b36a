"""Beam search for phrases against brute force: the best of all texts up to a length that hold and avoid them."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from mmprefix.decoders.word_level import END, WordDecoder
from mmprefix.generation.constrained_beams import _share_out
from mmprefix.generation.options import GenerateOptions
from mmprefix.kv_cache.state import State
from tiny.decoders import ragged_prefix, save_decoder

WORDS, MOST, EVERY = ["a", "red", "car"], 5, 400  # words, most tokens of a text, more beams than there are texts
PHRASES: list[dict[str, Any]] = [
    {"must_hold": ["car"]},
    {"must_hold": ["red car", "a"]},
    {"must_hold": ["a red"], "avoid": ["car"]},
    {"must_hold": ["red red", "car"], "avoid": ["a", "car car"]},
    {"must_hold": ["red"], "avoid": ["red a"], "start_with": "car"},
]


@dataclass(frozen=True)
class Tiny:
    """A decoder of three words, what it has read, and every text that it can write with its log-probability."""

    decoder: WordDecoder
    state: State
    texts: list[list[int]]
    scores: list[float]

    def best(self, count: int, penalty: float, phrases: dict[str, Any]) -> list[tuple[str, float]]:
        """The ``count`` best texts that hold and avoid ``phrases``, by their log-probability over length ** penalty."""
        rows = [
            (text, score / len(ids) ** penalty)
            for ids, score in zip(self.texts, self.scores, strict=True)
            if is_allowed(text := self.decoder.codec.decode(ids), **phrases)
        ]
        return sorted(rows, key=lambda row: -row[1])[:count]


def is_allowed(text: str, must_hold: list[str], avoid: tuple[str, ...] | list[str] = (), start_with: str = "") -> bool:
    """Written without the library, for texts of whole words with one space between them."""
    holds = all(re.search(rf"\b{phrase}\b", text) for phrase in must_hold)
    return holds and text.startswith(start_with) and not any(re.search(rf"\b{phrase}\b", text) for phrase in avoid)


@pytest.fixture(scope="module", params=[1, 2, 3])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    torch.manual_seed(request.param)
    decoder = WordDecoder(save_decoder(tmp_path_factory.mktemp("words"), seed=request.param), [*WORDS, END])
    state = decoder.append(decoder.prefill(ragged_prefix(decoder, [3])), [""])
    words = range(len(WORDS))
    ended = [[*ids, len(WORDS)] for n in range(MOST) for ids in itertools.product(words, repeat=n)]
    texts = ended + [list(ids) for ids in itertools.product(words, repeat=MOST)]
    assert len(texts) < EVERY
    return Tiny(decoder, state, texts, (-decoder.token_loss(state, [texts]).nll.detach()).tolist())


@pytest.mark.parametrize("phrases", PHRASES, ids=str)
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_that_is_wide_enough_finds_the_best_of_all_texts(
    tiny: Tiny, penalty: float, phrases: dict[str, Any]
) -> None:
    expected = tiny.best(5, penalty, phrases)
    options = GenerateOptions(
        max_new_tokens=MOST, num_beams=EVERY, num_return=len(expected), length_penalty=penalty, **phrases
    )
    (rows,) = tiny.decoder.generate_from(tiny.state, options)
    assert [row.score for row in rows] == pytest.approx([score for _, score in expected], abs=1e-3)
    assert [row.text for row in rows] == [text for text, _ in expected]


@pytest.mark.parametrize("phrases", PHRASES, ids=str)
@pytest.mark.parametrize("beams", [2, 4, 16])
def test_a_narrow_beam_holds_and_avoids_and_scores_as_the_decoder_does(
    tiny: Tiny, beams: int, phrases: dict[str, Any]
) -> None:
    scores = {
        tiny.decoder.codec.decode(ids): score / len(ids) for ids, score in zip(tiny.texts, tiny.scores, strict=True)
    }
    options = GenerateOptions(max_new_tokens=MOST, num_beams=beams, length_penalty=1.0, **phrases)
    ((best, *_),) = tiny.decoder.generate_from(tiny.state, options)
    assert is_allowed(best.text, **phrases)
    assert best.score <= tiny.best(1, 1.0, phrases)[0][1] + 1e-3
    assert best.score == pytest.approx(scores[best.text], abs=1e-3)


def test_the_beams_are_shared_out_among_the_banks_in_turns() -> None:
    done = [(-1.0, 0, 0), (-2.0, 0, 1), (-3.0, 0, 2)]
    near = [(-8.0, 1, 0), (-9.0, 1, 1)]
    assert _share_out([done, [], near], 3) == [done[0], done[1], near[0]]
    assert _share_out([done, [], near], 9) == [*done, *near]
    assert _share_out([[], []], 3) == []
