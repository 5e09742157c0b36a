"""Labels of each frame and of the whole scene, which the frozen encoders were trained to predict."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmprefix.world.audio import LONGEST, spans
from mmprefix.world.images import SIDE, circles
from mmprefix.world.scenes import (
    COLOURS,
    KINDS,
    LENGTHS,
    PITCHES,
    PLACES,
    SHAPES,
    SIZES,
    Medium,
    Picture,
    Scene,
    Sound,
)

PATCH = 8  # pixels
FRAME = 0.04  # seconds: two hops of the spectrogram
NOTHING = -100  # label of an absent attribute

FRAME_CLASSES: dict[Medium, tuple[int, ...]] = {
    "image": (len(SIZES), len(COLOURS), len(SHAPES), 3),
    "audio": (len(LENGTHS), len(PITCHES), len(KINDS), 3),
}
"""Numbers of classes of a frame's labels: first, second and third attribute, and rank (0: background)."""
ARRANGEMENTS = (*PLACES, "row", "column", "sound 1", "sound 2")
"""Classes of the summary's last label."""


def summary_classes(medium: Medium) -> tuple[int, ...]:
    """Numbers of classes of the summary's labels: attributes of the first and of the second part, arrangement."""
    attributes = FRAME_CLASSES[medium][:3]
    return (*attributes, *attributes, len(ARRANGEMENTS))


def frame_labels(scene: Scene) -> Tensor:
    """Labels (T 4) of the frames of ``scene``: patches of a picture, row by row, or stretches of a sound."""
    return picture_labels(scene) if isinstance(scene, Picture) else sound_labels(scene)


def picture_labels(scene: Picture) -> Tensor:
    """Size, colour, shape (-100 in the background) and rank of each patch of ``scene``, row by row: (64 4)."""
    grid = SIDE // PATCH
    labels = torch.tensor([NOTHING, NOTHING, NOTHING, 0]).repeat(grid * grid, 1)
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    for rank, (thing, (x, y, r)) in enumerate(zip(scene.things, circles(scene), strict=True), start=1):
        apart = np.hypot(columns * PATCH + PATCH / 2 - x, rows * PATCH + PATCH / 2 - y)
        inside = torch.from_numpy(apart < max(r, 0.8 * PATCH))
        row = [SIZES.index(thing.size), COLOURS.index(thing.colour), SHAPES.index(thing.shape), rank]
        labels[inside] = torch.tensor(row)
    return labels


def sound_labels(scene: Sound) -> Tensor:
    """Length, pitch, kind (-100 in silence) and rank of each 40 ms of ``scene`` up to LONGEST: (50 4)."""
    labels = torch.tensor([NOTHING, NOTHING, NOTHING, 0]).repeat(round(LONGEST / FRAME), 1)
    for rank, (event, (start, end)) in enumerate(zip(scene.events, spans(scene), strict=True), start=1):
        row = [LENGTHS.index(event.length), PITCHES.index(event.pitch), KINDS.index(event.kind), rank]
        labels[round(start / FRAME) : round(end / FRAME)] = torch.tensor(row)
    return labels


def summary_labels(scene: Scene) -> list[int]:
    """Attributes of the first and the second thing or event (-100 if there is none), and their arrangement."""
    if isinstance(scene, Picture):
        parts = [(SIZES.index(t.size), COLOURS.index(t.colour), SHAPES.index(t.shape)) for t in scene.things]
        arrangement = ARRANGEMENTS.index(scene.place or scene.layout)
    else:
        parts = [(LENGTHS.index(e.length), PITCHES.index(e.pitch), KINDS.index(e.kind)) for e in scene.events]
        arrangement = ARRANGEMENTS.index(f"sound {len(parts)}")
    second = parts[1] if len(parts) > 1 else (NOTHING,) * 3
    return [*parts[0], *second, arrangement]
