"""How a scene is told: a few sentence forms and two choices of words, so that all captions of a scene can be listed."""

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

WORDINGS: tuple[dict[str, str], ...] = (
    {},
    {"small": "little", "large": "big", "short": "brief", "long": "lasting"},
)
"""Other words for the same; one caption keeps to one wording."""

FORMS: dict[str, tuple[str, ...]] = {
    "single": ("{a} in the {place}", "there is {a} in the {place}", "a picture of {a} in the {place}"),
    "row 2": ("{a} to the left of {b}", "{a} and to its right {b}", "{a} on the left and {b} on the right"),
    "row 3": (
        "from left to right {a}, {b} and {c}",
        "{a}, {b} and {c} from left to right",
        "{a} on the left, {b} in the middle and {c} on the right",
    ),
    "column 2": ("{a} above {b}", "{a} and below it {b}", "{a} at the top and {b} at the bottom"),
    "column 3": (
        "from top to bottom {a}, {b} and {c}",
        "{a}, {b} and {c} from top to bottom",
        "{a} at the top, {b} in the middle and {c} at the bottom",
    ),
    "sound 1": ("{a}", "the sound of {a}", "there is {a} and nothing else"),
    "sound 2": ("{a}, then {b}", "{a} followed by {b}", "first {a} and then {b}", "{a} before {b}"),
    "sound 3": (
        "{a}, {b} and then {c}",
        "{a} followed by {b} and {c}",
        "first {a}, then {b} and finally {c}",
    ),
}
"""Sentence forms by what they can tell; {a}, {b}, {c} stand from left to right, top to bottom, early to late, and are told so."""


def captions(scene: Scene) -> list[str]:
    """Every caption of ``scene``: all its sentence forms in both wordings, 6 or 8, all different."""
    form, parts = _parts(scene)
    place = scene.place if isinstance(scene, Picture) else ""
    return [_tell(sentence, parts, place, words) for words in WORDINGS for sentence in FORMS[form]]


def notes(scene: Scene) -> str:
    """The same in key words, no sentence: what there is, in order, then how it stands."""
    form, parts = _parts(scene)
    how = scene.place if isinstance(scene, Picture) and scene.place else form.split()[0]
    return " ".join([*(" ".join(part) for part in parts), how])


def _parts(scene: Scene) -> tuple[str, list[tuple[str, str, str]]]:
    """The key of ``scene`` in FORMS, and the three words of each thing or event."""
    if isinstance(scene, Sound):
        return f"sound {len(scene.events)}", [(event.length, event.pitch, event.kind) for event in scene.events]
    form = "single" if scene.layout == "single" else f"{scene.layout} {len(scene.things)}"
    return form, [(thing.size, thing.colour, thing.shape) for thing in scene.things]


def parse(caption: str) -> Scene | None:
    """The scene that ``caption`` tells (with seed 0), None when it is no sentence of this world."""
    for form, pattern, plain in _patterns():
        if match := pattern.fullmatch(caption):
            return _scene(form, {key: plain.get(word, word) for key, word in match.groupdict().items()})
    return None


def _tell(sentence: str, parts: list[tuple[str, str, str]], place: str, words: dict[str, str]) -> str:
    phrases = ["a " + " ".join(words.get(word, word) for word in part) for part in parts]
    return sentence.format(**dict(zip("abc", phrases, strict=False)), place=place)


@cache
def _patterns() -> list[tuple[str, re.Pattern[str], dict[str, str]]]:
    """Each sentence form in each wording as a pattern, and the way back to the first wording."""
    return [
        (form, re.compile(_pattern(form, sentence, words)), {new: old for old, new in words.items()})
        for form, sentences in FORMS.items()
        for sentence in sentences
        for words in WORDINGS
    ]


def _pattern(form: str, sentence: str, words: dict[str, str]) -> str:
    slots = (LENGTHS, PITCHES, KINDS) if form.startswith("sound") else (SIZES, COLOURS, SHAPES)
    texts = {"place": f"(?P<place>{'|'.join(PLACES)})"}
    for name in "abc":
        choices = ("|".join(words.get(word, word) for word in slot) for slot in slots)
        texts[name] = "a " + " ".join(f"(?P<{name}{place}>{choice})" for place, choice in enumerate(choices))
    return sentence.format(**texts)


def _scene(form: str, found: dict[str, str]) -> Scene:
    parts = [tuple(found[f"{name}{place}"] for place in range(3)) for name in "abc" if f"{name}0" in found]
    if form.startswith("sound"):
        return Sound(tuple(Event(*part) for part in parts))
    layout = "row" if form.startswith("row") else "column" if form.startswith("column") else "single"
    return Picture(tuple(Thing(*part) for part in parts), layout, found.get("place", ""))
