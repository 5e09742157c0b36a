"""What the programs that prepare data sets share: options, tables, the check of files, manifests and the report.

A program gives the rows of each split. Here their files are opened, and train.jsonl, val.jsonl, test.jsonl and
missing.txt are written: all of them or, when something is wrong, none. Rows pass through one by one, so that millions
of them need little memory.
"""

from __future__ import annotations

import argparse
import csv
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
from typing import Literal, TextIO, TypeVar

from tqdm import tqdm

from mmprefix.atomic import atomically
from mmprefix.cli import Parser
from mmprefix.media import picture_size, read_picture, read_samples, sound_seconds
from mmprefix.types import InputError

SOUNDS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".mp4", ".aac", ".webm", ".aiff", ".au"})
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_BATCH = 16  # files that a thread takes at once: a task a file would cost as much as reading a header

S = TypeVar("S")
T = TypeVar("T")
Kind = Literal["audio", "image"]


@dataclass(frozen=True)
class Row:
    """A line of a manifest to be. ``path`` is None where no file was found; ``name`` is what was looked for."""

    id: str
    name: str
    path: str | None
    captions: Sequence[str]


@dataclass
class Split:
    """The rows of one split and where they come from; what was published of it; and, later, what was found."""

    name: str
    source: Path
    rows: Iterable[Row]
    published: int | None = None  # rows
    each: int | None = None  # captions a row
    lasts: tuple[float, float] | None = None  # seconds of a sound, to a tenth: least, most
    end: float | None = None  # a longer sound is to be read up to here, in seconds
    lost: Counter[str] = field(default_factory=Counter[str])  # missing, unreadable → rows left out
    captions: Counter[int] = field(default_factory=Counter[int])  # captions a row → rows written
    seconds: list[float] = field(default_factory=list[float])
    odd: list[str] = field(default_factory=list[str])  # rows that are not as published
    trouble: str = ""  # the first file that cannot be used

    def report(self) -> Iterator[str]:
        """What was found beside what was published, in lines."""
        written = self.captions.total()
        told = "" if self.published is None else f" (published: {self.published})"
        yield f"{self.name}: {written + self.lost.total()} in {self.source.name}{told}"
        yield f"  {written} written, {self.lost['missing']} missing, {self.lost['unreadable']} unreadable"
        if not written:
            yield f"  no manifest, for no file can be used: {self.trouble or 'there are no rows'}"
            return
        least, most = min(self.captions), max(self.captions)
        each = f"{least}" if least == most else f"{least} to {most}"
        yield f"  {sum(number * rows for number, rows in self.captions.items())} captions, {each} a row"
        if self.seconds:
            told = f" (published: {self.lasts[0]:g} to {self.lasts[1]:g} s)" if self.lasts else ""
            mean = sum(self.seconds) / len(self.seconds)
            yield f"  {min(self.seconds):.2f} to {max(self.seconds):.2f} s, mean {mean:.2f} s{told}"
        if self.end is not None:
            yield f"  {sum(value > self.end for value in self.seconds)} longer than {self.end:g} s: to be read up to it"
        if self.odd:
            more = f" and {len(self.odd) - 10} more" if len(self.odd) > 10 else ""
            yield f"  {len(self.odd)} not as published: {', '.join(self.odd[:10])}{more}"


# ------------------------------------------------------------------------------------------------- the command line


