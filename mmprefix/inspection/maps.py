"""Maps of where a prefix looks: numbers on the cells of a picture, or on the slices of a sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmprefix.errors import InputError


@dataclass(frozen=True)
class Maps:
    """One map for each of P positions of a prefix, or words of a text.

    ``values`` is (P Y X) on the cells of a picture, row by row from the top, or (P T) on the slices of a sound. Each
    map goes to 1 at its hottest cell, and is 0 all over where nothing matters; what 1 stands for is its ``strength``
    (P): the relative change of the position (method "occlusion"), the share of its attention that went to places of
    the input ("attention"), or the log-probability that the word loses, in nats ("caption").

    ``x`` (X+1) and ``y`` (Y+1) are the edges of the cells in pixels of the picture as a viewer shows it; of a sound
    ``x`` (T+1) is in seconds and ``y`` is empty. ``labels`` name the maps; ``branch`` is the input that was looked at;
    ``size`` is the picture's (width, height), of which the cells cover what the encoder sees.
    """

    values: np.ndarray
    strength: np.ndarray
    x: np.ndarray
    y: np.ndarray
    labels: tuple[str, ...]
    branch: str
    kind: str
    method: str
    size: tuple[int, int] | None = None

    @property
    def overall(self) -> np.ndarray:
        """All maps together, weighted by their strength: (Y X) or (T), to 1 at the hottest cell."""
        return to_one(np.tensordot(self.strength, self.values, 1))[0]

    def pick(self, label: str | int | None = None) -> np.ndarray:
        """One map by its label or number, (Y X) or (T); ``overall`` for None. InputError for one that is not there."""
        if label is None:
            return self.overall
        if isinstance(label, str) and label in self.labels:
            return self.values[self.labels.index(label)]
        if isinstance(label, int) and -len(self.labels) <= label < len(self.labels):
            return self.values[label]
        raise InputError(f"map {label!r}: is none of {', '.join(self.labels)}; give one of them, or its number from 0")

    def centre(self, label: str | int | None = None) -> tuple[float, ...]:
        """Centre of the heat of one map: (x, y) in pixels, (seconds,) of a sound."""
        cells = self.pick(label)
        weights = cells / max(float(cells.sum()), 1e-12)
        axes = [(self.x[:-1] + self.x[1:]) / 2, *([(self.y[:-1] + self.y[1:]) / 2] if cells.ndim == 2 else [])]
        across = [weights.sum(0), weights.sum(1)] if cells.ndim == 2 else [weights]
        return tuple(float((places * mass).sum()) for places, mass in zip(axes, across, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, for JSON."""
        arrays = {name: getattr(self, name).round(5).tolist() for name in ("values", "strength", "x", "y")}
        return {**arrays, **{name: getattr(self, name) for name in ("branch", "kind", "method", "size")}} | {
            "labels": list(self.labels)
        }


def to_one(values: np.ndarray, floor: float = 0.0) -> tuple[np.ndarray, float]:
    """``values`` with the largest at 1 and none below 0, and the largest; zeros where none is above ``floor``."""
    largest = float(values.max(initial=0.0))
    if largest <= floor:
        return np.zeros(values.shape, dtype=np.float32), 0.0
    return (values.clip(min=0.0) / largest).astype(np.float32), largest


def scaled_maps(values: np.ndarray, floor: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Maps (P ...) → each to 1 at its hottest cell, and what it was there (P); up to ``floor`` it is no heat."""
    pairs = [to_one(heat, floor) for heat in values]
    shape = (0, *values.shape[1:])
    maps = np.stack([heat for heat, _ in pairs]) if pairs else np.zeros(shape, dtype=np.float32)
    return maps, np.array([largest for _, largest in pairs], dtype=np.float32)
