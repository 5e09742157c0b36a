"""Semantic frames (intent and slots of an utterance), read from records in SLURP's form or in ours.

SLURP's records (https://aclanthology.org/2020.emnlp-main.588) have ``scenario``, ``action`` and ``entities``: a list of
``{"type", "filler"}``, or in its gold file ``{"type", "span"}``, where ``span`` holds indices into ``tokens``. Our
records have ``intent`` or ``slots`` or both: slots are an object of type → value or list of values, or a list of
[type, value].
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmprefix.errors import InputError

KEYS = ("id", "file", "slurp_id")
"""Keys that name an utterance; records are matched by the first that all of them have."""


@dataclass(frozen=True)
class Frame:
    """Intent and slots of one utterance.

    ``slots`` are (type, filler) in their order; ``location`` is the place of the record, for messages; ``keys`` maps
    each of ``KEYS`` to the utterance's names: a sentence of SLURP has one ``file`` per recording.
    """

    location: str
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    intent: str | None = None
    scenario: str | None = None
    action: str | None = None
    slots: tuple[tuple[str, str], ...] = ()

    @property
    def joined(self) -> str | None:
        """SLURP's intent scenario_action, which sometimes differs from the field ``intent`` of its records."""
        return None if self.scenario is None or self.action is None else f"{self.scenario}_{self.action}"

    @property
    def name(self) -> str | None:
        """Intent of the record, else scenario_action."""
        return self.joined if self.intent is None else self.intent

    def lower(self) -> Frame:
        """Copy with all fillers in lower case."""
        return replace(self, slots=tuple((kind, filler.lower()) for kind, filler in self.slots))


def read_frame(record: Any, location: str, gold: bool = False) -> Frame:
    """Read a record of either form. Fillers of SLURP's gold records are lower-cased, as in its scorer.

    Raises InputError that begins with ``location`` if the record has neither form, or a value has a wrong type.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"{location}: a record must be an object, not {_shown(record)}")
    if "entities" in record:
        return _slurp(record, location, gold)
    if "intent" not in record and "slots" not in record:
        raise InputError(f"{location}: a record needs intent or slots, or SLURP's scenario, action and entities")
    labels = {
        name: _label(record, name, location) for name in ("intent", "scenario", "action") if _has_label(record, name)
    }
    return Frame(location, _keys(record, location), **labels, slots=tuple(_slots(record.get("slots"), location)))


def _slurp(record: Mapping[str, Any], location: str, gold: bool) -> Frame:
    """Frame of a record of SLURP's form."""
    labels = {name: _label(record, name, location) for name in ("scenario", "action") if name in record}
    if len(labels) == 1:
        raise InputError(f"{location}: {next(iter(labels))} alone is half an intent; give scenario and action")
    if not labels:
        if "intent" not in record:
            raise InputError(f"{location}: entities, but no scenario and action, and no intent")
        labels["intent"] = _label(record, "intent", location)
    slots = [_entity(entity, record, location) for entity in _list(record["entities"], "entities", location)]
    frame = Frame(location, _keys(record, location), **labels, slots=tuple(slots))
    return frame.lower() if gold else frame


def _has_label(record: Mapping[str, Any], name: str) -> bool:
    """True if the record has the label; null is a label for intent, but not for scenario and action."""
    return record.get(name) is not None or (name == "intent" and name in record)


def _label(record: Mapping[str, Any], name: str, location: str) -> str:
    """Label as a string; null (no intent) becomes the label "null"."""
    value = record[name]
    if value is not None and not isinstance(value, str):
        raise InputError(f"{location}: {name} must be a string or null, not {_shown(value)}")
    return "null" if value is None else value


def _keys(record: Mapping[str, Any], location: str) -> dict[str, tuple[str, ...]]:
    """Names of the utterance by key; ``file`` may come from ``recordings``."""
    keys: dict[str, tuple[str, ...]] = {
        name: (_key(record[name], name, location),) for name in KEYS if record.get(name) is not None
    }
    if "file" not in keys and "recordings" in record:
        recordings = _list(record["recordings"], "recordings", location)
        if not all(isinstance(recording, Mapping) and "file" in recording for recording in recordings):
            raise InputError(f"{location}: each recording must be an object with file")
        keys["file"] = tuple(_key(recording["file"], "file", location) for recording in recordings)
    if not keys:
        raise InputError(
            f"{location}: no {', no '.join(KEYS[:-1])} and no {KEYS[-1]}; one of them must name the utterance"
        )
    return keys