def new_parser(program: str, description: str | None, captions: bool = False) -> Parser:
    """A parser with the options that all programs have; ``captions`` adds the choice of how captions are written."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(program, description=description, formatter_class=raw, allow_abbrev=False)
    told = """gets train.jsonl, val.jsonl and test.jsonl, as far as there are such splits, and missing.txt: a line for
        each file that is missing or unreadable (split, which of the two, name, reason), none when all is well"""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=told)
    parser.add_argument("--decode", action="store_true", help="decode every file whole (default: read its header)")
    threads = min(8, os.cpu_count() or 1)
    parser.add_argument(
        "--threads", type=_positive, default=threads, help="files read side by side (default: %(default)s)"
    )
    if captions:
        told = "raw: as published, white space tidied; prefix-aac: small letters, and a full stop at the end only"
        parser.add_argument("--captions", choices=["raw", "prefix-aac"], default="raw", help=told)
    parser.set_defaults(names_only=False)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number from 1 on")
    return int(text)


def exit_code(program: str, work: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None) -> int:
    """Does ``work``; 0 when it is done, 2 after a plain line on standard error when usage or data are wrong."""
    try:
        work(argv)
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return 130
    return 0


# -------------------------------------------------------------------------------------------------- what is read


def available(files: Mapping[str, Path]) -> dict[str, Path]:
    """Those of ``files`` (split → file) that are there; says which are not. Raises InputError when none is."""
    found = {name: file for name, file in files.items() if file.is_file()}
    if not found:
        raise InputError(f"none of these files is there: {', '.join(map(str, files.values()))}")
    for name in files:
        if name not in found:
            print(f"{name}: skipped, for {files[name]} is not there")
    return found


def read_table(file: Path, needed: Sequence[str] = ()) -> list[tuple[str, dict[str, str]]]:
    """The rows of a CSV file (.tsv: of a TSV file) with a header: where each stands (FILE:LINE), and its cells.

    Raises InputError when it cannot be read, is not UTF-8, lacks a column of ``needed``, has no rows, or a row has
    more or fewer cells than the header.
    """
    rows: list[tuple[str, dict[str, str]]] = []
    line = 0
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
            header = list(reader.fieldnames or [])
            for name in dict.fromkeys([*needed, *header]):
                if header.count(name) != 1:
                    fault = "two columns" if name in header else "no column"
                    raise InputError(f"{file}: {fault} {name!r}; the header says {', '.join(header) or 'nothing'}")
            line = reader.line_num
            for cells in reader:
                if None in cells or None in cells.values():
                    raise InputError(f"{file}:{line + 1}: the row has not the {len(header)} cells of the header")
                rows.append((f"{file}:{line + 1}", cells))
                line = reader.line_num
    except OSError as error:
        raise refusal(file, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8, somewhere after line {line}; save it as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{file}:{line + 1}: not a table that can be read: {error}") from error
    if not rows:
        raise InputError(f"{file}: no rows")
    return rows


def refusal(file: str | Path, error: OSError) -> InputError:
    """What to raise when the system refuses ``file``."""
    return InputError(f"{file}: {(error.strerror or str(error)).lower()}")


def tidy(place: str, caption: str, style: str = "raw") -> str:
    """``caption`` without needless white space; ``style`` prefix-aac: as Kim et al. 2023 (arXiv 2303.17489) train.

    Raises InputError that names ``place`` when nothing is left.
    """
    words = " ".join(caption.split())
    if style == "prefix-aac":
        words = " ".join(words.lower().replace(",", " , ").split()).replace(" ,", ",").replace(".", "").strip()
    if not words:
        raise InputError(f"{place}: an empty caption")
    return f"{words}." if style == "prefix-aac" else words


def files_below(folder: Path, endings: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Folder and name of each file in or below ``folder`` with one of ``endings``, in order; each folder is read once.

    Raises InputError when a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise refusal(error.filename, error) from error

    for path, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders.sort()
        yield from ((path, name) for name in sorted(names) if os.path.splitext(name)[1].lower() in endings)


def side_by_side(work: Callable[[S], T], values: Iterable[S], threads: int) -> Iterator[T]:
    """What ``work`` gives for each of ``values``, in order, done in threads; few are held in memory at a time."""

    def do(some: list[S]) -> list[T]:
        return [work(value) for value in some]

    rest = iter(values)
    with ThreadPoolExecutor(threads) as pool:
        while many := list(islice(rest, 8 * _BATCH * threads)):
            parts = (many[start : start + _BATCH] for start in range(0, len(many), _BATCH))
            yield from chain.from_iterable(pool.map(do, parts))


# ------------------------------------------------------------------------------------------------ what is written


def write_manifests(splits: Sequence[Split], key: Kind, options: argparse.Namespace) -> None:
    """Opens the files of ``splits``, writes what ``options`` (see ``new_parser``) ask for, and prints the report.

    Raises InputError, and leaves what stands there as it is, when no file can be used or the disk refuses.
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
                atomically(out / file.name, file.replace)
    except OSError as error:
        raise refusal(f"--out {out}", error) from error
    print("\n".join(chain.from_iterable(split.report() for split in splits)))
    for name in sorted({"train", "val", "test"} - {split.name for split in splits if split.captions}):
        if (out / f"{name}.jsonl").exists():
            print(f"{out / name}.jsonl: of an earlier run, left as it is")


def _lines(split: Split, key: Kind, options: argparse.Namespace, missing: TextIO) -> Iterator[str]:
    """The lines of the rows whose files can be used; counts them in ``split``, and lists the others in ``missing``."""
    for row, seconds, fault in _checked(split, key, options):
        if row.path is None or fault is not None:
            kind = "missing" if row.path is None else "unreadable"
            split.lost[kind] += 1
            split.trouble = split.trouble or f"{row.name}: {fault}"
            name = " ".join(row.name.splitlines()).replace("\t", " ")
            missing.write(f"{split.name}\t{kind}\t{name}\t{fault}\n")
            continue
        folder, name = os.path.split(row.path)
        path = f"{_between(folder, str(options.out))}/{name}".removeprefix("./")
        line = {"id": row.id, key: path, "captions": row.captions, "split": split.name}
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


def _checked(split: Split, key: Kind, options: argparse.Namespace) -> Iterator[tuple[Row, float | None, str | None]]:
    """Each row with the seconds of its sound, or with what is wrong with its file."""

    def look(row: Row) -> tuple[Row, float | None, str | None]:
        if row.path is None:
            return row, None, "no such file"
        try:
            return row, None if options.names_only else _seconds(row.path, key, options.decode), None
        except InputError as error:
            return row, None, str(error).removeprefix(f"{row.path}: ")

    rows = tqdm(split.rows, desc=split.name, unit=" files", leave=False, disable=None)  # None: only in a terminal
    return side_by_side(look, rows, options.threads)


def _seconds(path: str, key: Kind, whole: bool) -> float | None:
    """How long the sound in ``path`` lasts, None for a picture; from its header, or decoded. Raises InputError."""
    if key == "image":
        _ = read_picture(path) if whole else picture_size(path)
        return None
    if not whole:
        return sound_seconds(path)
    values, rate = read_samples(path)
    return len(values) / rate


@cache
def _between(folder: str, out: str) -> str:
    """The path of ``folder`` seen from ``out``, whatever links lead to either."""
    return os.path.relpath(os.path.realpath(folder), os.path.realpath(out))
