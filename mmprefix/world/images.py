"""Pictures of the tiny world: a ``Picture`` of 64 x 64 pixels, with shades, exact positions and noise from its seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from mmprefix.world.scenes import PLACES, Picture, Thing

SIDE = 64  # pixels
_FINE = 4  # factor of supersampling, for smooth edges
RADII = {"small": (5.2, 6.0), "large": (9.0, 10.0)}  # pixels
_SHADES = {
    "red": (215, 35, 40),
    "yellow": (245, 225, 50),
    "green": (40, 165, 70),
    "blue": (50, 95, 225),
    "pink": (250, 150, 195),
    "white": (245, 245, 245),
}


Circle = tuple[float, float, float]
"""Circle around a thing: x, y and radius in pixels."""


def draw(scene: Picture) -> Image.Image:
    """RGB picture of ``scene``, SIDE x SIDE pixels. Deterministic."""
    rng = np.random.default_rng(scene.seed)
    return paint(list(zip(scene.things, circles(scene), strict=True)), rng)


def paint(
    things: Sequence[tuple[Thing, Circle]], rng: np.random.Generator, noise: np.random.Generator | None = None
) -> Image.Image:
    """RGB picture of things at their circles; ``rng`` draws background and shades, and the noise if ``noise`` is None.

    A thing of radius 0 is not there.
    """
    dark = tuple(int(value) for value in rng.integers(10, 60) + rng.integers(0, 16, 3))
    canvas = Image.new("RGB", (SIDE * _FINE, SIDE * _FINE), dark)
    pen = ImageDraw.Draw(canvas)
    for thing, (x, y, r) in things:
        light = rng.uniform(0.88, 1.0)
        ink = tuple(int(value * light) for value in _SHADES[thing.colour])
        if r > 0:
            _stamp(pen, thing.shape, (x * _FINE, y * _FINE, r * _FINE), ink=ink, ground=dark)
    pixels = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    noisy = pixels + (noise or rng).normal(0.0, 3.0, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


SPOTS = {
    name: (0.5 + 0.27 * (("right" in name) - ("left" in name)), 0.5 + 0.27 * (("bottom" in name) - ("top" in name)))
    for name in PLACES
}
"""Centre of a single thing by its place, as fractions of width and height."""


def circles(scene: Picture) -> list[Circle]:
    """Circle around each thing (x, y and radius in pixels), inside the picture and apart from the others."""
    rng = np.random.default_rng([scene.seed, 1])
    if scene.layout == "single":
        spots = [SPOTS[scene.place]]
    else:
        count = len(scene.things)
        along = [(index + 0.5) / count for index in range(count)]
        level = rng.uniform(0.35, 0.65)
        spots = [(at, level) if scene.layout == "row" else (level, at) for at in along]
    moves = rng.uniform(-3.0, 3.0, (len(spots), 2))
    radii = [rng.uniform(*RADII[thing.size]) for thing in scene.things]
    return [(x * SIDE + dx, y * SIDE + dy, r) for (x, y), (dx, dy), r in zip(spots, moves, radii, strict=True)]


def _stamp(
    pen: ImageDraw.ImageDraw,
    shape: str,
    circle: Circle,
    *,
    ink: tuple[int, ...],
    ground: tuple[int, ...],
) -> None:
    x, y, r = circle
    if shape in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
        if shape == "ring":
            hole = 0.55 * r
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=ground)
    elif shape == "square":
        pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=ink)
    elif shape == "triangle":
        pen.polygon(_corners(x, y, (r, r, r)), fill=ink)
    else:
        arm = 0.32 * r
        pen.rectangle((x - r, y - arm, x + r, y + arm), fill=ink)
        pen.rectangle((x - arm, y - r, x + arm, y + r), fill=ink)


def _corners(x: float, y: float, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """Corners around (x, y) at equal angles from the top, each at its radius."""
    turns = [2 * math.pi * index / len(radii) - math.pi / 2 for index in range(len(radii))]
    return [(x + r * math.cos(turn), y + r * math.sin(turn)) for r, turn in zip(radii, turns, strict=True)]
