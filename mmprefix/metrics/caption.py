"""Caption metrics: BLEU, ROUGE-L, CIDEr-D, and diversity as a sign of collapse, without Java and without torch.

Definitions are those of the COCO caption evaluation (https://arxiv.org/abs/1504.00325); each metric has its own file.
Scores depend on the tokeniser: name it wherever they are printed.
"""

# pyright: reportUnnecessaryIsInstance=false
# arguments of users are checked, whatever the type hints say
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

from mmprefix.errors import InputError
from mmprefix.metrics.bleu import bleu
from mmprefix.metrics.cider import cider_d
from mmprefix.metrics.fense import FenseModels, fense
from mmprefix.metrics.meteor_spice import NotAvailable, meteor, spice
from mmprefix.metrics.ngrams import Tokens, count_ngrams, distinct
from mmprefix.metrics.ptb_tokenizer import TOKENIZERS
from mmprefix.metrics.rouge import rouge_l
from mmprefix.metrics.sentence_encoder import SentenceEncoder, sentence_similarity

NAMES = (
    *("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"),
    *("distinct_1", "distinct_2", "distinct", "length", "exact_match"),
)
"""Metrics that ``caption`` always computes."""

EXTRA = ("meteor", "spice", "spider", "sbert_sim", "fense")
"""Metrics that ``caption`` computes on demand, through ``mmprefix[metrics]``, Java or local models."""


