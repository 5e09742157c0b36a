"""Timestamps: the rules of Transformers' WhisperTimeStampLogitsProcessor, and the segments of its long-form loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import WhisperForConditionalGeneration, WhisperTimeStampLogitsProcessor

from mmprefix.generation.timestamps import TimestampRules, finished_part

WORDS, END, SILENT, STAMPS = 12, 12, 15, 30  # words below 12, end of text, others, <|notimestamps|>, timestamps
FIRST, VOCABULARY = SILENT + 1, SILENT + 1 + STAMPS


def by_transformers(scores: Tensor, hypotheses: Tensor, latest_start: int | None) -> Tensor:
    """Scores (B W V) after Transformers' processor; it looks at tokens behind a start token."""
    config: Any = SimpleNamespace(
        no_timestamps_token_id=SILENT, eos_token_id=END, bos_token_id=END, max_initial_timestamp_index=latest_start
    )
    rows = hypotheses.flatten(0, 1)
    ids: Any = torch.cat([torch.zeros(len(rows), 1, dtype=torch.long), rows], dim=1)
    processor: Any = WhisperTimeStampLogitsProcessor(config, begin_index=1)
    return processor(ids, scores.flatten(0, 1)).log_softmax(-1).view_as(scores)


@pytest.mark.parametrize("latest_start", [None, 4])
def test_the_rules_are_those_of_transformers(latest_start: int | None) -> None:
    """Twelve steps of forty hypotheses, drawn by what the rules leave: timestamps begin, pair and end them."""
    rules, generator = TimestampRules(FIRST, END, latest_start), torch.Generator().manual_seed(0)
    hypotheses = torch.zeros(8, 5, 0, dtype=torch.long)
    written = 0
    for _ in range(12):
        scores = torch.randn(8, 5, VOCABULARY, generator=generator) * 3
        expected = by_transformers(scores, hypotheses, latest_start)
        actual = rules(scores.log_softmax(-1), hypotheses)
        assert torch.equal(actual.isinf(), expected.isinf())
        assert_close(actual, expected, atol=1e-5, rtol=1e-5)
        tokens = torch.multinomial(actual.exp().flatten(0, 1), 1, generator=generator).view(8, 5, 1)
        written += int((tokens >= FIRST).sum())
        hypotheses = torch.cat([hypotheses, tokens], dim=-1)
    assert 100 < written < 400  # neither all timestamps nor all words
    assert bool((hypotheses[..., 0] >= FIRST).all())


def segments_of_transformers(ids: list[int], frames: int) -> tuple[list[int], int]:
    """Words of all segments, and the frames to move on by, as Transformers' long-form loop takes them."""
    segments, offset = WhisperForConditionalGeneration._retrieve_segment(
        seek_sequence=torch.tensor(ids), seek_outputs=[{}], time_offset=torch.zeros(1), timestamp_begin=FIRST,
        seek_num_frames=torch.tensor([frames]), time_precision=0.02, time_precision_features=0.01, input_stride=2,
        prev_idx=0, idx=0, return_token_timestamps=False, decoder_input_ids=torch.zeros(1, 3),
    )  # fmt: skip
    tokens: list[int] = torch.cat([segment["tokens"] for segment in segments]).tolist()
    return [number for number in tokens if number < FIRST], int(offset)


def test_the_next_window_begins_where_that_of_transformers_does() -> None:
    cases = {
        "one sentence, ended": [16, 1, 2, 20],
        "two sentences, ended": [16, 1, 20, 20, 2, 24],
        "cut in the second sentence": [16, 1, 20, 21, 2, 3],
        "cut behind a pair": [16, 1, 20, 20],
        "cut in the third": [16, 1, 20, 20, 2, 24, 25, 3, 4],
        "no second timestamp": [16, 1, 2, 3],
        "words alone": [1, 2],
        "a timestamp alone": [16],
        "nothing": [16, 17],
    }
    moved = 0
    for name, ids in cases.items():
        words, offset = segments_of_transformers(ids, 60)
        kept, timestamp = finished_part(ids, FIRST)
        assert [number for number in kept if number < FIRST] == words, name
        assert (60 if timestamp is None else 2 * timestamp) == offset, name
        moved += timestamp is not None
    assert moved == 4
