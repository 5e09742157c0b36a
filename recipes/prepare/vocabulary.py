"""Write the words of the training captions, one a line: the vocabulary of `mmprefix.decoders.WordDecoder`.

    python recipes/prepare/vocabulary.py audiocaps/train.jsonl --out audiocaps/words.txt

Words are parted by white space and stand in the order in which they first occur. `!` comes first, which the published
code keeps for padding, then `<eos>` and `<unk>`. Several manifests are read one after the other, so that the words of
the first keep their indices. Captions should have been normalised before (`--captions prefix-aac` of the programs that
prepare data).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmprefix.atomic import write_atomically
from mmprefix.cli.main import CommandParser
from mmprefix.data.manifest import listing, read_manifest
from mmprefix.decoders.word_level import END, UNKNOWN
from mmprefix.errors import InputError
from mmprefix.recipes.prepare import tables, writing

PADDING = "!"


def vocabulary(captions: Iterable[str], least: int = 1) -> list[str]:
    """Words that occur ``least`` times or more, behind the padding, the end of text and the unknown word."""
    counts = Counter(word for caption in captions for word in caption.split())
    first = (PADDING, END, UNKNOWN)
    return [*first, *(word for word, count in counts.items() if count >= least and word not in first)]


def build(argv: Sequence[str] | None) -> None:
    """Parse the command line, and write the vocabulary."""
    parser = CommandParser(
        "build_vocabulary",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("manifests", nargs="+", metavar="MANIFEST", help="JSON lines or CSV, of the training captions")
    parser.add_argument("--split", help="take the rows of this split only")
    parser.add_argument("--least", type=int, default=1, help="times that a word must occur (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write, a word a line")
    options = parser.parse_args(argv)
    captions: list[str] = []
    for manifest in options.manifests:
        rows, faults = read_manifest(manifest, options.split)
        if faults:
            raise InputError(f"{len(faults)} bad rows\n{listing(faults, 5)}")
        captions += [caption for row in rows for caption in row.captions]
    if not captions:
        raise InputError(f"{', '.join(options.manifests)}: no captions")
    words = vocabulary(captions, options.least)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise tables.refusal(f"--out {options.out}", error) from error
    write_atomically(
        options.out, lambda fresh: fresh.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    )
    print(f"{options.out}: {len(words)} words of {len(captions)} captions")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``--help``. Returns the exit code: 0 done, 2 wrong usage or data."""
    return writing.exit_code("build_vocabulary", build, argv)


if __name__ == "__main__":
    sys.exit(main())
