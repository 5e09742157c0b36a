"""Write manifests for Conceptual Captions (Sharma et al., ACL 2018): pictures of the web, one caption each.

source   https://ai.google.com/research/ConceptualCaptions/download: addresses and captions, not the pictures
licence  captions and addresses: free for any purpose, Google LLC to be named as the source; pictures: their owners'
needed   in ROOT: Train_GCC-training.tsv and Validation_GCC-1.1.0-Validation.tsv (caption, tab, address; no header, but
         one that says caption, tab, url does no harm), and the pictures, in ROOT/train and ROOT/val or as said below:
         either named by the number of their row (12.jpg, 00000012.jpg ...), or as img2dataset writes them with
         --output_format files (00000/000000012.jpg beside 00000/000000012.json), which are found by their address.
         Many addresses are dead, so that nobody has all pictures: the manifests hold the others

    mmprefix prepare conceptual_captions cc3m --out cc3m
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmprefix.errors import InputError
from mmprefix.recipes.prepare import tables, writing
from mmprefix.recipes.prepare.writing import ManifestRow, Split

Find = Callable[[int, str], str | None]  # number and address of a row → path of its picture

TABLES = {"train": "Train_GCC-training.tsv", "val": "Validation_GCC-1.1.0-Validation.tsv"}
# https://www.tensorflow.org/datasets/community_catalog/huggingface/conceptual_captions
PUBLISHED = {"train": 3318333, "val": 15840}


def read_lines(table: Path) -> Iterator[tuple[str, str]]:
    """Read caption and address of each row. Raises InputError that names the line which is not of this form."""
    try:
        with table.open(encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                caption, tab, address = line.rstrip("\r\n").partition("\t")
                if not tab or not address.strip() or "\t" in address:
                    raise InputError(f"{table}:{number}: not a caption, a tab and an address")
                if number > 1 or (caption, address) != ("caption", "url"):
                    yield tables.tidy(f"{table}:{number}", caption), address.strip()
    except OSError as error:
        raise tables.refusal(table, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{table}: not UTF-8 ({error.reason})") from error


def find_pictures(folder: Path, first: int, threads: int) -> Find:
    """Read ``folder`` once; returns the function that finds a row's picture in it, rows counted from ``first`` on."""
    numbered: dict[int, str] = {}
    described = False  # by img2dataset, in a file beside each picture
    for path, name in tables.files_below(folder, tables.PICTURES | {".json"}):
        stem, ending = os.path.splitext(name)
        if stem.isascii() and stem.isdecimal():
            described = described or ending == ".json"
            if ending != ".json":
                numbered.setdefault(int(stem), f"{path}/{name}")
    if not described:
        return lambda number, _: numbered.get(number + first)
    by_address: dict[int, str] = {}  # by hash: the texts themselves would fill the memory
    addresses = writing.side_by_side(read_address, numbered.values(), threads)
    for path, address in zip(numbered.values(), addresses, strict=True):
        if address is not None:
            by_address.setdefault(hash(address), path)
    return lambda _, address: by_address.get(hash(address))


def read_address(picture: str) -> str | None:
    """Read the address of ``picture`` that img2dataset noted; None without a note, or if it was not fetched."""
    try:
        with open(f"{os.path.splitext(picture)[0]}.json", "rb") as file:
            note = json.load(file)
        return note["url"].strip() if note.get("status", "success") == "success" else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def make_rows(table: Path, find: Find) -> Iterator[ManifestRow]:
    """Make the rows of ``table``, with their numbers, from 0 on, as ids."""
    for number, (caption, address) in enumerate(read_lines(table)):
        yield ManifestRow(str(number), f"{number} {address}", find(number, address), [caption])


def prepare(argv: Sequence[str] | None) -> None:
    """Parse the command line, and write the manifests."""
    parser = writing.new_parser("mmprefix prepare conceptual_captions", __doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder of the tsv files")
    for name in TABLES:
        text = f"the pictures of {name} (default: ROOT/{name})"
        parser.add_argument(f"--{name}-pictures", type=Path, metavar="DIR", help=text)
    parser.add_argument("--first-number", type=int, default=0, help="that of the first row's picture (default: 0)")
    text = "take pictures by their names and open none: quick, and blind to broken files"
    parser.add_argument("--names-only", action="store_true", help=text)
    options = parser.parse_args(argv)
    if options.names_only and options.decode:
        raise InputError("--names-only and --decode: give one of them")
    splits: list[Split] = []
    for name, table in tables.available({name: options.root / file for name, file in TABLES.items()}).items():
        folder = getattr(options, f"{name}_pictures") or options.root / name
        rows = make_rows(table, find_pictures(folder, options.first_number, options.threads))
        splits.append(Split(name, table, rows, published=PUBLISHED[name], each=1))
    writing.write_manifests(splits, "image", options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``--help``. Returns the exit code: 0 done, 2 wrong usage or data."""
    return writing.exit_code("prepare_conceptual_captions", prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
