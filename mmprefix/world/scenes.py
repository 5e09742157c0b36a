"""Scenes of the tiny world: things in pictures, events in sounds, and the held-out combinations.

A picture shows one thing (a size, a colour, a shape) in one of five places, or two in a row or a column; a sound is
one event or two (a length, a pitch, a kind), one after the other. Some pairs of colour and shape, some triples of
length, pitch and kind, and some orders of two neighbours are in no scene that a mapper is trained or validated on.
The frozen parts were trained on them, as CLIP and GPT-2 were trained on most things, but the mapper was not: captions
of such a scene test generalisation, not memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

SIZES = ("small", "large")
COLOURS = ("red", "yellow", "green", "blue", "pink", "white")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
PLACES = ("top left", "top right", "centre", "bottom left", "bottom right")
LENGTHS = ("short", "long")
PITCHES = ("low", "medium", "high")
KINDS = ("tone", "buzz", "warble", "rising sweep", "falling sweep", "hiss", "ticking", "beeping")

Medium = Literal["image", "audio"]
Layout = Literal["single", "row", "column"]

HELD_OUT_PARTS: frozenset[tuple[str, ...]] = frozenset(
    {
        *(("red", "ring"), ("yellow", "cross"), ("green", "square"), ("blue", "triangle"), ("pink", "circle")),
        *(("short", "high", "tone"), ("short", "medium", "tone"), ("long", "low", "buzz"), ("short", "high", "warble")),
        *(("short", "low", "rising sweep"), ("long", "high", "falling sweep"), ("long", "low", "hiss")),
        *(("long", "medium", "hiss"), ("short", "low", "ticking"), ("long", "low", "beeping")),
    }
)
"""(colour, shape) and (length, pitch, kind) that no mapper is trained on: 5 of 30 and 10 of 48."""

HELD_OUT_ORDERS = frozenset(
    {
        *(("square", "ring"), ("cross", "triangle"), ("ring", "circle"), ("triangle", "square")),
        *(("tone", "buzz"), ("hiss", "ticking"), ("ticking", "falling sweep")),
        *(("buzz", "hiss"), ("warble", "beeping"), ("beeping", "rising sweep")),
    }
)
"""Neighbours (left, right), (upper, lower) or (earlier, later) that no mapper is trained on: 4 of 25 and 6 of 64."""


@dataclass(frozen=True)
class Thing:
    """One coloured shape."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Event:
    """One stretch of sound."""

    length: str
    pitch: str
    kind: str


@dataclass(frozen=True)
class Picture:
    """Things from left to right or from top to bottom; ``place`` is the place of a single thing, otherwise empty.

    ``seed`` fixes what captions leave open: exact positions, shades, the background, noise.
    """

    things: tuple[Thing, ...]
    layout: Layout
    place: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Sound:
    """Events in order of time; ``seed`` fixes exact pitches, lengths, gaps and loudness."""

    events: tuple[Event, ...]
    seed: int = 0


Scene = Picture | Sound


def held_out(scene: Scene) -> bool:
    """True when ``scene`` holds a part or an order that no mapper is trained on."""
    if isinstance(scene, Picture):
        names = [thing.shape for thing in scene.things]
    else:
        names = [event.kind for event in scene.events]
    return new_part(scene) or not HELD_OUT_ORDERS.isdisjoint(pairwise(names))


def new_part(scene: Scene) -> bool:
    """True when a single thing or event of ``scene`` is a held-out combination."""
    if isinstance(scene, Picture):
        return any((thing.colour, thing.shape) in HELD_OUT_PARTS for thing in scene.things)
    return any((event.length, event.pitch, event.kind) in HELD_OUT_PARTS for event in scene.events)


def sample(medium: Medium, seed: int, new: bool) -> Iterator[Scene]:
    """Endless random scenes: held-out ones when ``new``, otherwise those that a mapper may be trained on."""
    rng = np.random.default_rng([seed, int(new), medium == "audio"])
    while True:
        scene = _picture(rng) if medium == "image" else _sound(rng)
        if held_out(scene) == new:
            yield scene


def _picture(rng: np.random.Generator) -> Picture:
    count = 1 + int(rng.random() < 0.7)
    things = tuple(Thing(_pick(rng, SIZES), _pick(rng, COLOURS), _pick(rng, SHAPES)) for _ in range(count))
    seed = int(rng.integers(2**31))
    if count == 1:
        return Picture(things, "single", _pick(rng, PLACES), seed)
    return Picture(things, "row" if rng.random() < 0.5 else "column", seed=seed)


def _sound(rng: np.random.Generator) -> Sound:
    count = 1 + int(rng.random() < 0.85)
    events = tuple(Event(_pick(rng, LENGTHS), _pick(rng, PITCHES), _pick(rng, KINDS)) for _ in range(count))
    return Sound(events, int(rng.integers(2**31)))


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[rng.integers(len(words))]
