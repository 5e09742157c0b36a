"""Caption scores against recorded ones, against pycocoevalcap, and against properties of each measure."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mmprefix import metrics
from mmprefix.errors import InputError
from mmprefix.metrics.caption import NAMES, caption
from mmprefix.metrics.rouge import common_length
from tiny.caption_sets import COCO, assert_same_scores, random_set, recorded_set, scores_of


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return recorded_set()


def test_recorded_white_space(recorded: dict[str, Any]) -> None:
    assert_same_scores(scores_of(recorded["items"], "none"), recorded["whitespace_raw"])


def test_recorded_tokens(recorded: dict[str, Any]) -> None:
    assert_same_scores(scores_of(recorded["items"], "none", "_tokens"), recorded["ptb"])


def test_recorded_text_with_our_tokeniser(recorded: dict[str, Any]) -> None:
    assert_same_scores(scores_of(recorded["items"], "ptb"), recorded["ptb"])


def test_recorded_scores_of_the_first_ten(recorded: dict[str, Any]) -> None:
    assert_same_scores(scores_of(recorded["items"][:10], "ptb"), recorded["first_ten_only_ptb"])


def test_pycocoevalcap_gives_the_same_on_random_tokens() -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    rng = random.Random(3)
    for _ in range(40):
        predictions, references = random_set(rng, rng.randrange(2, 30))
        theirs = dict(enumerate(references)), {index: [text] for index, text in enumerate(predictions)}
        bleu_all, bleu_items = bleu.Bleu(4).compute_score(*theirs, verbose=0)
        rouge_all, rouge_items = rouge.Rouge().compute_score(*theirs)
        cider_all, cider_items = cider.Cider().compute_score(*theirs)
        corpus = dict(zip(COCO, [*bleu_all, rouge_all, cider_all], strict=True))
        items = dict(zip(COCO, [*bleu_items, list(rouge_items), list(cider_items)], strict=True))
        assert_same_scores(
            caption(predictions, references, "none", True), {"per_item": items, "corpus": corpus}, tolerance=1e-10
        )


def test_the_common_length_equals_a_table_of_lcs() -> None:
    rng = random.Random(5)
    for _ in range(200):
        first, second = ([rng.choice("abcd") for _ in range(rng.randrange(90))] for _ in range(2))
        row = [0] * (len(second) + 1)
        for token in first:
            last = row[:]
            for index, other in enumerate(second):
                row[index + 1] = last[index] + 1 if token == other else max(last[index + 1], row[index])
        assert common_length(first, second) == row[-1]


def test_perfect_captions_have_the_best_scores() -> None:
    texts = [f"item {index} holds a very special thing number {index}" for index in range(5)]
    scores = caption(texts, [[text] for text in texts])
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "distinct", "exact_match"):
        assert scores[name] == pytest.approx(1, abs=1e-8)
    assert scores["cider_d"] == pytest.approx(10)


def test_order_of_items_and_references_does_not_count() -> None:
    predictions, references = random_set(random.Random(8), 30)
    turned = caption(predictions[::-1], [texts[::-1] for texts in references[::-1]], "none")
    assert turned == pytest.approx(caption(predictions, references, "none"), abs=1e-12)


def test_diversity_length_and_exact_match() -> None:
    predictions = ["A dog.", "a dog", "a cat sat"]
    references = [["a  DOG!"], ["the dog"], ["x", "a cat sat."]]
    scores = caption(predictions, references, per_item=True)
    assert scores["distinct"] == pytest.approx(2 / 3)
    assert scores["distinct_1"] == pytest.approx(4 / 7)
    assert scores["distinct_2"] == pytest.approx(3 / 4)
    assert scores["length"] == pytest.approx(7 / 3)
    assert scores["items"]["exact_match"] == [1, 0, 1]
    assert caption(predictions, references, "none")["exact_match"] == 0


def test_empty_predictions_score_zero() -> None:
    scores = caption(["", "...", "a dog runs"], [["a dog"], ["a cat", "b"], ["a dog runs"]], per_item=True)
    for name in (*COCO, "length"):
        assert scores["items"][name][:2] == [0, 0], name
    assert all(math.isfinite(scores[name]) for name in NAMES)
    assert caption(["", ""], [["a"], ["..."]])["distinct_1"] == 0


def test_names_and_lists() -> None:
    scores = caption(["a dog", "b"], [["a dog"], ["c"]], per_item=True)
    assert tuple(scores) == (*NAMES, "items")
    assert set(scores["items"]) == {*COCO, "length", "exact_match"}
    assert all(len(values) == 2 for values in scores["items"].values())
    assert "items" not in caption(["a dog"], [["a dog"]])


@pytest.mark.parametrize(
    ("predictions", "references", "options", "message"),
    [
        (["a"], [["a"], ["b"]], {}, "1 predictions but 2"),
        ([], [], {}, "nothing to score"),
        (["a", "b"], [["a"], []], {}, "item 1 ('b') has no references"),
        (["a"], ["a"], {}, "references is one string"),
        ([None], [["a"]], {}, "item 0: the prediction is NoneType"),
        (["a"], [[3]], {}, "item 0: a reference is int"),
        (["a"], [["a"]], {"tokenize": "bert"}, "use one of ptb, none"),
        (["a"], [["a"]], {"extra": ["bertscore"]}, "use any of meteor"),
    ],
)
def test_bad_input_is_named(predictions: list, references: list, options: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        caption(predictions, references, **options)
    assert message in str(error.value)


def test_five_thousand_captions_take_seconds() -> None:
    rng = random.Random(9)
    words = [f"word{int(rng.paretovariate(0.7))}" for _ in range(20000)]
    references = [[" ".join(rng.choices(words, k=11)) + "." for _ in range(5)] for _ in range(5000)]
    predictions = [rng.choice(texts) for texts in references]
    start = time.process_time()
    caption(predictions, references)
    assert time.process_time() - start < 60  # 1.2 s measured; pairs of all captions would take an hour


def test_metrics_load_no_torch() -> None:
    code = "import sys, mmprefix.metrics, mmprefix.cli.evaluate; assert 'torch' not in sys.modules"
    code += "; mmprefix.metrics.caption"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
    assert metrics.caption is caption
    with pytest.raises(AttributeError, match="capton"):
        metrics.capton  # noqa: B018 # pyright: ignore
