"""Sound file: an open sound, from which one channel of samples is read, from any frame on.

libsndfile decodes (wav, flac, ogg, mp3 ...); PyAV, where it is installed, what libsndfile cannot open (m4a, aac, the
sound track of a video). A file may hold several streams one behind the other (Ogg, MP3): they are read as one sound.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import soundfile
import soxr

from mmprefix.errors import InputError
from mmprefix.media.mp3 import is_mp3, mp3_streams
from mmprefix.media.ogg import ogg_streams
from mmprefix.media.pyav import is_installed
from mmprefix.media.sound_headers import MAX_STREAMS, CutOffError, whole_sound
from mmprefix.media.source import Source, name_of, open_source, stream_view
from mmprefix.trust.limits import require_below, require_rate

if TYPE_CHECKING:
    from mmprefix.media.audio_pyav import DecodedSound

BLOCK = 1 << 20  # frames decoded at a time: a long stereo file is mixed down as it is read
_UNKNOWN_LENGTH = 1 << 40  # libsndfile announces the largest integer when a header does not hold the length
_SOUND_ERRORS = (soundfile.SoundFileError, TypeError, ValueError)


@contextlib.contextmanager
def open_sound(source: Source, start: float = 0.0, end: float | None = None) -> Iterator[SoundFile]:
    """The sound file ``source``, opened to read what lies between ``start`` and ``end`` seconds.

    Raises InputError that names the file when it is missing, cut off, or no sound.
    """
    name = name_of(source)
    if not isinstance(source, str | Path | bytes):
        raise InputError(f"{name}: a sound is wanted here")
    with open_source(source) as stream:
        try:
            streams = _streams_of(stream)
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror or error})") from error
        except CutOffError as error:
            raise InputError(f"{name}: the sound is cut off: {error}") from error
        if len(streams) > MAX_STREAMS:
            raise InputError(f"{name}: holds more than {MAX_STREAMS} sounds one behind the other")
        try:
            opened: list[_Stream | DecodedSound] = [_Stream(data, name, len(streams) > 1) for data in streams]
        except InputError:
            raise
        except _SOUND_ERRORS as error:
            opened = [_decode_with_av(stream, name, (start, end), error)]
        try:
            yield SoundFile(name, opened)
        finally:
            for part in opened:
                part.close()


def _streams_of(stream: BinaryIO) -> list[BinaryIO]:
    """The streams in a file, one behind the other, each of which libsndfile can open. Raises CutOffError."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    head = stream.read(4)
    if head == b"OggS":
        streams = ogg_streams(stream, size)
    elif is_mp3(head):
        streams = mp3_streams(stream, size)
    else:
        streams = [whole_sound(stream, size)]
    # A view takes any position. In damaged files libsndfile asks for some below zero, and Python prints a traceback.
    return [stream_view(stream, 0, size) if data is stream else data for data in streams]


class _Forward(soundfile.SoundFile):
    """Sound file that is read forward only: soundfile would seek behind every block, which not every codec can do."""

    def seekable(self) -> bool:
        return False

    def go_to(self, first: int) -> None:
        """Go to frame ``first`` of a file just opened.

        GSM, G.721 and NMS cannot seek. Behind a jump in an MP3 the next frames are not the sound that is there, since
        they need bytes of the frames before. Both are decoded from their first frame on. In the last page of Vorbis
        libsndfile jumps to a wrong place, so that a minute before its end is the last place to jump to.
        """
        if super().seekable() and self.format != "MP3":
            place = min(first, self.frames - 60 * self.samplerate) if self.subtype == "VORBIS" else first
            first -= self.seek(max(0, place)) if place > 0 else 0
        while first > 0 and (skipped := len(self.read(min(first, BLOCK), dtype="float32", always_2d=True))):
            first -= skipped


class _Stream:
    """One stream of a file: its bytes, and by its header the rate in Hz and the frames at that rate.

    The decoder that read the header is kept for the first reading, unless ``several`` would be open.
    """

    def __init__(self, data: BinaryIO, name: str, several: bool = False) -> None:
        self.data, self.name = data, name
        sound = self._open()
        self.rate, self.frames = int(sound.samplerate), int(sound.frames)
        self._kept: _Forward | None = sound
        if several:
            self.close()
        require_rate(self.rate, name)

    def close(self) -> None:
        """Close the decoder that was kept."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _open(self) -> _Forward:
        self.data.seek(0)
        return _Forward(self.data)

    def read(self, first: int, count: int) -> np.ndarray:
        """``count`` frames from ``first`` on, mixed down (S,)."""
        blocks: list[np.ndarray] = []
        left = count
        try:
            kept, self._kept = self._kept, None
            with self._open() if kept is None else kept as sound:
                sound.go_to(first)
                while left > 0:
                    block = sound.read(min(left, BLOCK), dtype="float32", always_2d=True)
                    if not len(block):
                        break
                    blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
                    left -= len(block)
                    require_below("seconds", (count - left) / self.rate, self.name)
        except InputError:
            raise
        except _SOUND_ERRORS as error:
            raise InputError(f"{self.name}: the sound cannot be decoded; is it cut off? ({error})") from error
        if left and count < _UNKNOWN_LENGTH:
            lack = f"{count} frames announced, {count - left} could be read"
            raise InputError(f"{self.name}: the sound is cut off: {lack}")
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


class SoundFile:
    """An open sound: the streams of a file as one, at the rate of the first; others are resampled."""

    def __init__(self, name: str, streams: Sequence[_Stream | DecodedSound]) -> None:
        self.name, self.rate = name, streams[0].rate
        self._streams = [(stream, round(stream.frames * self.rate / stream.rate)) for stream in streams]

    @property
    def frames(self) -> int:
        """Frames of all streams, by their headers."""
        return sum(frames for _, frames in self._streams)

    def read(self, first: int, count: int) -> np.ndarray:
        """``count`` frames from ``first`` on, mixed down to one channel (S,), float32.

        Raises InputError where they cannot be decoded, fewer are there than announced, or they are too long.
        """
        if count < _UNKNOWN_LENGTH:
            require_below("seconds", count / self.rate, self.name)
        blocks: list[np.ndarray] = []
        for stream, frames in self._streams:
            start, stop = max(0, first), min(frames, first + count)
            if start < stop:
                blocks.append(self._read_stream(stream, start, stop - start))
            first -= frames
        if not sum(map(len, blocks)):
            raise InputError(f"{self.name}: the sound has length zero")
        return np.concatenate(blocks)

    def _read_stream(self, stream: _Stream | DecodedSound, first: int, count: int) -> np.ndarray:
        if stream.rate == self.rate:
            return stream.read(first, count)
        require_below("seconds", stream.frames / stream.rate, self.name)
        values = soxr.resample(stream.read(0, stream.frames), stream.rate, self.rate, quality="HQ")
        values = values[first : first + count]
        return np.pad(values, (0, count - len(values)))


def _decode_with_av(stream: BinaryIO, name: str, span: tuple[float, float | None], refusal: Exception) -> DecodedSound:
    """The part ``span`` (start and end in seconds) of the sound in ``stream``, decoded by PyAV."""
    if not is_installed():
        raise InputError(
            f"{name}: not a sound that can be read (wav, flac, ogg, mp3; m4a and aac by PyAV: "
            'pip install "mmprefix[av]")'
        ) from refusal
    from mmprefix.media.audio_pyav import decode

    return decode(stream, name, *span)
