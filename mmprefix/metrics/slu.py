"""Metrics of spoken language understanding as SLURP defines them: SLU-F1 of Bastianelli et al. 2020.

Source: https://aclanthology.org/2020.emnlp-main.588, and its published scorer where the paper is silent.
Scenario, action and intent are labels. A slot counts as right if it is equal (span), or by its distance: a predicted
slot is paired with the nearest unpaired gold slot of its type, the first on a tie. The pair is one true positive, and
its distance is added to the false positives and to the false negatives. The distance is word edits / words of the gold
filler, which may exceed 1, or character edits / characters of the longer filler. SLU-F1 adds the counts of both. A
recording without prediction is not scored by default, so print their number beside the scores.
"""

# pyright: reportUnnecessaryIsInstance=false
# arguments of users are checked, whatever the type hints say
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from mmprefix.errors import InputError
from mmprefix.metrics.edit_distance import char_distance, word_distance
from mmprefix.metrics.f1 import LabelCounts, ratio
from mmprefix.metrics.slurp_records import Frame, match_frames, read_frame

INTENTS = ("scenario", "action", "intent")
NAMES = (*INTENTS, "span", "word", "char", "slu")
"""Metrics with precision, recall and F1."""

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
    """Score predicted intents and slots; records are of SLURP's form or ours (``mmprefix.metrics.slurp_records``).

    Records are matched by ``id``, ``file`` or ``slurp_id``: the first that all records have. SLURP's gold fillers are
    lower-cased, predicted ones are not; ``ignore_case`` lower-cases all. ``count_missing`` scores a gold record
    without prediction as an empty prediction.

    Returns:
        scenario_f1, action_f1, intent_f1 (each if all gold records have it), span_f1, word_f1, char_f1, slu_f1, and
            likewise ``_precision`` and ``_recall``: micro averages, over the counts of all labels together.
        intent_accuracy: share of records with the right intent. frame_accuracy: share with the right intent and slots.
            per_slot_accuracy: type → share of records with the right values of that type, no value being one;
            slot_accuracy: its mean.
        gold, scored, missing, foreign: numbers of gold records, of those that are scored, of those without prediction,
            and of predictions without gold, which are ignored. unknown_slot_types: type → number of predicted slots of
            a type that no gold record has (false positives). matched_by: the key; left_out: metrics not computed.
        with ``per_label`` also tables: metric → label → precision, recall, f1, tp, fp, fn; micro: metric → these over
            all labels together; macro: metric → the means of precision, recall and f1 over all labels.

    Raises:
        InputError: nothing to score, a record of another form, a name that occurs twice, no key to match by.
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
    """Score frames that were read already; arguments, result and errors as for ``slu``."""
    if not predictions or not gold:
        raise InputError(f"no {'references' if predictions else 'predictions'}: there is nothing to score")
    if ignore_case:
        predictions, gold = [frame.lower() for frame in predictions], [frame.lower() for frame in gold]
    _require_intents_everywhere(gold)
    key, predicted, expected = match_frames(predictions, gold)
    pairs = [(frame, predicted.get(name)) for name, frame in expected.items() if count_missing or name in predicted]
    tables = _tables(pairs)
    micro = {name: table.micro().row for name, table in tables.items()}
    measures = ("f1", "precision", "recall")
    scores: dict[str, Any] = {f"{name}_{measure}": micro[name][measure] for measure in measures for name in tables}
    if "intent" in tables:
        scores["intent_accuracy"] = micro["intent"]["recall"]
    types = {slot for frame in gold for slot, _ in frame.slots}
    scores |= _accuracies(pairs, types)
    scores |= {"matched_by": key, "gold": len(expected), "scored": len(pairs)}
    scores |= {"missing": len(expected.keys() - predicted.keys()), "foreign": len(predicted.keys() - expected.keys())}
    unknown = Counter(slot for _, ours in pairs if ours for slot, _ in ours.slots if slot not in types)
    scores |= {"unknown_slot_types": dict(unknown.most_common()), "left_out": [n for n in NAMES if n not in tables]}
    if per_label:
        scores |= {"micro": micro, "macro": {name: table.macro() for name, table in tables.items()}}
        scores["tables"] = {
            name: {label: table[label].row for label in sorted(table)} for name, table in tables.items()
        }
    return scores


def _numbered(records: Any, name: str) -> Iterable[tuple[int, Any]]:
    if isinstance(records, str | Mapping) or not isinstance(records, Sequence):
        raise InputError(f"{name} must be a list of records, not {type(cast(object, records)).__name__}")
    return enumerate(cast(Sequence[Any], records))


def _require_intents_everywhere(gold: Sequence[Frame]) -> None:
    """Raise InputError if some gold records have an intent and others have none."""
    without = [frame.location for frame in gold if frame.name is None]
    if 0 < len(without) < len(gold):
        raise InputError(f"{without[0]}: no intent, but other records of the gold have one")


def _tables(pairs: Sequence[Pair]) -> dict[str, LabelCounts]:
    """Metric → counts by label; metrics whose labels the gold lacks are left out."""
    tables: dict[str, LabelCounts] = {}
    if all(gold.joined is not None for gold, _ in pairs):
        parts = _intent_parts(gold for gold, _ in pairs)
        labels = [_scenario_and_action(gold, ours, parts) if ours else (None, None) for gold, ours in pairs]
        tables["scenario"] = _count_labels(
            (gold.scenario, ours) for (gold, _), (ours, _) in zip(pairs, labels, strict=True)
        )
        tables["action"] = _count_labels(
            (gold.action, ours) for (gold, _), (_, ours) in zip(pairs, labels, strict=True)
        )
    if all(gold.name is not None for gold, _ in pairs):
        tables["intent"] = _count_labels(_intents(gold, ours) for gold, ours in pairs)
    slots = [(gold.slots, ours.slots if ours else ()) for gold, ours in pairs]
    for name, distance in (("span", None), ("word", word_distance), ("char", char_distance)):
        tables[name] = _count_slots(slots, distance)
    tables["slu"] = LabelCounts()
    for name in ("word", "char"):
        for label, counts in tables[name].items():
            tables["slu"].add(label, counts.tp, counts.fp, counts.fn)
    return tables


# ----------------------------------------------------------------------------------------------------------- intents


def _intents(gold: Frame, ours: Frame | None) -> tuple[str | None, str | None]:
    """Gold and predicted intent: scenario_action on both sides if the prediction has both, else its own intent."""
    if ours is None:
        return gold.name, None
    if ours.intent is None:
        return gold.joined or gold.intent, ours.joined
    return gold.name, ours.intent


def _intent_parts(gold: Iterable[Frame]) -> dict[str | None, tuple[str | None, str | None]]:
    """Intent → scenario and action of the first gold frame with this intent."""
    parts: dict[str | None, tuple[str | None, str | None]] = {}
    for frame in gold:
        parts.setdefault(frame.name, (frame.scenario, frame.action))
    return parts


def _scenario_and_action(
    gold: Frame, ours: Frame, parts: Mapping[str | None, tuple[str | None, str | None]]
) -> tuple[str | None, str | None]:
    """Predicted scenario and action.

    A prediction with an intent only takes those that the gold has with this intent, else the parts around its first
    "_".
    """
    if ours.joined is not None or ours.intent is None:
        return ours.scenario, ours.action
    if ours.intent == gold.name:
        return gold.scenario, gold.action
    scenario, _, action = ours.intent.partition("_")
    return parts.get(ours.intent, (scenario, action))


def _count_labels(pairs: Iterable[tuple[str | None, str | None]]) -> LabelCounts:
    """Counts by label of pairs (gold label, predicted label); a prediction of None is no prediction."""
    table = LabelCounts()
    for gold, ours in pairs:
        right = float(gold == ours)
        table.add(str(gold), tp=right, fn=1 - right)
        if ours is not None and not right:
            table.add(ours, fp=1)
    return table


# ------------------------------------------------------------------------------------------------------------- slots


def _count_slots(
    pairs: Iterable[tuple[Sequence[Slot], Sequence[Slot]]], distance: Callable[[str, str], float] | None
) -> LabelCounts:
    """Counts by slot type of pairs (gold slots, predicted slots); without ``distance``, fillers must be equal."""
    table = LabelCounts()
    for gold, ours in pairs:
        left = list(gold)
        for slot in ours:
            match = _exact(slot, left) if distance is None else _nearest(slot, left, distance)
            if match is None:
                table.add(slot[0], fp=1)
                continue
            index, far = match
            del left[index]
            table.add(slot[0], 1, far, far)
        for kind, _ in left:
            table.add(kind, fn=1)
    return table


def _exact(slot: Slot, left: Sequence[Slot]) -> tuple[int, float] | None:
    """Index of the equal slot in ``left``, and the distance 0."""
    return (left.index(slot), 0.0) if slot in left else None


def _nearest(slot: Slot, left: Sequence[Slot], distance: Callable[[str, str], float]) -> tuple[int, float] | None:
    """Index and distance of the nearest slot of the same type in ``left``."""
    kind, filler = slot
    distances = {index: distance(filler, other) for index, (type_, other) in enumerate(left) if type_ == kind}
    return min(distances.items(), key=lambda pair: pair[1]) if distances else None


def _accuracies(pairs: Sequence[Pair], types: Iterable[str]) -> dict[str, Any]:
    """slot_accuracy, frame_accuracy and per_slot_accuracy (by type)."""
    wrong: Counter[str] = Counter()
    right = 0
    for gold, ours in pairs:
        expected, predicted = _values(gold), _values(ours) if ours else {}
        different = [kind for kind in expected.keys() | predicted.keys() if expected.get(kind) != predicted.get(kind)]
        wrong.update(different)
        expected_intent, intent = _intents(gold, ours)
        right += (expected_intent == intent or expected_intent is None) and not different
    slots = {kind: 1 - wrong[kind] / len(pairs) for kind in sorted(types)}
    return {
        "slot_accuracy": ratio(sum(slots.values()), len(slots)),
        "frame_accuracy": right / len(pairs),
        "per_slot_accuracy": slots,
    }


def _values(frame: Frame) -> dict[str, list[str]]:
    """Slot type → its sorted values."""
    values: dict[str, list[str]] = {}
    for kind, filler in frame.slots:
        values.setdefault(kind, []).append(filler)
    return {kind: sorted(fillers) for kind, fillers in values.items()}
