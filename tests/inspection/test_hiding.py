"""Copies with one part hidden in each: every part once, in the mean colour or in silence, and nothing else changed."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from mmprefix import Predictor, Waveform
from mmprefix.errors import InputError
from mmprefix.inspection.hiding import Hidden, hide_cells


def picture(width: int = 48, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def sound(seconds: float = 1.1, rate: int = 8000) -> Waveform:
    samples = np.random.default_rng(1).uniform(0.1, 1, round(seconds * rate)).astype(np.float32)
    return Waveform(samples, rate)


def own(hidden: Hidden, value: Any) -> Any:
    """The branch's part of an input."""
    return cast("dict[str, Any]", value)[hidden.branch]


def test_every_pixel_is_hidden_once_in_the_mean_colour(tiny_model: Predictor) -> None:
    hidden = hide_cells(tiny_model, {"image": picture()}, grid=3)
    whole = np.asarray(own(hidden, hidden.whole)).astype(int)
    mean = whole.reshape(-1, 3).mean(0).round()
    times = np.zeros(whole.shape[:2], dtype=int)
    copies = [np.asarray(own(hidden, copy)).astype(int) for copy in hidden.copies]
    for number, copy in enumerate(copies):
        changed = (copy != whole).any(-1)
        assert (copy[changed] == mean).all()
        rows, columns = changed.nonzero()
        y, x = divmod(number, 3)
        assert hidden.y[y] <= rows.min() <= rows.max() <= hidden.y[y + 1]
        assert hidden.x[x] <= columns.min() <= columns.max() <= hidden.x[x + 1]
        times += changed
    assert (len(copies), hidden.shape, hidden.size) == (9, (3, 3), (48, 30))
    assert (times == 1).mean() > 0.99  # a pixel may have the mean colour
    assert times.max() == 1


def test_every_slice_falls_silent_once(tiny_model: Predictor) -> None:
    hidden = hide_cells(tiny_model, {"audio": sound()}, seconds=0.25)
    samples, rate = own(hidden, hidden.whole).values, own(hidden, hidden.whole).rate
    copies = [own(hidden, copy).values for copy in hidden.copies]
    assert hidden.shape == (len(copies),) == (5,)
    assert np.allclose(hidden.x, [0, 0.25, 0.5, 0.75, 1.0, 1.1])
    for copy, first, last in zip(copies, hidden.x, hidden.x[1:], strict=False):
        inside = slice(int(first * rate), round(last * rate))
        assert not copy[inside].any()
        far = np.ones(len(samples), dtype=bool)
        far[max(0, inside.start - 40) : inside.stop + 41] = False  # ramps of 5 ms
        assert np.array_equal(copy[far], samples[far])
        assert (np.abs(copy) <= np.abs(samples)).all()


def test_a_long_sound_has_64_slices(tiny_model: Predictor) -> None:
    hidden = hide_cells(tiny_model, {"audio": sound(40, 200)})
    assert hidden.shape == (64,)
    assert hidden.x[-1] == pytest.approx(40)


@pytest.mark.parametrize(("value", "options", "message"), [
    ({"image": picture()}, {"seconds": 1.0}, "slices are of sounds"),
    ({"audio": sound()}, {"grid": 2}, "cells are of pictures"),
    ({"image": picture()}, {"grid": 31}, "grid 31: give a number from 1 to 30"),
    ({"audio": sound()}, {"seconds": 0.0}, "seconds 0.0: give a length above 0"),
    ({"image": picture(), "audio": sound()}, {}, "2 pictures and sounds; name one as branch: image, audio"),
    ({"image": picture()}, {"branch": "audio"}, "branch 'audio': is no picture or sound of this input"),
])  # fmt: skip
def test_what_makes_no_cells_is_refused(tiny_model: Predictor, value: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        hide_cells(tiny_model, value, **options)
