"""Write manifests for Fluent Speech Commands (Lugosch et al., Interspeech 2019): orders to a smart home.

source   https://fluent.ai/fluent-speech-commands-a-dataset-for-spoken-language-understanding-research/
licence  Fluent.ai's own, in the download, for academic research (others call it CC BY-NC-ND 4.0)
needed   in ROOT, the unpacked download: data/train_data.csv, data/valid_data.csv (here val), data/test_data.csv, and
         the recordings that they name, wavs/speakers/SPEAKER/NAME.wav

    mmprefix prepare fluent_speech_commands fluent_speech_commands_dataset --out fluent

"intent" is action_object_location in the data set's own words, as in recipes/schemas/fluent_speech_commands.yaml, where
one of 31 commands is all that is asked: so "slots" is empty, and the three stand by themselves. "user" is the speaker.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mmprefix.errors import InputError
from mmprefix.media.source import missing
from mmprefix.recipes.prepare import tables, writing
from mmprefix.recipes.prepare.writing import ManifestRow, Split

# Split → name of the table, recordings and speakers as the paper counts them (arXiv 1904.03670).
SPLITS = {"train": ("train", 23132, 77), "val": ("valid", 3118, 10), "test": ("test", 3793, 10)}
PARTS = ("action", "object", "location")
COLUMNS = ("path", "speakerId", "transcription", *PARTS)


def read_rows(table: Path, root: Path) -> list[ManifestRow]:
    """Read the rows of ``table``. Raises InputError for an empty cell, or a recording named twice in other words."""
    rows: dict[str, ManifestRow] = {}
    for place, cells in tables.read_table(table, COLUMNS):
        for column in COLUMNS:
            if not cells[column].strip():
                raise InputError(f"{place}: {column}: an empty cell")
        name = cells["path"]
        path = f"{root}/{name}"
        fields = {
            "transcript": tables.tidy(place, cells["transcription"]),
            "intent": "_".join(cells[part] for part in PARTS),
            **{part: cells[part] for part in PARTS},
            "slots": [],
            "user": cells["speakerId"],
        }
        if name in rows and rows[name].fields != fields:
            raise InputError(f"{place}: {name!r} stands in the table twice, and not with the same cells")
        rows[name] = ManifestRow(name, name, None if missing(path) else path, fields=fields)
    return list(rows.values())


def prepare(argv: Sequence[str] | None) -> None:
    """Parse the command line, and write the manifests."""
    parser = writing.new_parser("mmprefix prepare fluent_speech_commands", __doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder of data/ and wavs/")
    options = parser.parse_args(argv)
    files = {name: options.root / "data" / f"{table}_data.csv" for name, (table, _, _) in SPLITS.items()}
    splits: list[Split] = []
    for name, table in tables.available(files).items():
        rows = read_rows(table, options.root)
        _, recordings, speakers = SPLITS[name]
        note = f"{len({row.fields['user'] for row in rows})} speakers{writing.published(speakers)}"
        splits.append(Split(name, table, rows, published=recordings, notes=[note]))
    writing.write_manifests(splits, "audio", options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``--help``. Returns the exit code: 0 done, 2 wrong usage or data."""
    return writing.exit_code("prepare_fluent_speech_commands", prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