def _require_scorable(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise InputError for inputs that cannot be scored, naming the first wrong item (items count from 0)."""
    if len(predictions) != len(references):
        raise InputError(f"{len(predictions)} predictions but {len(references)} lists of references: one list each")
    if not predictions:
        raise InputError("no predictions: there is nothing to score")
    for index, (prediction, texts) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(prediction, str):
            raise InputError(f"item {index}: the prediction is {type(prediction).__name__}, not a string")
        if isinstance(texts, str):
            raise InputError(f"item {index}: references is one string; it must be a list of strings")
        if not texts:
            raise InputError(f"item {index} ({prediction!r}) has no references: give at least one")
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"item {index}: a reference is {type(text).__name__}, not a string")


def _basic_scores(
    predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Scores of ``NAMES``: of the set, and, for those that an item has by itself, a list over the items."""
    counts = count_ngrams(
        [_split_again(tokens) for tokens in predictions],
        [[_split_again(tokens) for tokens in texts] for texts in references],
    )
    bleu_corpus, bleu_items = bleu(counts)
    items = {f"bleu_{order + 1}": values for order, values in enumerate(bleu_items)}
    items["rouge_l"] = [rouge_l(*pair) for pair in zip(predictions, references, strict=True)]
    items["cider_d"] = cider_d(counts)
    items["length"] = [float(len(tokens)) for tokens in predictions]
    items["exact_match"] = [
        float(any(list(tokens) == list(text) for text in texts))
        for tokens, texts in zip(predictions, references, strict=True)
    ]
    scores = {name: _mean(values) for name, values in items.items()}
    scores |= {f"bleu_{order + 1}": bleu_corpus[order] for order in range(4)}
    scores["distinct_1"] = distinct(counts, 1)
    scores["distinct_2"] = distinct(counts, 2)
    scores["distinct"] = len({tuple(tokens) for tokens in predictions}) / len(predictions)
    return {name: scores[name] for name in NAMES}, items


def _split_again(tokens: Tokens) -> Tokens:
    """Tokens of COCO's n-gram metrics, which split at the no-break space of ``1 1/2``; ROUGE-L does not."""
    return " ".join(tokens).split()


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def _extra_scores(
    extra: Sequence[str],
    texts: tuple[Sequence[str], Sequence[Sequence[str]]],
    tokens: tuple[Sequence[Tokens], Sequence[Sequence[Tokens]]],
    *,
    cider: Sequence[float],
    models: FenseModels | None,
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Scores of the metrics named in ``extra``: of the set, and a list over the items."""
    corpus: dict[str, float] = {}
    items: dict[str, list[float]] = {}
    for name in dict.fromkeys(extra):
        if name == "meteor":
            corpus[name], items[name] = meteor(*tokens)
            continue
        if name in ("spice", "spider"):
            if "spice" not in items:
                items["spice"] = spice(*tokens)[1]
            if name == "spider":
                items[name] = [(a + b) / 2 for a, b in zip(cider, items["spice"], strict=True)]
        elif models is None:
            option = "--sentence-encoder, in Python FenseModels"
            raise NotAvailable(f"{name} is not available: name the folders of its models ({option})")
        elif name == "sbert_sim":
            items[name] = sentence_similarity(*texts, SentenceEncoder(models.sentences))
        else:
            items[name] = fense(*texts, models)
        corpus |= {key: _mean(scores) for key, scores in items.items() if key not in corpus}
    return corpus, items


@overload
def caption(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenize: Literal["ptb", "none"] = ...,
    per_item: Literal[False] = ...,
    *,
    extra: Sequence[str] = ...,
    models: FenseModels | None = ...,
) -> dict[str, float]: ...


@overload
def caption(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenize: str = ...,
    per_item: bool = ...,
    *,
    extra: Sequence[str] = ...,
    models: FenseModels | None = ...,
) -> dict[str, Any]: ...


def caption(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenize: str = "ptb",
    per_item: bool = False,
    *,
    extra: Sequence[str] = (),
    models: FenseModels | None = None,
) -> dict[str, Any]:
    """Score captions, each against one or more references.

    Args:
        predictions: one text per item; it may be empty.
        references: one or more texts per item; the number may differ between items.
        tokenize: ``"ptb"``, the COCO evaluation's tokens (``mmprefix.metrics.ptb_tokenizer``), or ``"none"``: split at
            white space.
        per_item: also return ``"items"``, a dict of lists in the order of the predictions.
        extra: metrics of ``EXTRA`` to add; see ``mmprefix.metrics.meteor_spice`` and ``mmprefix.metrics.fense``.
        models: folders of FENSE's models.

    Returns:
        ``bleu_1`` to ``bleu_4``, ``rouge_l``, ``cider_d`` (0 to 10; it depends on the set, and is 0 for a set of one,
        where it says nothing: ``mmprefix.metrics.caveats``); ``distinct_1``, ``distinct_2`` (different n-grams /
        n-grams of all predictions), ``distinct`` (share of different captions), ``length`` (mean number of tokens),
        ``exact_match`` (share of predictions whose tokens equal those of a reference: with ``"ptb"``, case and
        punctuation do not count). ``distinct*`` has no list.

    Raises:
        InputError: lists of different lengths, no item, an item without references, an unknown name.
        NotAvailable: (an InputError) a metric of ``extra`` cannot be computed on this machine; says what it needs.
    """
    if tokenize not in TOKENIZERS:
        raise InputError(f"tokenize={tokenize!r} is no tokeniser; use one of {', '.join(TOKENIZERS)}")
    unknown = [name for name in extra if name not in EXTRA]
    if unknown:
        raise InputError(f"extra={unknown[0]!r} is no metric; use any of {', '.join(EXTRA)}")
    _require_scorable(predictions, references)
    words = _TokenizedTexts(TOKENIZERS[tokenize])
    tokens = [words[text] for text in predictions], [[words[text] for text in texts] for texts in references]
    result: dict[str, Any]
    result, items = _basic_scores(*tokens)
    if extra:
        texts = predictions, references
        more, more_items = _extra_scores(extra, texts, tokens, cider=items["cider_d"], models=models)
        result |= more
        items |= more_items
    return {**result, "items": items} if per_item else result


class _TokenizedTexts(dict[str, list[str]]):
    """Text → tokens; each different text is tokenised once."""

    def __init__(self, tokenizer: Callable[[str], list[str]]) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, text: str) -> list[str]:
        self[text] = self._tokenizer(text)
        return self[text]
