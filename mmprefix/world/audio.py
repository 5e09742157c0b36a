"""Sounds of the tiny world: a ``Sound`` at 16 kHz, with exact pitches, lengths, gaps and loudness from its seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmprefix.world.scenes import Event, Sound

RATE = 16_000  # samples a second
LONGEST = 2.0  # seconds
_SECONDS = {"short": (0.2, 0.25), "long": (0.46, 0.54)}
_HERTZ = {"low": (180.0, 240.0), "medium": (620.0, 820.0), "high": (2100.0, 2700.0)}

Wave = NDArray[np.float32]


def render(scene: Sound) -> Wave:
    """Waveform of ``scene``: float32 in [-1, 1] at RATE, one to two seconds. Deterministic."""
    rng = np.random.default_rng(scene.seed)
    marks = spans(scene)
    wave = np.zeros(int(max(marks[-1][1] + 0.05, rng.uniform(1.0, LONGEST)) * RATE))
    for event, (start, end) in zip(scene.events, marks, strict=True):
        piece = _event(event, end - start, rng)
        wave[int(start * RATE) :][: len(piece)] = piece
    noisy = wave * rng.uniform(0.3, 0.9) + rng.normal(0.0, 0.001, len(wave))
    return noisy.clip(-1, 1).astype(np.float32)


def spans(scene: Sound) -> list[tuple[float, float]]:
    """Start and end of each event in seconds, in order, with a short silence before each."""
    rng = np.random.default_rng([scene.seed, 1])
    marks, now = [], 0.0
    for event in scene.events:
        start = now + rng.uniform(0.05, 0.08)
        now = start + rng.uniform(*_SECONDS[event.length])
        marks.append((start, now))
    return marks


def _event(event: Event, seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Waveform of one event in [-1, 1], with edges faded over 10 ms."""
    time = np.arange(int(seconds * RATE)) / RATE
    wave = _timbre(event.kind, time, rng.uniform(*_HERTZ[event.pitch]), rng)
    edge = np.minimum(1.0, np.minimum(time, time[::-1]) / 0.01)
    return wave * edge * rng.uniform(0.7, 1.0)


def _timbre(kind: str, time: NDArray[np.float64], hertz: float, rng: np.random.Generator) -> NDArray[np.float64]:
    turns = 2 * np.pi * hertz * time
    if kind == "tone":
        return np.sin(turns)
    if kind == "buzz":  # odd harmonics as in a square wave, below the Nyquist frequency
        orders = [order for order in range(1, 14, 2) if order * hertz < RATE / 2]
        return sum((np.sin(order * turns) / order for order in orders), np.zeros_like(time)) * 0.8
    if kind == "warble":
        rate = rng.uniform(9.0, 12.0)
        return np.sin(turns + 0.2 * hertz / rate * np.sin(2 * np.pi * rate * time))
    if kind in ("rising sweep", "falling sweep"):
        octaves = np.linspace(-0.7, 0.7, len(time))
        path = hertz * 2 ** (octaves if kind == "rising sweep" else -octaves)
        return np.sin(2 * np.pi * np.cumsum(path) / RATE)
    if kind == "hiss":  # noise around the pitch: smoothed white noise, shifted in frequency
        width = int(RATE / (0.35 * hertz))
        noise = [np.convolve(rng.normal(size=len(time)), np.hanning(width), mode="same") for _ in range(2)]
        band = noise[0] * np.cos(turns) + noise[1] * np.sin(turns)
        return band / np.abs(band).max()
    rate = rng.uniform(14.0, 17.0) if kind == "ticking" else rng.uniform(8.0, 10.0)  # a second
    phase = time * rate % 1
    if kind == "ticking":
        return np.sin(turns) * np.exp(-phase / rate / 0.006)
    return np.sin(turns) * (phase < 0.55)
