"""Write manifests for Personality-Captions (Shuster et al., CVPR 2019): comments in 215 personalities; one is a user.

source   http://parl.ai/downloads/personality_captions/personality_captions.tgz; pictures: those of YFCC100M
licence  comments: see ParlAI's page of the task; pictures: each its own Creative Commons licence
needed   in ROOT: train, val (or valid) and test, as json (a list of objects) or csv (with a header), with the fields
         image_hash, personality and comment, and in the test perhaps additional_comments; and the pictures, in
         yfcc_images/ or as said below, named HASH.jpg. Fields candidates and 500_candidates are not taken over

    mmprefix prepare personality_captions personality_captions --pictures yfcc_images --out personalities

The json is that which ParlAI's task reads. That the csv has the same columns is chosen here. A personality is no
person: users are styles that crowd workers were asked for.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprefix.errors import InputError
from mmprefix.recipes.prepare import tables, writing
from mmprefix.recipes.prepare.personal import output
from mmprefix.recipes.prepare.personal.pictures import PictureFolder
from mmprefix.recipes.prepare.personal.posts import Post

SPLITS = {"train": "train", "val": "val", "valid": "val", "test": "test"}
NEEDED = ("image_hash", "personality", "comment")


def read_file(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Place and fields of each row of a json or csv file. Raises InputError for a file of another form."""
    if file.suffix != ".json":
        yield from tables.read_table(file, NEEDED)
        return
    rows = tables.read_json(file)
    if not isinstance(rows, list):
        raise InputError(f"{file}: not a list of comments")
    yield from ((f"{file}: comment {number}", row) for number, row in enumerate(rows))


def find_files(root: Path) -> dict[str, Path]:
    """Map split → file. Raises InputError without one for train."""
    files = {
        split: file
        for name, split in SPLITS.items()
        for ending in ("csv", "json")
        if (file := root / f"{name}.{ending}").is_file()
    }
    if "train" not in files:
        raise InputError(f"{root}: neither train.json nor train.csv is there")
    return files


def make_posts(files: Mapping[str, Path], pictures: PictureFolder) -> tuple[list[Post], list[str]]:
    """Post of each comment, and lines for the report. Raises InputError for a row without its fields."""
    posts: list[Post] = []
    empty = 0
    for split, file in files.items():
        for number, (place, row) in enumerate(read_file(file)):
            for key in NEEDED:
                if not isinstance(row, Mapping) or not isinstance(row.get(key), str):
                    raise InputError(f"{place}: no {key}")
            texts = [" ".join(text.split()) for text in (row["comment"], *_more(row.get("additional_comments"), place))]
            texts = tuple(text for text in texts if text)
            empty += not texts
            name, user = row["image_hash"], row["personality"].strip()
            if texts:
                path = pictures.find(f"{name}.jpg") or pictures.find(name)
                posts.append(Post(f"{split}-{number}", user, texts, name, path, split=split))
    return posts, [f"{empty} comments without a text left out"] if empty else []


def _more(value: Any, place: str) -> list[str]:
    """Further comments of a row: a list, or one as Python or JSON writes it into a cell."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value) if value.strip() else []
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise InputError(f"{place}: additional_comments is no list") from None
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InputError(f"{place}: additional_comments must be a list of texts")
    return value


def prepare(argv: Sequence[str] | None) -> None:
    """Parse the command line, and write the manifests."""
    parser = output.new_parser("mmprefix prepare personality_captions", __doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder of train, val and test")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="the pictures (default: ROOT/yfcc_images)")
    options = parser.parse_args(argv)
    posts, notes = make_posts(find_files(options.root), PictureFolder(options.pictures or options.root / "yfcc_images"))
    output.write_posts(posts, options.root, options, notes=notes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``--help``. Returns the exit code: 0 done, 2 wrong usage or data."""
    return writing.exit_code("prepare_personality_captions", prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
