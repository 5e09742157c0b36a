"""Intent and slots of an utterance, predicted or gold, read from two forms of records.

SLURP's records (https://aclanthology.org/2020.emnlp-main.588) have ``scenario``, ``action`` and ``entities``: a list of
``{"type", "filler"}``, or in its gold file ``{"type", "span"}`` beside the ``tokens`` that a span counts. Ours have
``intent`` and ``slots``, or one of them: slots are an object of type → value or list of values, or a list of
[type, value].
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmprefix.errors import InputError

KEYS = ("id", "file", "slurp_id")
"""Keys that records are matched by: the first that all of them have."""


@dataclass(frozen=True)
class Frame:
    """Intent and slots of one utterance, (type, filler) in their order; ``place`` names the record in errors.

    ``keys`` holds the names of the utterance by kind: a sentence of SLURP has as many files as recordings.
    """

    place: str
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    intent: str | None = None
    scenario: str | None = None
    action: str | None = None
    slots: tuple[tuple[str, str], ...] = ()

    @property
    def joined(self) -> str | None:
        """SLURP's intent; its field of that name may say something else."""
        return None if self.scenario is None or self.action is None else f"{self.scenario}_{self.action}"

    @property
    def name(self) -> str | None:
        """The intent as the record calls it, or else scenario_action."""
        return self.joined if self.intent is None else self.intent

    def lower(self) -> Frame:
        """Copy with all fillers in lower case."""
        return replace(self, slots=tuple((kind, filler.lower()) for kind, filler in self.slots))


