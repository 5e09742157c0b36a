"""Spoken language understanding as SLURP scores it: SLU-F1 of Bastianelli et al. 2020.

Source: https://aclanthology.org/2020.emnlp-main.588, and what its published scorer does where the paper is silent.
Scenario, action and intent are labels. A slot is exactly right (span), or right by a distance: a predicted slot takes
the nearest gold slot of its type that is left, the first of equals; that is one true positive, and the distance is
added to the false positives and to the false negatives. The distance is the edits of words a word of the gold, which
may exceed 1, or of characters a character of the longer filler. SLU-F1 adds the counts of both. A recording without
prediction is not scored unless asked for, so name that count wherever figures are printed.
"""

# pyright: reportUnnecessaryIsInstance=false
# what a user passes is checked, whatever the hints say
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mmprefix.errors import InputError
from mmprefix.metrics.edit_distance import char_distance, word_distance
from mmprefix.metrics.f1 import LabelCounts, ratio
from mmprefix.metrics.slurp_records import Frame, matched, read_frame

INTENTS = ("scenario", "action", "intent")
NAMES = (*INTENTS, "span", "word", "char", "slu")
"""What is scored by precision, recall and F1."""

Slot = tuple[str, str]
Pair = tuple[Frame, Frame | None]  # a gold frame and its prediction


def slu(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    *,
    per_label: bool = False,
    count_missing: bool = False,
    ignore_case: bool = False,
) -> dict[str, Any]:
    """Scores of understanding; a record of either side is SLURP's or ours, see ``mmprefix.metrics.slurp_records``.

    Records are matched by ``id``, ``file`` or ``slurp_id``, whichever all have. SLURP's gold fillers are lower-cased,
    predicted ones are not; ``ignore_case`` lower-cases all. ``count_missing`` scores a gold record that has no
    prediction as a prediction of nothing.

    Returns:
        scenario_f1, action_f1, intent_f1 (each where all of the gold has it), span_f1, word_f1, char_f1, slu_f1, and
            likewise ``_precision`` and ``_recall``: over the counts of all labels together (micro).
        intent_accuracy: how many intents are right. frame_accuracy: intent and slots all right. slot_accuracy: the
            mean of per_slot_accuracy: type → how many records have the right values of it, none being a value.
        gold, scored, missing, foreign: gold records, those of them that are scored, those that have no prediction, and
            predictions without gold, which are ignored. unknown_slot_types: type → how many predicted slots of a type
            that occurs in no gold (false positives). matched_by, left_out: the key, and what could not be scored.
        with ``per_label`` also tables: measure → label → precision, recall, f1, tp, fp, fn; micro: measure → the same
            of all labels together; macro: measure → the means of precision, recall and f1 over all labels.

    Raises:
        InputError: nothing to score, a record of another form, a name that comes twice, nothing to match by.
    """
    predicted = [read_frame(record, f"prediction {at}") for at, record in _numbered(predictions, "predictions")]
    gold = [read_frame(record, f"reference {at}", gold=True) for at, record in _numbered(references, "references")]
    return score(predicted, gold, per_label=per_label, count_missing=count_missing, ignore_case=ignore_case)


def score(
    predictions: Sequence[Frame],
    gold: Sequence[Frame],
    *,
    per_label: bool = False,
    count_missing: bool = False,
    ignore_case: bool = False,
) -> dict[str, Any]:
    """Scores as those of ``slu``, from frames instead of records."""
    if not predictions or not gold:
        raise InputError(f"no {'references' if predictions else 'predictions'}: there is nothing to score")
    if ignore_case:
        predictions, gold = [frame.lower() for frame in predictions], [frame.lower() for frame in gold]
    _same(gold)
    kind, predicted, wanted = matched(predictions, gold)
    pairs = [(frame, predicted.get(name)) for name, frame in wanted.items() if count_missing or name in predicted]
    tables = _tables(pairs)
    micro = {name: table.micro().row for name, table in tables.items()}
    figures = ("f1", "precision", "recall")
    scores: dict[str, Any] = {f"{name}_{figure}": micro[name][figure] for figure in figures for name in tables}
    if "intent" in tables:
        scores["intent_accuracy"] = micro["intent"]["recall"]
    types = {slot for frame in gold for slot, _ in frame.slots}
    scores |= _accuracies(pairs, types)
    scores |= {"matched_by": kind, "gold": len(wanted), "scored": len(pairs)}
    scores |= {"missing": len(wanted.keys() - predicted.keys()), "foreign": len(predicted.keys() - wanted.keys())}
    unknown = Counter(slot for _, ours in pairs if ours for slot, _ in ours.slots if slot not in types)
    scores |= {"unknown_slot_types": dict(unknown.most_common()), "left_out": [n for n in NAMES if n not in tables]}
    if per_label:
        scores |= {"micro": micro, "macro": {name: table.macro() for name, table in tables.items()}}
        scores["tables"] = {name: {key: table[key].row for key in sorted(table)} for name, table in tables.items()}
    return scores


def _numbered(records: Any, name: str) -> Iterable[tuple[int, Any]]:
    if isinstance(records, str | Mapping) or not isinstance(records, Sequence):
        raise InputError(f"{name} must be a list of records, not {type(records).__name__}")
    return enumerate(records)


