"""Sets of captions to score: the recorded one, and random ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mmprefix.metrics.caption import caption

FIXTURE = Path(__file__).resolve().parents[3] / "shared" / "parity" / "caption_scores.json"
COCO = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")


def recorded_set() -> dict[str, Any]:
    """Recorded items and scores; skip the test if the file is missing."""
    if not FIXTURE.is_file():
        pytest.skip(f"no {FIXTURE}")
    return json.loads(FIXTURE.read_text(encoding="utf-8"))


def scores_of(items: list[dict[str, Any]], tokenize: str, suffix: str = "", extra: tuple[str, ...] = ()) -> dict:
    """Our scores of recorded items, also per item; ``suffix="_tokens"`` scores recorded tokens instead of texts."""
    references = "reference_tokens" if suffix else "references"
    return caption(
        [item["prediction" + suffix] for item in items],
        [item[references] for item in items],
        tokenize,
        True,
        extra=extra,
    )


def assert_same_scores(
    actual: dict[str, Any], expected: dict[str, Any], names: tuple[str, ...] = COCO, tolerance: float = 1e-9
) -> None:
    """Assert that scores of every item and of the corpus agree, for each of ``names``."""
    for name in names:
        assert actual["items"][name] == pytest.approx(expected["per_item"][name], abs=tolerance), name
        assert actual[name] == pytest.approx(expected["corpus"][name], abs=tolerance), name


def random_set(rng: random.Random, items: int) -> tuple[list[str], list[list[str]]]:
    """Random predictions (a few are empty) with one to five references each, over a small vocabulary."""
    words = [f"w{index}" for index in range(rng.choice([3, 12, 60]))]

    def text(least: int) -> str:
        return " ".join(rng.choice(words) for _ in range(rng.randrange(least, 15)))

    references = [[text(1) for _ in range(rng.randrange(1, 6))] for _ in range(items)]
    # A third of the predictions are a reference with a word changed, so that long n-grams match too.
    predictions = [
        rng.choice(texts) + rng.choice(["", " w0"]) if rng.random() < 0.3 else text(0) for texts in references
    ]
    return predictions, references
