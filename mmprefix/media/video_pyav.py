"""Video files decoded by PyAV: seek to the key frame before a time, decode on to the frame that is shown then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from mmprefix.errors import InputError
from mmprefix.media.pyav import open_container

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

SEEK = 10.0  # seconds: what lies nearer is decoded on, since a key frame seldom comes more often
_MICROSECOND = 1e-6  # the unit of a container's length, and the tolerance of a time that floating point rounded
_QUARTER_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}  # counter-clockwise, as FFmpeg tells them


@contextlib.contextmanager
def open_video_file(stream: BinaryIO, name: str) -> Iterator[VideoFile]:
    """The video in ``stream``; InputError as of ``open_container``, and for a file without a video track."""
    with open_container(stream, name, "a video (mp4, mov, mkv, webm, avi)") as container:
        if not container.streams.video:
            raise InputError(f"{name}: holds no video track")
        yield VideoFile(container, name)


class VideoFile:
    """The first video track of an open container; times are seconds from its first frame."""

    def __init__(self, container: InputContainer, name: str) -> None:
        self.container, self.name = container, name
        self.track = container.streams.video[0]
        if self.track.time_base is None:
            raise InputError(f"{name}: its video track names no unit of time")
        self.unit = float(self.track.time_base)
        self.origin = (self.track.start_time or 0) * self.unit
        self.rate = float(self.track.average_rate or 0)
        self.size = (self.track.codec_context.width, self.track.codec_context.height)
        self._announced = None if self.track.duration is None else self.track.duration * self.unit
        self.seconds = self._length()

    def _length(self) -> float:
        """The length that track or container announces; where neither does, the end of the last packet."""
        if self._announced is not None:
            return self._announced
        if self.container.duration is not None:
            return self.container.duration * _MICROSECOND
        packets = [packet for packet in self.container.demux(self.track) if packet.pts is not None]
        return (
            max((p.pts + (p.duration or 0) for p in packets if p.pts is not None), default=0) * self.unit - self.origin
        )

    def frames_at(self, times: Sequence[float]) -> list[Image.Image]:
        """The frames shown at ``times`` (ascending), each once. Raises InputError where the video ends before."""
        shown: list[VideoFrame] = []
        frames: Iterator[VideoFrame] = iter(())
        ahead: VideoFrame | None = None  # decoded, but not shown before its time
        last: VideoFrame | None = None
        for time in times:
            if last is None or (ahead is not None and time - self._time(ahead) > SEEK):
                frames = self._decode_from(time)
                ahead = next(frames, None)
            while ahead is not None and (last is None or self._time(ahead) <= time + _MICROSECOND):
                last, ahead = ahead, next(frames, None)
            if last is None or (ahead is None and self._is_cut(last, time)):
                raise InputError(f"{self.name}: the video is cut off: it has no frame at {time:.3f} s")
            shown += [] if shown and shown[-1] is last else [last]
        return [_upright(frame) for frame in shown]

    def count_frames(self, start: float, end: float) -> int:
        """Decode all frames from ``start`` to ``end``; their number. Raises InputError where the video ends before."""
        last: VideoFrame | None = None
        count = 0
        for frame in self._decode_from(start):
            if self._time(frame) >= end - _MICROSECOND:
                return count
            count += self._time(frame) + self._shown_for(frame) > start + _MICROSECOND
            last = frame
        if last is None or self._is_cut(last, end - 1 / (self.rate or 1)):
            raise InputError(f"{self.name}: the video is cut off: {end:.3f} s are announced")
        return count

    def _decode_from(self, time: float) -> Iterator[VideoFrame]:
        """Frames from the one shown at ``time`` or an earlier one on; from the first where seeking goes too far."""
        self.container.seek(max(0, round((time + self.origin) / self.unit)), stream=self.track)
        frames = self.container.decode(self.track)
        first = next(frames, None)
        if first is None or self._time(first) > time + _MICROSECOND:
            self.container.seek(0, stream=self.track)
            frames = self.container.decode(self.track)
            first = next(frames, None)
        if first is not None:
            yield first
            yield from frames

    def _time(self, frame: VideoFrame) -> float:
        if frame.pts is None:
            raise InputError(f"{self.name}: its frames carry no time; put the video into a container such as mp4")
        return frame.pts * self.unit - self.origin

    def _shown_for(self, frame: VideoFrame) -> float:
        return frame.duration * self.unit if frame.duration else 1 / (self.rate or 1)

    def _is_cut(self, last: VideoFrame, time: float) -> bool:
        """True if the track's header announces frames at ``time``, but ``last`` was its last one."""
        return self._announced is not None and self._time(last) + self._shown_for(last) < time - _MICROSECOND


def _upright(frame: VideoFrame) -> Image.Image:
    """``frame`` as RGB, turned as the container says (telephones write their position there)."""
    image = frame.to_image()
    turn = round(frame.rotation) % 360
    return image.transpose(_QUARTER_TURNS[turn]) if turn in _QUARTER_TURNS else image