def _same(gold: Sequence[Frame]) -> None:
    """Refuse a gold that says the intents of some records only."""
    without = [frame.place for frame in gold if frame.name is None]
    if 0 < len(without) < len(gold):
        raise InputError(f"{without[0]}: no intent, which other records of the gold have")


def _tables(pairs: Sequence[Pair]) -> dict[str, LabelCounts]:
    tables: dict[str, LabelCounts] = {}
    if all(gold.joined is not None for gold, _ in pairs):
        halves = _halves(gold for gold, _ in pairs)
        labels = [_scenario_and_action(gold, ours, halves) if ours else (None, None) for gold, ours in pairs]
        tables["scenario"] = _labelled(
            (gold.scenario, ours) for (gold, _), (ours, _) in zip(pairs, labels, strict=True)
        )
        tables["action"] = _labelled((gold.action, ours) for (gold, _), (_, ours) in zip(pairs, labels, strict=True))
    if all(gold.name is not None for gold, _ in pairs):
        tables["intent"] = _labelled(_intents(gold, ours) for gold, ours in pairs)
    slots = [(gold.slots, ours.slots if ours else ()) for gold, ours in pairs]
    for name, distance in (("span", None), ("word", word_distance), ("char", char_distance)):
        tables[name] = _slotted(slots, distance)
    tables["slu"] = LabelCounts()
    for name in ("word", "char"):
        for label, counts in tables[name].items():
            tables["slu"].add(label, counts.tp, counts.fp, counts.fn)
    return tables


# ----------------------------------------------------------------------------------------------------------- intents


def _intents(gold: Frame, ours: Frame | None) -> tuple[str | None, str | None]:
    """Gold and predicted intent: scenario_action on both sides where the prediction has these, else its own intent."""
    if ours is None:
        return gold.name, None
    if ours.intent is None:
        return gold.joined or gold.intent, ours.joined
    return gold.name, ours.intent


def _halves(gold: Iterable[Frame]) -> dict[str | None, tuple[str | None, str | None]]:
    """Intent → the scenario and action that come first with it in the gold."""
    halves: dict[str | None, tuple[str | None, str | None]] = {}
    for frame in gold:
        halves.setdefault(frame.name, (frame.scenario, frame.action))
    return halves


def _scenario_and_action(
    gold: Frame, ours: Frame, halves: Mapping[str | None, tuple[str | None, str | None]]
) -> tuple[str | None, str | None]:
    """Predicted scenario and action; of an intent alone those of the gold, or its words before and after "_"."""
    if ours.joined is not None or ours.intent is None:
        return ours.scenario, ours.action
    if ours.intent == gold.name:
        return gold.scenario, gold.action
    scenario, _, action = ours.intent.partition("_")
    return halves.get(ours.intent, (scenario, action))


def _labelled(pairs: Iterable[tuple[str | None, str | None]]) -> LabelCounts:
    table = LabelCounts()
    for gold, ours in pairs:
        right = float(gold == ours)
        table.add(str(gold), tp=right, fn=1 - right)
        if ours is not None and not right:
            table.add(ours, fp=1)
    return table


# ------------------------------------------------------------------------------------------------------------- slots


def _slotted(
    pairs: Iterable[tuple[Sequence[Slot], Sequence[Slot]]], distance: Callable[[str, str], float] | None
) -> LabelCounts:
    """Counts of gold and predicted slots; without ``distance`` a slot is right when its filler is equal."""
    table = LabelCounts()
    for gold, ours in pairs:
        left = list(gold)
        for kind, filler in ours:
            match = _exact((kind, filler), left) if distance is None else _nearest((kind, filler), left, distance)
            if match is None:
                table.add(kind, fp=1)
                continue
            at, far = match
            del left[at]
            table.add(kind, 1, far, far)
        for kind, _ in left:
            table.add(kind, fn=1)
    return table


def _exact(slot: Slot, left: Sequence[Slot]) -> tuple[int, float] | None:
    return (left.index(slot), 0.0) if slot in left else None


def _nearest(slot: Slot, left: Sequence[Slot], distance: Callable[[str, str], float]) -> tuple[int, float] | None:
    """Index and distance of the nearest slot of the same type, None where there is none."""
    kind, filler = slot
    far = {at: distance(filler, other) for at, (type_, other) in enumerate(left) if type_ == kind}
    return min(far.items(), key=lambda pair: pair[1]) if far else None


def _accuracies(pairs: Sequence[Pair], types: Iterable[str]) -> dict[str, Any]:
    wrong: Counter[str] = Counter()
    right = 0
    for gold, ours in pairs:
        want, have = _values(gold), _values(ours) if ours else {}
        off = [kind for kind in want.keys() | have.keys() if want.get(kind) != have.get(kind)]
        wrong.update(off)
        theirs, named = _intents(gold, ours)
        right += (theirs == named or theirs is None) and not off
    slots = {kind: 1 - wrong[kind] / len(pairs) for kind in sorted(types)}
    return {
        "slot_accuracy": ratio(sum(slots.values()), len(slots)),
        "frame_accuracy": right / len(pairs),
        "per_slot_accuracy": slots,
    }


def _values(frame: Frame) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for kind, value in frame.slots:
        values.setdefault(kind, []).append(value)
    return {kind: sorted(several) for kind, several in values.items()}
