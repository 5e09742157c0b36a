"""Write manifests for Clotho (Drossos, Lipping, Virtanen, ICASSP 2020): sounds of 15 to 30 s, five captions each.

source   v1: https://doi.org/10.5281/zenodo.3490684, v2.1: https://doi.org/10.5281/zenodo.4783391
licence  sounds: the Creative Commons licence that clotho_metadata_SPLIT.csv names for each (from Freesound);
         captions: Tampere University's own, for non-commercial use with attribution
needed   in ROOT: clotho_captions_SPLIT.csv, and clotho_audio_SPLIT.7z unpacked as SPLIT/ or clotho_audio_SPLIT/,
         where SPLIT is development (here train), validation (val, not in v1) or evaluation (test)

    mmprefix prepare clotho clotho --out clotho
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mmprefix.errors import InputError
from mmprefix.recipes.prepare import tables, writing
from mmprefix.recipes.prepare.writing import ManifestRow, Split

SPLITS = {"development": "train", "validation": "val", "evaluation": "test"}
# v1: the paper (2,893 + 1,045). v2.1: what the csv files hold, and soundata's loader says; the page at Zenodo says
# 3,840 and 1,046.
PUBLISHED = {
    "v1": {"development": 2893, "evaluation": 1045},
    "v2.1": {"development": 3839, "validation": 1045, "evaluation": 1045},
}
CAPTIONS = [f"caption_{number}" for number in range(1, 6)]


def find_sounds(root: Path, split: str) -> dict[str, str]:
    """Map name → path of the sounds of ``split`` (Clotho's name of it). Raises InputError when there is no folder."""
    folders = [root / f"clotho_audio_{split}", root / "clotho_audio_files" / split, root / split]
    for folder in folders:
        if folder.is_dir():
            return {name: f"{path}/{name}" for path, name in tables.files_below(folder, tables.SOUNDS)}
    raise InputError(f"no folder with the sounds of {split}: {', '.join(map(str, folders))} are not there")


def read_rows(table: Path, sounds: dict[str, str], style: str) -> list[ManifestRow]:
    """Read the rows of ``table``, a csv file of captions. Raises InputError for a file that it names twice."""
    rows: dict[str, ManifestRow] = {}
    for place, cells in tables.read_table(table, ["file_name", *CAPTIONS]):
        name = cells["file_name"]  # as it is: some begin with a space or hold &amp;, and so do those of the files
        if name in rows:
            raise InputError(f"{place}: {name!r} stands in the table twice")
        captions = [tables.tidy(f"{place}: {column}", cells[column], style) for column in CAPTIONS]
        rows[name] = ManifestRow(name, name, sounds.get(name), captions)
    return list(rows.values())


def prepare(argv: Sequence[str] | None) -> None:
    """Parse the command line, and write the manifests."""
    parser = writing.new_parser("mmprefix prepare clotho", __doc__, captions=True)
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder of the csv files and of the sounds")
    parser.add_argument(
        "--version", choices=list(PUBLISHED), default="v2.1", help="which Clotho (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    published = PUBLISHED[options.version]
    present = tables.available({split: options.root / f"clotho_captions_{split}.csv" for split in published})
    splits = [
        Split(
            SPLITS[split],
            table,
            read_rows(table, find_sounds(options.root, split), options.captions),
            published=published[split],
            each=len(CAPTIONS),
            lasts=(15, 30),
        )
        for split, table in present.items()
    ]
    writing.write_manifests(splits, "audio", options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``--help``. Returns the exit code: 0 done, 2 wrong usage or data."""
    return writing.exit_code("prepare_clotho", prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
