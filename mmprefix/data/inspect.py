"""The headers of input files: whether each can be read, how long a sound is, how large a picture."""

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
    """What a file holds: seconds of sound, or width and height of a picture; or what is wrong with it."""

    seconds: float | None = None
    size: tuple[int, int] | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Inspection:
    """Rows that can be used, the faults of the others, and what was found in each file by column."""

    examples: list[Example]
    faults: list[RowFault]
    found: dict[tuple[str, InputRef], FileInfo]


def inspect(
    examples: Sequence[Example],
    columns: Mapping[str, MediaKind] = COLUMNS,
    deep: bool = True,
    workers: int = 1,
    progress: bool = False,
) -> Inspection:
    """Opens every file that ``columns`` (name → image, audio or signals) name in ``examples``, each file once.

    ``deep`` decodes it whole; otherwise its header is read. ``workers`` threads share the work (decoders are written in
    C and run side by side).
    """
    items = list(dict.fromkeys((key, item) for example in examples for key, item in example.inputs.items()))
    items = [(key, item) for key, item in items if key in columns]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = pool.map(lambda pair: _look(pair[1], columns[pair[0]], deep), items)
        found = dict(zip(items, _bar(results, len(items)) if progress else results, strict=True))
    good: list[Example] = []
    faults: list[RowFault] = []
    for example in examples:
        looks = [found[pair] for pair in example.inputs.items() if pair in found]
        messages = [look.fault for look in looks if look.fault]
        faults += [example.fault(message) for message in messages[:1]]
        good += [] if messages else [example]
    return Inspection(good, faults, found)


def _look(item: InputRef, kind: MediaKind, deep: bool) -> FileInfo:
    try:
        if kind == "signals":
            read_numbers(item.source)
            return FileInfo()
        if kind == "image":
            return FileInfo(size=read_picture(item.path).size if deep else picture_size(item.path))
        if not deep:
            return FileInfo(seconds=sound_seconds(item.path, item.start, item.end))
        values, rate = read_samples(item.path, item.start, item.end)
        return FileInfo(seconds=len(values) / rate)
    except InputError as error:
        return FileInfo(fault=str(error))


def _bar(results: Iterable[FileInfo], total: int) -> Iterable[FileInfo]:
    from tqdm import tqdm

    return tqdm(results, total=total, unit=" files", leave=False, disable=None)  # None: no bar where no terminal is
