"""Write manifests for AudioCaps (Kim et al., NAACL 2019): sounds of 10 s, one caption in train, five in val and test.

source   csv files: https://github.com/cdjkim/audiocaps, folder dataset; sounds: YouTube, as AudioSet names them
licence  captions: the repository's licence is MIT, its README says free for academic purposes only; keep to both.
         Sounds: their makers'; fetch them under YouTube's terms
needed   in ROOT: train.csv, val.csv, test.csv; and below ROOT or --clips the clips, 10 s from start_time on: in one
         folder or in several, of any kind of sound, named by youtube_id, Y + youtube_id, youtube_id_start_time or
         audiocap_id. Videos vanish, and nobody has all clips: the manifests hold those that are there

    mmprefix prepare audiocaps audiocaps --clips audiocaps/wav --out audiocaps

A clip that is longer than 10 s gets "end": 10.0, for published code reads the first 10 s (Kim et al. 2023, arXiv
2303.17489); "duration" is that of the whole file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mmprefix.recipes.prepare import tables, writing
from mmprefix.recipes.prepare.writing import ManifestRow, Split

# Clips by dataset/README.md of the authors' repository, and captions a clip by counting in their csv files.
PUBLISHED = {"train": (49838, 1), "val": (495, 5), "test": (975, 5)}
SECONDS = 10.0


def find_clips(folder: Path) -> dict[str, str]:
    """Map name without ending → path of all sounds in and below ``folder``; of two with one name, the first counts."""
    clips: dict[str, str] = {}
    for path, name in tables.files_below(folder, tables.SOUNDS):
        clips.setdefault(os.path.splitext(name)[0], f"{path}/{name}")
    return clips


def read_rows(table: Path, clips: dict[str, str], style: str) -> list[ManifestRow]:
    """Read one row a clip, with all its captions in the order of ``table``."""
    captions: dict[tuple[str, str], list[str]] = {}
    numbers: dict[tuple[str, str], list[str]] = {}
    for place, cells in tables.read_table(table, ["audiocap_id", "youtube_id", "start_time", "caption"]):
        clip = cells["youtube_id"], cells["start_time"]
        captions.setdefault(clip, []).append(tables.tidy(place, cells["caption"], style))
        numbers.setdefault(clip, []).append(cells["audiocap_id"])
    rows: list[ManifestRow] = []
    for (video, start), texts in captions.items():
        names = [f"{video}_{start}", video, f"Y{video}", *numbers[video, start]]
        path = next((clips[name] for name in names if name in clips), None)
        rows.append(ManifestRow(names[0], names[0], path, texts))
    return rows


def prepare(argv: Sequence[str] | None) -> None:
    """Parse the command line, and write the manifests."""
    parser = writing.new_parser("mmprefix prepare audiocaps", __doc__, captions=True)
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder of the csv files")
    parser.add_argument("--clips", type=Path, metavar="DIR", help="the folder of the clips (default: ROOT)")
    options = parser.parse_args(argv)
    present = tables.available({name: options.root / f"{name}.csv" for name in PUBLISHED})
    clips = find_clips(options.clips or options.root)
    splits = [
        Split(name, table, read_rows(table, clips, options.captions), *PUBLISHED[name], lasts=(0, SECONDS), end=SECONDS)
        for name, table in present.items()
    ]
    writing.write_manifests(splits, "audio", options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``--help``. Returns the exit code: 0 done, 2 wrong usage or data."""
    return writing.exit_code("prepare_audiocaps", prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
