"""Writing of manifests for the programs that prepare data sets: options, the check of files, and the report.

A program brings the rows of each split. This module opens their files and writes train.jsonl, val.jsonl, test.jsonl and
missing.txt: all of them or, when something is wrong, none. Rows pass through one by one, so that millions
of them need little memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TextIO, TypeVar

from tqdm import tqdm

from mmprefix.atomic import write_atomically
from mmprefix.cli.main import CommandParser
from mmprefix.errors import InputError
from mmprefix.media.kinds import KINDS
from mmprefix.recipes.prepare import tables

_BATCH = 16  # files that a thread takes at once: a task a file would cost as much as reading a header

S = TypeVar("S")
T = TypeVar("T")
Kind = Literal["audio", "image", "video"]


@dataclass(frozen=True)
class ManifestRow:
    """Line of a manifest to be written. ``name`` is that of the file sought; ``path`` is None if it is missing.

    ``fields`` are written as they are; ``part`` is the start and end of the part that counts, in seconds.
    """

    id: str
    name: str
    path: str | None
    captions: Sequence[str] = ()  # where there are none, the line has no such field
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    part: tuple[float, float | None] | None = None


@dataclass
class Split:
    """Rows of one split, their source, its published counts and, once it is written, its actual counts."""

    name: str
    source: Path
    rows: Iterable[ManifestRow]
    published: int | None = None  # rows
    each: int | None = None  # captions a row
    lasts: tuple[float, float] | None = None  # seconds of a sound, to a tenth: least, most
    end: float | None = None  # a longer sound is to be read up to here, in seconds
    lost: Counter[str] = field(default_factory=Counter[str])  # missing, unreadable → rows left out
    captions: Counter[int] = field(default_factory=Counter[int])  # captions a row → rows written
    seconds: list[float] = field(default_factory=list[float])
    odd: list[str] = field(default_factory=list[str])  # rows that are not as published
    notes: Sequence[str] = ()  # what else the program found, a line each
    trouble: str = ""  # the first file that cannot be used

    def report(self) -> Iterator[str]:
        """Lines that compare the actual counts with the published ones."""
        written = self.captions.total()
        yield f"{self.name}: {written + self.lost.total()} in {self.source.name}{published(self.published)}"
        yield f"  {written} written, {self.lost['missing']} missing, {self.lost['unreadable']} unreadable"
        yield from (f"  {note}" for note in self.notes)
        if not written:
            yield f"  no manifest, for no file can be used: {self.trouble or 'there are no rows'}"
            return
        least, most = min(self.captions), max(self.captions)
        if most:
            each = f"{least}" if least == most else f"{least} to {most}"
            yield f"  {sum(number * rows for number, rows in self.captions.items())} captions, {each} a row"
        if self.seconds:
            published_range = f" (published: {self.lasts[0]:g} to {self.lasts[1]:g} s)" if self.lasts else ""
            mean = sum(self.seconds) / len(self.seconds)
            yield f"  {min(self.seconds):.2f} to {max(self.seconds):.2f} s, mean {mean:.2f} s{published_range}"
        if self.end is not None:
            yield f"  {sum(value > self.end for value in self.seconds)} longer than {self.end:g} s: to be read up to it"
        if self.odd:
            more = f" and {len(self.odd) - 10} more" if len(self.odd) > 10 else ""
            yield f"  {len(self.odd)} not as published: {', '.join(self.odd[:10])}{more}"


def published(count: int | None) -> str:
    """Text to follow an actual count: the published one, or nothing if there is none."""
    return "" if count is None else f" (published: {count})"


# ------------------------------------------------------------------------------------------------- the command line


def new_parser(program: str, description: str | None, captions: bool = False) -> CommandParser:
    """Make a parser with the options that all programs have; ``captions`` adds the choice of how they are written."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = CommandParser(program, description=description, formatter_class=raw, allow_abbrev=False)
    add_common_options(parser)
    if captions:
        text = "raw: as published, white space tidied; prefix-aac: small letters, and a full stop at the end only"
        parser.add_argument("--captions", choices=["raw", "prefix-aac"], default="raw", help=text)
    return parser


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``write_manifests`` to ``parser``."""
    text = """gets train.jsonl, val.jsonl and test.jsonl, as far as there are such splits, and missing.txt: a line for
        each file that is missing or unreadable (split, which of the two, name, reason), none when all is well"""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=text)
    parser.add_argument("--decode", action="store_true", help="decode every file whole (default: read its header)")
    threads = min(8, os.cpu_count() or 1)
    parser.add_argument(
        "--threads", type=_positive, default=threads, help="files read side by side (default: %(default)s)"
    )
    parser.set_defaults(names_only=False)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number from 1 on")
    return int(text)


def exit_code(program: str, work: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None) -> int:
    """Call ``work``; returns 0 when done, 2 after a plain line on standard error when usage or data are wrong."""
    try:
        work(argv)
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return 130
    return 0


def side_by_side(work: Callable[[S], T], values: Iterable[S], threads: int) -> Iterator[T]:
    """Map ``work`` over ``values`` in threads, results in order; few are held in memory at a time."""

    def do(some: list[S]) -> list[T]:
        return [work(value) for value in some]

    rest = iter(values)
    with ThreadPoolExecutor(threads) as pool:
        while many := list(islice(rest, 8 * _BATCH * threads)):
            parts = (many[start : start + _BATCH] for start in range(0, len(many), _BATCH))
            yield from chain.from_iterable(pool.map(do, parts))


# ------------------------------------------------------------------------------------------------ what is written


def write_manifests(splits: Sequence[Split], key: Kind | None, options: argparse.Namespace) -> None:
    """Open the files of ``splits``, write manifests as in ``options`` (see ``new_parser``), and print the report.

    ``key`` is the kind of the files; None: the rows are text alone, and no file is sought.
    Raises InputError, and leaves older manifests as they are, when no file can be used or the disk refuses.
    """
    out: Path = options.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=out) as space:
            with Path(space, "missing.txt").open("w", encoding="utf-8") as missing:
                for split in splits:
                    lines = _lines(split, key, options, missing)
                    for first in lines:  # of a split without any, there is no manifest
                        with Path(space, f"{split.name}.jsonl").open("w", encoding="utf-8") as stream:
                            stream.writelines(chain([first], lines))
            if not any(split.captions for split in splits):
                raise InputError(f"no file can be used: {'; '.join(filter(None, (each.trouble for each in splits)))}")
            for file in sorted(Path(space).iterdir()):
                write_atomically(out / file.name, file.replace)
    except OSError as error:
        raise tables.refusal(f"--out {out}", error) from error
    print("\n".join(chain.from_iterable(split.report() for split in splits)))
    for name in sorted({"train", "val", "test"} - {split.name for split in splits if split.captions}):
        if (out / f"{name}.jsonl").exists():
            print(f"{out / name}.jsonl: of an earlier run, left as it is")


def _lines(split: Split, key: Kind | None, options: argparse.Namespace, missing: TextIO) -> Iterator[str]:
    """Make the lines of rows whose files can be used; count them in ``split``, and list the others in ``missing``."""
    for row, seconds, fault in _checked(split, key, options):
        if fault is not None:
            kind = "missing" if row.path is None else "unreadable"
            split.lost[kind] += 1
            split.trouble = split.trouble or f"{row.name}: {fault}"
            name = " ".join(row.name.splitlines()).replace("\t", " ")
            missing.write(f"{split.name}\t{kind}\t{name}\t{fault}\n")
            continue
        file = {} if key is None or row.path is None else {key: _relative(row.path, options.out)}
        captions = {"captions": row.captions} if row.captions else {}
        line: dict[str, Any] = {"id": row.id, **file, **captions, **row.fields, "split": split.name}
        if row.part is not None:
            line["start"] = row.part[0]
            line |= {} if row.part[1] is None else {"end": row.part[1]}
        split.captions[len(row.captions)] += 1
        if split.each not in (None, len(row.captions)):
            split.odd.append(f"{row.name} ({len(row.captions)} captions, not {split.each})")
        if seconds is not None:
            line["duration"] = round(seconds, 3)
            split.seconds.append(seconds)
            if split.lasts and not split.lasts[0] <= round(seconds, 1) <= split.lasts[1]:
                split.odd.append(f"{row.name} ({seconds:.2f} s)")
            if split.end is not None and seconds > split.end:
                line["end"] = split.end
        yield json.dumps(line, ensure_ascii=False) + "\n"


def _checked(
    split: Split, key: Kind | None, options: argparse.Namespace
) -> Iterator[tuple[ManifestRow, float | None, str | None]]:
    """Pair each row with the seconds of its sound, or with the fault of its file."""

    def check(row: ManifestRow) -> tuple[ManifestRow, float | None, str | None]:
        if key is None:
            return row, None, None
        if row.path is None:
            return row, None, "no such file"
        try:
            return row, None if options.names_only else _seconds(row.path, row.part, key, options.decode), None
        except InputError as error:
            return row, None, str(error).removeprefix(f"{row.path}: ")

    rows = tqdm(split.rows, desc=split.name, unit=" files", leave=False, disable=None)  # None: only in a terminal
    return side_by_side(check, rows, options.threads)


def _seconds(path: str, part: tuple[float, float | None] | None, key: Kind, whole: bool) -> float | None:
    """Duration in seconds of the ``part`` of the sound or video in ``path``, decoded ``whole`` or not; None for others.

    Raises InputError when the file cannot be used.
    """
    start, end = part or (0.0, None)
    return KINDS[key].inspect(path, start, end, whole).seconds


def _relative(path: str, out: Path) -> str:
    """Path of the file ``path`` as a manifest in ``out`` names it."""
    folder, name = os.path.split(path)
    return f"{_between(folder, str(out))}/{name}".removeprefix("./")


@cache
def _between(folder: str, out: str) -> str:
    """Path of ``folder`` seen from ``out``, whatever links lead to either."""
    return os.path.relpath(os.path.realpath(folder), os.path.realpath(out))
