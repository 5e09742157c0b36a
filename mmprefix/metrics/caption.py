"""Quality of a set of captions: BLEU, ROUGE-L, CIDEr-D and signs of collapse, without Java and without torch.

Definitions are those of the COCO caption evaluation (https://arxiv.org/abs/1504.00325); each measure has its own file.
Figures depend on the tokeniser: name it wherever they are printed.
"""

# pyright: reportUnnecessaryIsInstance=false
# arguments are checked at run time: a user may pass anything
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

from mmprefix.errors import InputError
from mmprefix.metrics.bleu import bleu
from mmprefix.metrics.cider import cider_d
from mmprefix.metrics.fense import FenseModels, fense, sentence_similarity
from mmprefix.metrics.meteor_spice import NotAvailable, meteor, spice
from mmprefix.metrics.ngrams import Tokens, counted, distinct
from mmprefix.metrics.ptb_tokenizer import TOKENIZERS
from mmprefix.metrics.rouge import rouge_l

NAMES = (
    *("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"),
    *("distinct_1", "distinct_2", "distinct", "length", "exact_match"),
)
"""Measures that ``caption`` always computes."""

EXTRA = ("meteor", "spice", "spider", "sbert_sim", "fense")
"""Measures that ``caption`` computes on demand, through ``mmprefix[metrics]``, Java or local models."""


def _checked(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuse what cannot be scored, naming the first item at fault (items count from 0)."""
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


def _basic(
    predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """All measures of ``NAMES`` for the set; and, for those defined on one item, a list over items."""
    counts = counted(
        [_cut(tokens) for tokens in predictions], [[_cut(tokens) for tokens in texts] for texts in references]
    )
    bleu_all, bleu_items = bleu(counts)
    items = {f"bleu_{order + 1}": scores for order, scores in enumerate(bleu_items)}
    items["rouge_l"] = [rouge_l(*pair) for pair in zip(predictions, references, strict=True)]
    items["cider_d"] = cider_d(counts)
    items["length"] = [float(len(tokens)) for tokens in predictions]
    items["exact_match"] = [
        float(any(list(tokens) == list(text) for text in texts))
        for tokens, texts in zip(predictions, references, strict=True)
    ]
    figures = {name: _mean(scores) for name, scores in items.items()}
    figures |= {f"bleu_{order + 1}": bleu_all[order] for order in range(4)}
    figures["distinct_1"] = distinct(counts, 1)
    figures["distinct_2"] = distinct(counts, 2)
    figures["distinct"] = len({tuple(tokens) for tokens in predictions}) / len(predictions)
    return {name: figures[name] for name in NAMES}, items


def _cut(tokens: Tokens) -> Tokens:
    """Tokens as COCO's n-gram measures count them: they cut the no-break space of ``1 1/2``, ROUGE-L does not."""
    return " ".join(tokens).split()


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def _demanded(
    extra: Sequence[str],
    texts: tuple[Sequence[str], Sequence[Sequence[str]]],
    tokens: tuple[Sequence[Tokens], Sequence[Sequence[Tokens]]],
    cider: Sequence[float],
    models: FenseModels | None,
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The measures in ``extra``, for the set and for each item."""
    figures: dict[str, float] = {}
    items: dict[str, list[float]] = {}
    for name in dict.fromkeys(extra):
        if name == "meteor":
            figures[name], items[name] = meteor(*tokens)
            continue
        if name in ("spice", "spider"):
            if "spice" not in items:
                items["spice"] = spice(*tokens)[1]
            if name == "spider":
                items[name] = [(ours + other) / 2 for ours, other in zip(cider, items["spice"], strict=True)]
        elif models is None:
            raise NotAvailable(f"{name} is not available: name the folders of its models (FenseModels)")
        elif name == "sbert_sim":
            items[name] = sentence_similarity(*texts, models.sentences)
        else:
            items[name] = fense(*texts, models)
        figures |= {key: _mean(scores) for key, scores in items.items() if key not in figures}
    return figures, items


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
    """Scores of captions against one or more references each.

    Args:
        predictions: one text an item; it may be empty.
        references: for each item one or more texts, as many as there are.
        tokenize: ``"ptb"``, the COCO evaluation's words (``mmprefix.metrics.ptb_tokenizer``), or ``"none"``, spaces.
        per_item: also give ``"items"``, a dict of lists in the order of the predictions.
        extra: measures of ``EXTRA`` to add; see ``mmprefix.metrics.meteor_spice`` and ``mmprefix.metrics.fense``.
        models: local files of FENSE's models.

    Returns:
        ``bleu_1`` to ``bleu_4``, ``rouge_l``, ``cider_d`` (0 to 10; it depends on the set, and is 0 for a set of one);
        ``distinct_1``, ``distinct_2`` (different n-grams / n-grams of all predictions), ``distinct`` (share of
        different captions), ``length`` (mean number of tokens), ``exact_match`` (share of predictions whose tokens
        equal those of a reference: with ``"ptb"`` neither case nor punctuation counts). ``distinct*`` has no list.

    Raises:
        InputError: lists of different lengths, no item, an item without references, an unknown name.
        NotAvailable: (an InputError) a measure of ``extra`` cannot be computed here, and what it needs.
    """
    if tokenize not in TOKENIZERS:
        raise InputError(f"tokenize={tokenize!r} is no tokeniser; use one of {', '.join(TOKENIZERS)}")
    unknown = [name for name in extra if name not in EXTRA]
    if unknown:
        raise InputError(f"extra={unknown[0]!r} is no measure; use some of {', '.join(EXTRA)}")
    _checked(predictions, references)
    words = _Words(TOKENIZERS[tokenize])
    tokens = [words[text] for text in predictions], [[words[text] for text in texts] for texts in references]
    result: dict[str, Any]
    result, items = _basic(*tokens)
    if extra:
        figures, lists = _demanded(extra, (predictions, references), tokens, items["cider_d"], models)
        result |= figures
        items |= lists
    return {**result, "items": items} if per_item else result


class _Words(dict[str, list[str]]):
    """Tokens by text; each different text is tokenised once."""

    def __init__(self, tokenizer: Callable[[str], list[str]]) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, text: str) -> list[str]:
        self[text] = self._tokenizer(text)
        return self[text]