def read_frame(record: Any, place: str, gold: bool = False) -> Frame:
    """The frame of a record of either form. SLURP's gold fillers become lower case, as its scorer has them.

    Raises InputError that begins with ``place`` when the record is neither, or something in it has another type.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"{place}: a record must be an object, not {_shown(record)}")
    if "entities" in record:
        return _slurp(record, place, gold)
    if "intent" not in record and "slots" not in record:
        raise InputError(f"{place}: a record needs intent or slots, or SLURP's scenario, action and entities")
    labels = {name: _label(record, name, place) for name in ("intent", "scenario", "action") if _says(record, name)}
    return Frame(place, _keys(record, place), **labels, slots=tuple(_slots(record.get("slots"), place)))


def _slurp(record: Mapping[str, Any], place: str, gold: bool) -> Frame:
    labels = {name: _label(record, name, place) for name in ("scenario", "action") if name in record}
    if len(labels) == 1:
        raise InputError(f"{place}: {next(iter(labels))} alone is half an intent; give scenario and action")
    if not labels:
        if "intent" not in record:
            raise InputError(f"{place}: entities, but no scenario and action, and no intent")
        labels["intent"] = _label(record, "intent", place)
    slots = [_entity(entity, record, place) for entity in _list(record["entities"], "entities", place)]
    frame = Frame(place, _keys(record, place), **labels, slots=tuple(slots))
    return frame.lower() if gold else frame


def _says(record: Mapping[str, Any], name: str) -> bool:
    """Scenario and action are optional beside an intent, where null is no answer but its absence."""
    return record.get(name) is not None or (name == "intent" and name in record)


def _label(record: Mapping[str, Any], name: str, place: str) -> str:
    """A label; null, the answer that there is none, is one too."""
    value = record[name]
    if value is not None and not isinstance(value, str):
        raise InputError(f"{place}: {name} must be a string or null, not {_shown(value)}")
    return "null" if value is None else value


def _keys(record: Mapping[str, Any], place: str) -> dict[str, tuple[str, ...]]:
    keys: dict[str, tuple[str, ...]] = {
        name: (_key(record[name], name, place),) for name in KEYS if record.get(name) is not None
    }
    if "file" not in keys and "recordings" in record:
        recordings = _list(record["recordings"], "recordings", place)
        if not all(isinstance(recording, Mapping) and "file" in recording for recording in recordings):
            raise InputError(f"{place}: each of recordings must be an object with file")
        keys["file"] = tuple(_key(recording["file"], "file", place) for recording in recordings)
    if not keys:
        raise InputError(
            f"{place}: no {', no '.join(KEYS[:-1])} and no {KEYS[-1]}; one of them must name the utterance"
        )
    return keys


def _key(value: Any, name: str, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{place}: {name} must be a string or a whole number, not {_shown(value)}")
    return str(value)


def _entity(entity: Any, record: Mapping[str, Any], place: str) -> tuple[str, str]:
    if not isinstance(entity, Mapping) or not isinstance(entity.get("type"), str):
        raise InputError(f"{place}: an entity must be an object with type and filler, not {_shown(entity)}")
    if "filler" not in entity and "span" in entity:
        return entity["type"], _spanned(entity["span"], record.get("tokens"), place)
    if not isinstance(entity.get("filler"), str):
        raise InputError(f"{place}: an entity of type {entity['type']!r} has no filler that is a string")
    return entity["type"], entity["filler"]


def _spanned(span: Any, tokens: Any, place: str) -> str:
    """The words of ``tokens`` that ``span`` counts, from 0."""
    try:
        return " ".join(tokens[_place(at, len(tokens))]["surface"] for at in span)
    except (TypeError, KeyError, IndexError):
        raise InputError(f"{place}: span {_shown(span)} does not count tokens that have a surface") from None


def _place(at: int, tokens: int) -> int:
    if not 0 <= at < tokens:
        raise IndexError
    return at


def _slots(slots: Any, place: str) -> Iterable[tuple[str, str]]:
    """Type and value of each slot; a value of null is a slot that is not there."""
    if isinstance(slots, Mapping):
        pairs = list(slots.items())
    else:
        pairs = _list(slots if slots is not None else [], "slots", place)
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise InputError(f"{place}: slots must be an object of type and value, or a list of [type, value]")
    for kind, value in pairs:
        for one in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(kind, str) or isinstance(one, bool) or not isinstance(one, str | int | float | None):
                raise InputError(f"{place}: slot {_shown(kind)}: a value must be a string, not {_shown(one)}")
            if one is not None:
                yield kind, str(one)


def _list(value: Any, name: str, place: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{place}: {name} must be a list, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)[:60]


# ------------------------------------------------------------------------------------------- predictions and their gold


def matched(predictions: Sequence[Frame], gold: Sequence[Frame]) -> tuple[str, dict[str, Frame], dict[str, Frame]]:
    """The key that frames are matched by, and the predictions and the gold by its value.

    The key is the first of ``KEYS`` that all have; an ``id`` also stands for a gold ``file`` or ``slurp_id``. Raises
    InputError when there is none, when a name comes twice, and when no name of the gold has a prediction.
    """
    ours, theirs = _kinds(predictions, gold)
    predicted, wanted = _by(predictions, ours), _by(gold, theirs)
    if not predicted.keys() & wanted.keys():
        names = f"{ours} {next(iter(predicted), '')!r} of {predictions[0].place}"
        raise InputError(
            f"{names} and all other predictions have no gold; {gold[0].place} has {theirs} {next(iter(wanted), '')!r}"
        )
    return theirs, predicted, wanted


def _kinds(predictions: Sequence[Frame], gold: Sequence[Frame]) -> tuple[str, str]:
    ours = [kind for kind in KEYS if all(kind in frame.keys for frame in predictions)]
    theirs = [kind for kind in KEYS if all(kind in frame.keys for frame in gold)]
    both = [kind for kind in ours if kind in theirs]
    if both:
        return both[0], both[0]
    if "id" in ours:
        ids = {name for frame in predictions for name in frame.keys["id"]}
        for kind in theirs:
            if any(name in ids for frame in gold for name in frame.keys[kind]):
                return "id", kind
    have = (
        f"{' and '.join(ours) or 'nothing'} in all predictions, {' and '.join(theirs) or 'nothing'} in all of the gold"
    )
    raise InputError(f"no key to match by: {have}; both need one of {', '.join(KEYS)} in every record")


def _by(frames: Sequence[Frame], kind: str) -> dict[str, Frame]:
    by_name: dict[str, Frame] = {}
    for frame in frames:
        for name in frame.keys[kind]:
            twin = by_name.setdefault(name, frame)
            if twin is not frame:
                raise InputError(f"{frame.place}: {kind} {name!r} stands in {twin.place} already")
    return by_name
