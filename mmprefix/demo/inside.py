"""A look inside the prefix of one input: a table of words by position, and heat over the picture or the spectrogram."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmprefix.demo.html_parts import note, table
from mmprefix.demo.limits import Deadline, sentence
from mmprefix.errors import InputError
from mmprefix.media.kinds import KINDS, kind_of

if TYPE_CHECKING:
    from PIL import Image

    from mmprefix.inference.predictor import Predictor
    from mmprefix.inspection import Maps

ALL = "all positions together"
_WORDS = 5
_SIDE = 1280  # pixels of a picture under colours
_SLICES = 40  # of a sound at most: each is hidden once


@dataclass(frozen=True)
class Inside:
    """Look inside one prefix: a table of HTML, and maps of where each position looks (None where there are none)."""

    words: str
    maps: Maps | None = None

    @property
    def positions(self) -> list[str]:
        """Choices of the page: all positions together, then each."""
        return [ALL] if self.maps is None else [ALL, *(f"position {label}" for label in self.maps.labels)]


def look_inside(model: Predictor, file: str, options: dict[str, Any], deadline: Deadline) -> Inside:
    """Words and maps of one input; what this model cannot show is a line in the place of it."""
    call = {name: value for name, value in options.items() if name in ("prompt", "user", "history")}
    try:
        maps = _maps(model, file, call)
    except InputError as error:
        return Inside(note(sentence(error)) + _words(model, file, call, None))
    deadline.check()
    return Inside(_words(model, file, call, maps), maps)


def _maps(model: Predictor, file: str, call: dict[str, Any]) -> Maps:
    from mmprefix.inspection import attention_maps

    kind = kind_of(file)
    if kind == "image":
        return attention_maps(model, file, **call)
    seconds = KINDS["audio"].inspect(file, 0.0, None, False).seconds or 1.0
    return attention_maps(model, file, seconds=max(0.25, seconds / _SLICES), **call)


def _words(model: Predictor, file: str, call: dict[str, Any], maps: Maps | None) -> str:
    from mmprefix.inspection import nearest_words, next_words

    try:
        nearest = nearest_words(model, file, count=_WORDS, **call)
        cells = [", ".join(f"{word.text.strip()} {word.cosine:.2f}" for word in row) for row in nearest]
        head = "Nearest words (cosine)"
    except InputError:  # a prefix of keys and values lies in no space of words
        try:
            following = next_words(model, file, count=_WORDS, **call)
        except InputError as error:
            return note(sentence(error))
        cells = [", ".join(f"{word.text.strip()} {word.probability:.0%}" for word in row) for row in following]
        head = "Words that the position alone brings forth"
    rows = [(number, words, _place(maps, number)) for number, words in enumerate(cells)]
    return table("Positions of the prefix", ["Position", head, "Looks most at"], rows)


def _place(maps: Maps | None, number: int) -> str:
    """Place that a position looks at, in words: for whoever does not see the picture."""
    if maps is None or number >= len(maps.labels) or not maps.values[number].any():
        return ""
    values = maps.values[number]
    *down, across = (int(at) for at in np.unravel_index(values.argmax(), values.shape))
    middle = (maps.x[across] + maps.x[across + 1]) / 2
    if not down:
        return f"second {middle:.1f}"
    height = (maps.y[down[0]] + maps.y[down[0] + 1]) / 2
    return f"{middle / maps.x[-1]:.0%} from the left, {height / maps.y[-1]:.0%} from the top"


def heat(file: str, maps: Maps, position: str | None) -> Image.Image:
    """Picture of where a position looks, of at most 1280 pixels. Raises InputError for a position that is not there."""
    from mmprefix.inspection import heat_picture, heat_spectrogram
    from mmprefix.media.image import read_picture

    label = None if position in (None, ALL) else str(position).removeprefix("position ")
    if maps.kind != "image":
        return heat_spectrogram(file, maps, label)
    shown = read_picture(file)
    shown.thumbnail((_SIDE, _SIDE))  # colours of all pixels of a large photograph would take gigabytes
    return heat_picture(shown, maps, label)
