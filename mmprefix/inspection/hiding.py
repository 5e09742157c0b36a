"""Copies of one picture or sound with one part hidden in each: a cell in the mean colour, a slice in silence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
from PIL import Image

from mmprefix.errors import InputError
from mmprefix.inference.inputs import Input, InputSource, assign_to_branches, input_kinds, source_and_span
from mmprefix.inference.predictor import Predictor
from mmprefix.media.audio import read_samples
from mmprefix.media.image import read_picture
from mmprefix.media.source import Waveform

_LARGEST = 1024  # pixels: a larger picture is made smaller before cells of it are hidden
_MOST_SLICES = 64
_RAMP = 0.005  # seconds over which a slice falls silent, so that no click is heard
KINDS_READ = ("image", "audio")


@dataclass(frozen=True)
class Hidden:
    """One input whole, and copies of it with one cell hidden in each; ``shape`` is (Y, X) or (T,).

    Edges as in ``Maps``.
    """

    branch: str
    kind: str
    shape: tuple[int, ...]
    x: np.ndarray
    y: np.ndarray
    whole: Input
    copies: Iterator[Input]
    size: tuple[int, int] | None = None


def hide_cells(
    model: Predictor, value: Input, *, branch: str | None = None, grid: int | None = None, seconds: float | None = None
) -> Hidden:
    """One input cut into ``grid`` x ``grid`` cells of a picture (default 8), or slices of ``seconds`` (default 0.25).

    A sound of more than 64 slices gets 64 longer ones. Raises InputError for numbers that make no cells, an input that
    is neither picture nor sound, and several of those without ``branch``.
    """
    name, sources = place_of(model, value, branch)
    kind = input_kinds(model.model)[name]
    source = sources[name]
    if kind == "image":
        if seconds is not None:
            raise InputError("seconds: slices are of sounds; a picture is cut by grid")
        return _picture(name, sources, source, 8 if grid is None else grid)
    if grid is not None:
        raise InputError("grid: cells are of pictures; a sound is cut by seconds")
    return _sound(name, sources, source, 0.25 if seconds is None else seconds)


def place_of(model: Predictor, value: Input, branch: str | None) -> tuple[str, dict[str, InputSource]]:
    """Branch of the picture or sound that is looked at, and all sources of the input by branch name."""
    kinds = input_kinds(model.model)
    sources = assign_to_branches(value, kinds)
    places = [name for name in sources if name in model.model.encoders and kinds[name] in KINDS_READ]
    if branch is not None and branch not in places:
        raise InputError(f"branch {branch!r}: is no picture or sound of this input; there are {_names(places)}")
    if branch is None and len(places) != 1:
        advice = f"name one as branch: {_names(places)}" if places else "there is nothing to hide a part of"
        raise InputError(f"the input has {len(places)} pictures and sounds; {advice}")
    return branch or places[0], sources


def _names(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _picture(name: str, sources: dict[str, InputSource], source: InputSource, grid: int) -> Hidden:
    picture = read_picture(source_and_span(source)[0])
    if not 1 <= grid <= min(picture.size):
        raise InputError(f"grid {grid}: give a number from 1 to {min(picture.size)}, the pixels of the shorter side")
    small = picture.copy()
    small.thumbnail((_LARGEST, _LARGEST))
    x, y = (np.linspace(0, side, grid + 1) for side in picture.size)
    columns, rows = (np.linspace(0, side, grid + 1).round().astype(int) for side in small.size)
    pixels = np.asarray(small)
    mean = pixels.reshape(-1, 3).mean(0).round().astype(np.uint8)

    def copies() -> Iterator[Input]:
        for top, bottom in pairwise(rows):
            for left, right in pairwise(columns):
                changed = pixels.copy()
                changed[top:bottom, left:right] = mean
                yield _with(sources, name, Image.fromarray(changed))

    return Hidden(name, "image", (grid, grid), x, y, _with(sources, name, small), copies(), picture.size)


def _sound(name: str, sources: dict[str, InputSource], source: InputSource, seconds: float) -> Hidden:
    if not 0 < seconds < float("inf"):
        raise InputError(f"seconds {seconds}: give a length above 0")
    samples, rate = read_samples(*source_and_span(source))
    total = len(samples) / rate
    step = max(seconds, total / _MOST_SLICES)
    edges = np.append(np.arange(max(1, int(np.ceil(round(total / step, 6))))) * step, total)

    def copies() -> Iterator[Input]:
        for first, last in pairwise(edges):
            yield _with(sources, name, Waveform(_silenced(samples, int(first * rate), round(last * rate), rate), rate))

    whole = _with(sources, name, Waveform(samples, rate))
    return Hidden(name, "audio", (len(edges) - 1,), edges, np.zeros(0), whole, copies())


def _silenced(samples: np.ndarray, first: int, last: int, rate: int) -> np.ndarray:
    """``samples`` with silence from ``first`` to ``last`` and short ramps around it."""
    ramp = max(1, round(_RAMP * rate))
    gain = np.ones(len(samples) + 2 * ramp, dtype=np.float32)
    gain[first + ramp : last + ramp] = 0
    gain[first : first + ramp] = np.linspace(1, 0, ramp, endpoint=False)
    gain[last + ramp : last + 2 * ramp] = np.linspace(0, 1, ramp + 1)[1:]
    return samples * gain[ramp:-ramp]


def _with(sources: dict[str, InputSource], name: str, value: Any) -> Input:
    return cast(Input, {**sources, name: value})
