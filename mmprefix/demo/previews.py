"""Previews of an input: a small picture or the sound itself; and samples of the embedded world."""

from __future__ import annotations

import atexit
import secrets
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

from mmprefix.media.kinds import kind_of
from mmprefix.world.audio import RATE
from mmprefix.world.scenes import Medium, Picture, sample

_SIDE = 640  # pixels of a shown picture
_SAMPLES = deque[Path]()  # files on disk; Gradio copies a sample at once into the folder that it serves
_MOST_SAMPLES = 32


def preview(path: str) -> tuple[str, Any]:
    """Kind of a checked file, and what is shown of it: a PIL image of at most 640 pixels, or the path of the sound."""
    if kind_of(path) != "image":
        return "audio", path
    from mmprefix.media.image import read_picture

    picture = read_picture(path)
    picture.thumbnail((_SIDE, _SIDE))
    return "image", picture


def sample_file(medium: Medium) -> str:
    """A new file with a random scene of the embedded world, of those that its model was not trained on.

    It lies among temporary files until some more have been made, and at most until the program ends.
    """
    scene = next(sample(medium, secrets.randbelow(1 << 31), new=True))
    suffix = ".png" if isinstance(scene, Picture) else ".wav"
    with tempfile.NamedTemporaryFile(prefix="sample-", suffix=suffix, delete=False) as file:
        if isinstance(scene, Picture):
            from mmprefix.world.images import draw

            draw(scene).resize((256, 256), 0).save(file, "PNG")
        else:
            import soundfile

            from mmprefix.world.audio import render

            soundfile.write(file.name, render(scene), RATE, format="WAV", subtype="PCM_16")
    _SAMPLES.append(Path(file.name))
    if len(_SAMPLES) > _MOST_SAMPLES:
        _SAMPLES.popleft().unlink(missing_ok=True)
    return file.name


@atexit.register
def _remove_samples() -> None:
    while _SAMPLES:
        _SAMPLES.popleft().unlink(missing_ok=True)
