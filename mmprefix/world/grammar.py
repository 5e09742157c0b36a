"""Captions of a scene, from a few sentence forms: all can be listed, and a caption can be parsed."""

from __future__ import annotations

import re
from functools import cache

from mmprefix.world.scenes import (
    COLOURS,
    KINDS,
    LENGTHS,
    PITCHES,
    PLACES,
    SHAPES,
    SIZES,
    Event,
    Picture,
    Scene,
    Sound,
    Thing,
)

FORMS: dict[str, tuple[str, ...]] = {
    "single": ("{a} in the {place}", "there is {a} in the {place}", "a picture of {a} in the {place}"),
    "row 2": ("{a} to the left of {b}", "{a} and to its right {b}", "{a} on the left and {b} on the right"),
    "column 2": ("{a} above {b}", "{a} and below it {b}", "{a} at the top and {b} at the bottom"),
    "sound 1": ("{a}", "the sound of {a}", "there is {a} and nothing else"),
    "sound 2": ("{a}, then {b}", "{a} followed by {b}", "first {a} and then {b}", "{a} before {b}"),
}
"""Sentence forms by layout; {a}, {b} go from left to right, top to bottom, early to late."""


def captions(scene: Scene) -> list[str]:
    """All captions of ``scene``, one for each of its sentence forms (three or four), all different."""
    form, parts = _parts(scene)
    place = scene.place if isinstance(scene, Picture) else ""
    return [_sentence(sentence, parts, place) for sentence in FORMS[form]]


def notes(scene: Scene) -> str:
    """Key words of ``scene``: its parts in order, then their arrangement."""
    form, parts = _parts(scene)
    how = scene.place if isinstance(scene, Picture) and scene.place else form.split()[0]
    return " " + " ".join([*(" ".join(part) for part in parts), how])


def _parts(scene: Scene) -> tuple[str, list[tuple[str, str, str]]]:
    """Key of ``scene`` in FORMS, and the three words of each thing or event."""
    if isinstance(scene, Sound):
        return f"sound {len(scene.events)}", [(event.length, event.pitch, event.kind) for event in scene.events]
    form = "single" if scene.layout == "single" else f"{scene.layout} {len(scene.things)}"
    return form, [(thing.size, thing.colour, thing.shape) for thing in scene.things]


def parse(caption: str) -> Scene | None:
    """Scene that ``caption`` describes (with seed 0); None when it is not a sentence of this world."""
    for form, pattern in _patterns():
        if match := pattern.fullmatch(caption):
            return _scene(form, match.groupdict())
    return None


def _sentence(sentence: str, parts: list[tuple[str, str, str]], place: str) -> str:
    phrases = ["a " + " ".join(part) for part in parts]
    return sentence.format(**dict(zip("ab", phrases, strict=False)), place=place)


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Pattern of each sentence form, after its key in FORMS."""
    return [(form, re.compile(_pattern(form, sentence))) for form, sentences in FORMS.items() for sentence in sentences]


def _pattern(form: str, sentence: str) -> str:
    slots = (LENGTHS, PITCHES, KINDS) if form.startswith("sound") else (SIZES, COLOURS, SHAPES)
    texts = {"place": f"(?P<place>{'|'.join(PLACES)})"}
    for name in "ab":
        texts[name] = "a " + " ".join(f"(?P<{name}{at}>{'|'.join(slot)})" for at, slot in enumerate(slots))
    return sentence.format(**texts)


def _scene(form: str, words: dict[str, str]) -> Scene:
    parts = [tuple(words[f"{name}{index}"] for index in range(3)) for name in "ab" if f"{name}0" in words]
    if form.startswith("sound"):
        return Sound(tuple(Event(*part) for part in parts))
    layout = "row" if form.startswith("row") else "column" if form.startswith("column") else "single"
    return Picture(tuple(Thing(*part) for part in parts), layout, words.get("place", ""))
