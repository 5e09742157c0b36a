"""Headers of input files: can each be read, how long is a sound or video, how large a picture?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mmprefix.data.manifest import Example, InputRef, RowFault
from mmprefix.errors import InputError
from mmprefix.media.kinds import KINDS, FileInfo

COLUMNS: Mapping[str, str] = {name: name for name in KINDS}


@dataclass(frozen=True)
class Inspection:
    """Rows that can be used, the faults of the others, and what was found in each file by column."""

    examples: list[Example]
    faults: list[RowFault]
    found: dict[tuple[str, InputRef], FileInfo]


def inspect(
    examples: Sequence[Example],
    columns: Mapping[str, str] = COLUMNS,
    deep: bool = True,
    workers: int = 1,
    progress: bool = False,
) -> Inspection:
    """Open every file that ``columns`` (column → kind, see ``mmprefix.media.kinds``) name in ``examples``, each once.

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


def _look(item: InputRef, kind: str, deep: bool) -> FileInfo:
    try:
        return KINDS[kind].inspect(item.source, item.start, item.end, deep)
    except InputError as error:
        return FileInfo(fault=str(error))


def _bar(results: Iterable[FileInfo], total: int) -> Iterable[FileInfo]:
    from tqdm import tqdm

    return tqdm(results, total=total, unit=" files", leave=False, disable=None)  # None: no bar where no terminal is
