"""PyAV (FFmpeg): sound and video in containers that neither libsndfile nor Pillow reads; the extra ``mmprefix[av]``."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from mmprefix.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer

# A playlist (HLS, DASH, concat) names other files and addresses, and FFmpeg would open them: a file may name no other.
_OPTIONS = {"protocol_whitelist": "none"}


def is_installed() -> bool:
    """True where PyAV can be imported."""
    return importlib.util.find_spec("av") is not None


@contextlib.contextmanager
def open_container(stream: BinaryIO, name: str, wanted: str) -> Iterator[InputContainer]:
    """The container in ``stream``, opened for reading.

    Raises InputError where PyAV is missing, and, around the whole ``with`` block, for what FFmpeg cannot read or
    decode; ``name`` is the source in the message, ``wanted`` what it should be ("a video (mp4, webm, mkv)").
    """
    if not is_installed():
        raise InputError(f'{name}: {wanted} is read by PyAV, which is not installed: pip install "mmprefix[av]"')
    import av
    from av.error import FFmpegError

    stream.seek(0)
    try:
        with av.open(stream, "r", options=_OPTIONS) as container:
            yield container
    except InputError:
        raise
    except (FFmpegError, OSError, ValueError, IndexError) as error:
        # The text of an FFmpegError or OSError repeats the path of the open stream: only its reason is given.
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: not {wanted} that can be read, or cut off ({reason})") from error
