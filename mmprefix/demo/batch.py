"""Captions of many files: a row a file as they come, and the rows as CSV and as a zip of texts."""

from __future__ import annotations

import csv
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mmprefix.demo.limits import Deadline, sentence
from mmprefix.demo.uploads import BatchFile
from mmprefix.errors import InputError

if TYPE_CHECKING:
    from mmprefix.inference.predictor import Predictor

_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # a spreadsheet would run a cell that begins so; some run the wide forms too
_NO_NAME = '<>:"/\\|?*'  # characters that no file may have on some system; two of them would make folders
BATCH_SIZE = 16


@dataclass(frozen=True)
class BatchRow:
    """One file of a batch: its caption and score, or its error."""

    file: str
    caption: str = ""
    score: float | None = None
    error: str = ""


def caption_files(
    model: Predictor, files: Sequence[BatchFile], options: Mapping[str, Any], deadline: Deadline
) -> Iterator[BatchRow]:
    """A row a file, in order, as they come; what is left when the time is over has that as its error."""
    good = [file for file in files if file.path is not None]
    results = stream_candidates(model, [str(file.path) for file in good], options)
    late = f"not reached within {deadline.seconds:,g} s, the time limit of this page"
    for file in files:
        if file.path is None:
            yield BatchRow(file.name, error=file.fault or "")
        elif deadline.is_over:
            yield BatchRow(file.name, error=late)
        else:
            result = next(results)
            if isinstance(result, InputError):
                text = sentence(result, file.path, file.name).removeprefix(f"{file.name}: ")
                yield BatchRow(file.name, error=text)
            else:
                yield BatchRow(file.name, result[0].text, result[0].score)


def stream_candidates(model: Predictor, paths: Sequence[str], options: Mapping[str, Any]) -> Iterator[Any]:
    """Candidates or the InputError of each path, batched and read ahead."""
    return iter(model.stream(paths, batch_size=BATCH_SIZE, **options))


def write_csv(rows: Sequence[BatchRow], path: Path) -> None:
    """Table of ``rows``: file, caption, score, error. A cell that a spreadsheet would run begins with an apostrophe."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "caption", "score", "error"])
        for row in rows:
            score = "" if row.score is None else f"{row.score:.4f}"
            writer.writerow([_plain(row.file), _plain(row.caption), score, _plain(row.error)])


def write_texts(rows: Sequence[BatchRow], path: Path) -> None:
    """Zip with a .txt a caption, called after its file; files without a caption are left out.

    No two have one name, on systems without upper and lower case either, and none is a path.
    """
    captioned = [row for row in rows if not row.error]
    stems = Counter(PurePosixPath(row.file).stem.lower() for row in captioned)
    taken = set[str]()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for row in captioned:
            stem = PurePosixPath(row.file).stem
            plain = "".join("_" if c in _NO_NAME else c for c in (stem if stems[stem.lower()] == 1 else row.file))
            name, number = plain, 1
            while name.lower() in taken:  # dog.jpg and dog.wav beside dog.jpg.png
                number += 1
                name = f"{plain} ({number})"
            taken.add(name.lower())
            archive.writestr(f"{name}.txt", row.caption + "\n")


def _plain(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
