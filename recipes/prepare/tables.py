"""Input of the programs that prepare data sets: tables of captions, and the names of the files below a folder."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprefix.errors import InputError

SOUNDS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".mp4", ".aac", ".webm", ".aiff", ".au"})
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


def available(files: Mapping[str, Path]) -> dict[str, Path]:
    """Select those of ``files`` (split → file) that exist; print those that do not. Raises InputError if none does."""
    present = {name: file for name, file in files.items() if file.is_file()}
    if not present:
        raise InputError(f"none of these files is there: {', '.join(map(str, files.values()))}")
    for name in files:
        if name not in present:
            print(f"{name}: skipped, for {files[name]} is not there")
    return present


def read_table(file: Path, needed: Sequence[str] = ()) -> list[tuple[str, dict[str, str]]]:
    """Read the rows of a CSV file (.tsv: of a TSV file) with a header: the position (FILE:LINE) of each, and its cells.

    Raises InputError when the file cannot be read, is not UTF-8, lacks a column of ``needed``, has no rows, or a row
    has more or fewer cells than the header.
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


def read_json(file: Path) -> Any:
    """Content of a JSON file. Raises InputError for one that cannot be read, or is no JSON."""
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise refusal(file, error) from error
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from error


def refusal(file: str | Path, error: OSError) -> InputError:
    """Error to raise when the system refuses ``file``."""
    return InputError(f"{file}: {(error.strerror or str(error)).lower()}")


def tidy(place: str, caption: str, style: str = "raw") -> str:
    """Tidy the white space of ``caption``; ``style`` prefix-aac: as Kim et al. 2023 (arXiv 2303.17489) train.

    Raises InputError that names ``place`` when nothing is left.
    """
    words = " ".join(caption.split())
    if style == "prefix-aac":
        words = " ".join(words.lower().replace(",", " , ").split()).replace(" ,", ",").replace(".", "").strip()
    if not words:
        raise InputError(f"{place}: an empty caption")
    return f"{words}." if style == "prefix-aac" else words


def files_below(folder: Path, endings: frozenset[str]) -> Iterator[tuple[str, str]]:
    """List folder and name of the files in and below ``folder`` with one of ``endings``, in order.

    Each folder is read once. Raises InputError when a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise refusal(error.filename, error) from error

    for path, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders.sort()
        yield from ((path, name) for name in sorted(names) if os.path.splitext(name)[1].lower() in endings)
