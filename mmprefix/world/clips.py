"""Clips of the tiny world: coloured shapes that move from place to place, or are taken away, one after the other.

A clip has two or three things at different places and one or two changes. It is shown in FRAMES pictures: before, and
halfway and after each change; the last one is repeated where there is one change only. What was done can be known from
the frames in order and from nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmprefix.world.images import RADII, SIDE, SPOTS, Circle, paint
from mmprefix.world.scenes import COLOURS, PLACES, SHAPES, SIZES, Thing

FRAMES = 5
Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Change:
    """The thing with index ``thing`` goes from one place to another; ``after`` "" means that it is taken away."""

    thing: int
    before: str
    after: str


@dataclass(frozen=True)
class MovingScene:
    """Things, the place of each at the start, and the changes in order of time; no two things have one name.

    ``seed`` fixes what a plan leaves open: exact positions, shades, the background, the noise of each frame.
    """

    things: tuple[Thing, ...]
    places: tuple[str, ...]
    changes: tuple[Change, ...]
    seed: int = 0

    def name(self, thing: int) -> str:
        """Colour and shape of a thing."""
        return f"{self.things[thing].colour} {self.things[thing].shape}"

    def places_after(self, changes: int) -> tuple[str, ...]:
        """Place of each thing after so many changes; "" for one that was taken away."""
        places = list(self.places)
        for change in self.changes[:changes]:
            places[change.thing] = change.after
        return tuple(places)

    @property
    def split(self) -> Split:
        """Part of the data that a clip belongs to, by names, places and changes: no two parts share one."""
        names = tuple(self.name(index) for index in range(len(self.things)))
        number = zlib.crc32(repr((names, self.places, self.changes)).encode()) % 10
        return "test" if number < 2 else "val" if number == 2 else "train"


def sample_clips(seed: int, split: Split) -> Iterator[MovingScene]:
    """Endless random clips of one split, all different."""
    rng, seen = np.random.default_rng([seed, 7]), set[tuple[object, ...]]()
    while True:
        clip = _clip(rng)
        key = (clip.things, clip.places, clip.changes)
        if clip.split == split and key not in seen:
            seen.add(key)
            yield clip


def _clip(rng: np.random.Generator) -> MovingScene:
    count = 2 + int(rng.random() < 0.5)
    names = rng.choice(len(COLOURS) * len(SHAPES), count, replace=False)
    things = tuple(
        Thing(SIZES[rng.integers(len(SIZES))], COLOURS[name // len(SHAPES)], SHAPES[name % len(SHAPES)])
        for name in names
    )
    places = [PLACES[index] for index in rng.choice(len(PLACES), count, replace=False)]
    start, changes = tuple(places), list[Change]()
    for _ in range(1 + int(rng.random() < 0.7)):
        thing = int(rng.choice([index for index, place in enumerate(places) if place]))
        free = [place for place in PLACES if place not in places]
        after = "" if rng.random() < 0.25 else free[rng.integers(len(free))]
        changes.append(Change(thing, places[thing], after))
        places[thing] = after
    return MovingScene(things, start, tuple(changes), int(rng.integers(2**31)))


def draw_frames(clip: MovingScene) -> list[Image.Image]:
    """FRAMES RGB pictures of ``clip``, SIDE x SIDE pixels each. Deterministic."""
    rng = np.random.default_rng([clip.seed, 1])
    drawn = rng.uniform(-2.0, 2.0, (len(PLACES), 2))
    shifts = {str(place): shift for place, shift in zip(PLACES, drawn, strict=True)}
    radii = [rng.uniform(*RADII[thing.size]) for thing in clip.things]
    noise = np.random.default_rng([clip.seed, 2])
    frames = list[Image.Image]()
    for number in range(FRAMES):
        circles = [_circle(clip, thing, number, radius=radius, shifts=shifts) for thing, radius in enumerate(radii)]
        camera = np.random.default_rng(clip.seed)  # background and shades are those of every frame
        frames.append(paint(list(zip(clip.things, circles, strict=True)), camera, noise))
    return frames


def _circle(
    clip: MovingScene, thing: int, frame: int, *, radius: float, shifts: Mapping[str, NDArray[np.float64]]
) -> Circle:
    """Circle of a thing in a frame; a thing that is being taken away is half as large, then has radius 0."""
    before, after = clip.places_after(frame // 2)[thing], clip.places_after((frame + 1) // 2)[thing]
    spots = [np.array(SPOTS[place]) * SIDE + shifts[place] for place in (before, after) if place]
    if not spots:
        return 0.0, 0.0, 0.0
    x, y = np.mean(spots, axis=0)
    return float(x), float(y), radius if len(spots) == 2 else radius / 2
