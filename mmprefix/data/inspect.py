"""Inspection of input files: whether each can be read, its length in seconds, its size in pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mmprefix.data.manifest import Example, InputRef, RowFault
from mmprefix.errors import InputError
from mmprefix.media.kinds import FILE_KINDS, KINDS, FileInfo

COLUMNS: Mapping[str, str] = {name: name for name in FILE_KINDS}


@dataclass(frozen=True)
class Inspection:
    """Rows that can be used, the faults of the others, and the FileInfo of each (column, input)."""

    examples: list[Example]
    faults: list[RowFault]
    files: dict[tuple[str, InputRef], FileInfo]


def inspect(
    examples: Sequence[Example],
    columns: Mapping[str, str] = COLUMNS,
    *,
    deep: bool = True,
    workers: int = 1,
    progress: bool = False,
) -> Inspection:
    """Open every file of ``examples`` in one of ``columns`` (name → kind, see ``mmprefix.media.kinds``), each once.

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


def _file_info(ref: InputRef, kind: str, deep: bool) -> FileInfo:
    try:
        return KINDS[kind].inspect(ref.source, ref.start, ref.end, deep)
    except InputError as error:
        return FileInfo(fault=str(error))


def _with_bar(results: Iterable[FileInfo], total: int) -> Iterable[FileInfo]:
    from tqdm import tqdm

    return tqdm(results, total=total, unit=" files", leave=False, disable=None)  # None: no bar where no terminal is
