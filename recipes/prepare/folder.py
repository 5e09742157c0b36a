"""Write manifests for your own folder of sounds or pictures with a table of captions.

source   your own files
licence  theirs; see that you may use them
needed   TABLE: a csv file (or .tsv) with a header, a column that names the files, and one or several columns of
         captions; or several rows for one file. Names are paths below the table's folder, or below --folder

    python recipes/prepare/folder.py sounds/captions.csv --out sounds --val-share 0.1
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from mmprefix.errors import InputError
from mmprefix.media.files import missing
from mmprefix.recipes.prepare import tables, writing
from mmprefix.recipes.prepare.writing import Kind, ManifestRow, Split

FILE_COLUMNS = ("file", "file_name", "filename", "path", "audio", "image")
KINDS: dict[Kind, frozenset[str]] = {"audio": tables.SOUNDS, "image": tables.PICTURES}


def find_columns(table: Path, header: Collection[str], file: str | None, captions: list[str]) -> tuple[str, list[str]]:
    """Choose the columns of files and of captions: as in the options, or by their names.

    Raises InputError without them.
    """
    file = file or next((name for name in header if name.lower() in FILE_COLUMNS), None)
    captions = captions or [name for name in header if name.lower().startswith("caption")]
    for option, names in (("--file-column", [file] if file else []), ("--caption-columns", captions)):
        absent = [name for name in names if name not in header]
        if absent or not names:
            wanted = f"no column {absent[0]!r}" if absent else "no column has a name that is known"
            raise InputError(f"{table}: {option}: {wanted}; there are {', '.join(header)}")
    return str(file), captions


def read_rows(table: Path, folder: Path, *, file: str | None, columns: list[str], style: str) -> list[ManifestRow]:
    """Read one row a file, with all its captions in the order of ``table``. Raises InputError for a row without."""
    cells = tables.read_table(table)
    file, columns = find_columns(table, list(cells[0][1]), file, columns)
    captions: dict[str, list[str]] = {}
    for place, row in cells:
        texts = [tables.tidy(place, row[column], style) for column in columns if row[column].strip()]
        if not row[file].strip() or not texts:
            raise InputError(f"{place}: {'no caption' if row[file].strip() else 'no file is named'}")
        captions.setdefault(row[file], []).extend(texts)
    paths = {name: str(folder / name) for name in captions}
    return [
        ManifestRow(name, name, None if missing(paths[name]) else paths[name], texts)
        for name, texts in captions.items()
    ]


def kind_of(table: Path, names: Collection[str]) -> Kind:
    """Kind of the files ``names``, sounds or pictures, by their endings. Raises InputError when they are neither."""
    for kind, endings in KINDS.items():
        if all(Path(name).suffix.lower() in endings for name in names):
            return kind
    raise InputError(f"{table}: the endings of the files do not tell sounds or pictures; give --media audio or image")


def hold_back(rows: Sequence[ManifestRow], share: float, seed: int) -> set[str]:
    """Draw the ids of ``share`` of ``rows`` by ``seed`` and their names alone, whatever their order."""
    if not 0 <= share < 1:
        raise InputError(f"--val-share {share}: give a number from 0 on, below 1")
    drawn = sorted((hashlib.sha256(f"{seed} {row.id}".encode()).digest(), row.id) for row in rows)
    count = round(share * len(rows))
    if share and not 0 < count < len(rows):
        raise InputError(f"--val-share {share}: of {len(rows)} files, {count} would be for val; leave some for both")
    return {name for _, name in drawn[:count]}


def prepare(argv: Sequence[str] | None) -> None:
    """Parse the command line, and write the manifests."""
    parser = writing.new_parser("prepare_folder", __doc__, captions=True)
    parser.add_argument("table", type=Path, metavar="TABLE", help="the csv or tsv file")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the files are (default: beside TABLE)")
    parser.add_argument("--media", choices=list(KINDS), help="what the files are (default: as their endings say)")
    text = f"the column that names the files (default: the first of {', '.join(FILE_COLUMNS)})"
    parser.add_argument("--file-column", metavar="NAME", help=text)
    text = "the columns of captions (default: all whose names begin with caption)"
    parser.add_argument("--caption-columns", nargs="+", metavar="NAME", default=[], help=text)
    parser.add_argument(
        "--val-share", type=float, default=0.0, help="share of the files for val (default: 0, all train)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other files for val (default: 0)")
    options = parser.parse_args(argv)
    folder = options.folder or options.table.parent
    columns = options.caption_columns
    rows = read_rows(options.table, folder, file=options.file_column, columns=columns, style=options.captions)
    kind = options.media or kind_of(options.table, [row.name for row in rows])
    held = hold_back(rows, options.val_share, options.seed)
    parts = {"train": [row for row in rows if row.id not in held], "val": [row for row in rows if row.id in held]}
    splits = [Split(name, options.table, part) for name, part in parts.items() if part]
    writing.write_manifests(splits, kind, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``--help``. Returns the exit code: 0 done, 2 wrong usage or data."""
    return writing.exit_code("prepare_folder", prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