def _key(value: Any, name: str, location: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{location}: {name} must be a string or a whole number, not {_shown(value)}")
    return str(value)


def _entity(entity: Any, record: Mapping[str, Any], location: str) -> tuple[str, str]:
    """Type and filler of one of SLURP's entities."""
    if not isinstance(entity, Mapping) or not isinstance(entity.get("type"), str):
        raise InputError(f"{location}: an entity must be an object with type and filler, not {_shown(entity)}")
    if "filler" not in entity and "span" in entity:
        return entity["type"], _spanned(entity["span"], record.get("tokens"), location)
    if not isinstance(entity.get("filler"), str):
        raise InputError(f"{location}: an entity of type {entity['type']!r} has no filler that is a string")
    return entity["type"], entity["filler"]


def _spanned(span: Any, tokens: Any, location: str) -> str:
    """Words of ``tokens`` at the indices in ``span``, which count from 0."""
    try:
        if not all(0 <= index < len(tokens) for index in span):
            raise IndexError
        return " ".join(tokens[index]["surface"] for index in span)
    except (TypeError, KeyError, IndexError):
        raise InputError(f"{location}: span {_shown(span)} must hold indices of tokens that have a surface") from None


def _slots(slots: Any, location: str) -> Iterable[tuple[str, str]]:
    """Type and value of each slot; a slot whose value is null is left out."""
    if isinstance(slots, Mapping):
        pairs = list(slots.items())
    else:
        pairs = _list(slots if slots is not None else [], "slots", location)
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise InputError(f"{location}: slots must be an object of type and value, or a list of [type, value]")
    for kind, value in pairs:
        for filler in value if isinstance(value, list | tuple) else [value]:
            if (
                not isinstance(kind, str)
                or isinstance(filler, bool)
                or not isinstance(filler, str | int | float | None)
            ):
                raise InputError(f"{location}: slot {_shown(kind)}: a value must be a string, not {_shown(filler)}")
            if filler is not None:
                yield kind, str(filler)


def _list(value: Any, name: str, location: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{location}: {name} must be a list, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)[:60]


# --------------------------------------------------------------------------------- matching predictions with the gold


def match_frames(predictions: Sequence[Frame], gold: Sequence[Frame]) -> tuple[str, dict[str, Frame], dict[str, Frame]]:
    """Match predictions with gold frames: the gold's key, predictions by name, and gold frames by name.

    The key is the first of ``KEYS`` that all frames have; an ``id`` of a prediction may also name a gold ``file`` or
    ``slurp_id``. Raises InputError if there is no such key, if a name occurs twice, or if no name is on both sides.
    """
    ours, theirs = _common_keys(predictions, gold)
    predicted, expected = _by_name(predictions, ours), _by_name(gold, theirs)
    if not predicted.keys() & expected.keys():
        name = f"{ours} {next(iter(predicted), '')!r} of {predictions[0].location}"
        other = f"{gold[0].location} has {theirs} {next(iter(expected), '')!r}"
        raise InputError(f"{name} and all other predictions have no gold; {other}")
    return theirs, predicted, expected


def _common_keys(predictions: Sequence[Frame], gold: Sequence[Frame]) -> tuple[str, str]:
    """Key of the predictions and key of the gold by which they are matched."""
    ours = [key for key in KEYS if all(key in frame.keys for frame in predictions)]
    theirs = [key for key in KEYS if all(key in frame.keys for frame in gold)]
    both = [key for key in ours if key in theirs]
    if both:
        return both[0], both[0]
    if "id" in ours:
        ids = {name for frame in predictions for name in frame.keys["id"]}
        for key in theirs:
            if any(name in ids for frame in gold for name in frame.keys[key]):
                return "id", key
    have = (
        f"{' and '.join(ours) or 'nothing'} in all predictions, {' and '.join(theirs) or 'nothing'} in all of the gold"
    )
    raise InputError(f"no key to match by: {have}; both need one of {', '.join(KEYS)} in every record")


def _by_name(frames: Sequence[Frame], key: str) -> dict[str, Frame]:
    """Name → frame; a name that occurs twice is refused."""
    named: dict[str, Frame] = {}
    for frame in frames:
        for name in frame.keys[key]:
            earlier = named.setdefault(name, frame)
            if earlier is not frame:
                raise InputError(f"{frame.location}: {key} {name!r} occurs in {earlier.location} already")
    return named
