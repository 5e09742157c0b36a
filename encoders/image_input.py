"""Input of the image encoders: a file read as a viewer would show it, then the model's own transform."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL.Image import Image
from torch import Tensor

from mmprefix.media.image import read_picture
from mmprefix.media.source import Source


@dataclass(frozen=True)
class ReadPicture:
    """Preprocessing of an image encoder; ``transform`` is the one that its model was trained with."""

    transform: Callable[[Image], Tensor]

    def __call__(self, source: Source, start: float = 0.0, end: float | None = None) -> Tensor:
        """``source`` → pixels (3 Y X), float32. A picture has no time: ``start`` and ``end`` are ignored."""
        return self.transform(read_picture(source))
