"""Inspection of input files: whether each can be read, the length of a sound, the size of an image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from mmprefix.data.manifest import Example, InputRef, RowFault
from mmprefix.errors import InputError
from mmprefix.media.audio import read_samples, sound_seconds
from mmprefix.media.image import picture_size, read_picture
from mmprefix.media.numbers import read_numbers

MediaKind = Literal["image", "audio", "signals"]

COLUMNS: Mapping[str, MediaKind] = {"image": "image", "audio": "audio", "signals": "signals"}


@dataclass(frozen=True)
class FileInfo:
    """Seconds of a sound, or (width, height) of an image in pixels; or the fault that keeps the file from being read."""

    seconds: float | None = None
    size: tuple[int, int] | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Inspection:
    """Rows that can be used, the faults of the others, and the FileInfo of each (column, input)."""

    examples: list[Example]
    faults: list[RowFault]
    files: dict[tuple[str, InputRef], FileInfo]


def inspect(
    examples: Sequence[Example],
    columns: Mapping[str, MediaKind] = COLUMNS,
    *,
    deep: bool = True,
    workers: int = 1,
    progress: bool = False,
) -> Inspection:
    """Open every file of ``examples`` in one of the ``columns`` (name → image, audio or signals), each file once.

    ``deep`` decodes it whole; otherwise its header is read. ``workers`` threads share the work (decoders are written in
    C and run side by side).
    """
    items = list(dict.fromkeys((key, ref) for example in examples for key, ref in example.inputs.items()))
    items = [(key, ref) for key, ref in items if key in columns]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = pool.map(lambda pair: _file_info(pair[1], columns[pair[0]], deep), items)
        files = dict(zip(items, _with_bar(results, len(items)) if progress else results, strict=True))
    good: list[Example] = []
    faults: list[RowFault] = []
    for example in examples:
        infos = [files[pair] for pair in example.inputs.items() if pair in files]
        messages = [info.fault for info in infos if info.fault]
        faults += [example.fault(message) for message in messages[:1]]
        good += [] if messages else [example]
    return Inspection(good, faults, files)


def _file_info(ref: InputRef, kind: MediaKind, deep: bool) -> FileInfo:
    try:
        if kind == "signals":
            read_numbers(ref.source)
            return FileInfo()
        if kind == "image":
            return FileInfo(size=read_picture(ref.path).size if deep else picture_size(ref.path))
        if not deep:
            return FileInfo(seconds=sound_seconds(ref.path, ref.start, ref.end))
        values, rate = read_samples(ref.path, ref.start, ref.end)
        return FileInfo(seconds=len(values) / rate)
    except InputError as error:
        return FileInfo(fault=str(error))


def _with_bar(results: Iterable[FileInfo], total: int) -> Iterable[FileInfo]:
    from tqdm import tqdm

    return tqdm(results, total=total, unit=" files", leave=False, disable=None)  # None: no bar where no terminal is
