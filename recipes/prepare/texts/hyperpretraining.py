"""Cut texts into a manifest on which a network learns to make prefixes of examples: HyperTuning's first training.

    python recipes/prepare/texts/hyperpretraining.py stories.txt --out hyper/train.jsonl

Each line of the file is a text. It is cut in four parts of equally many words, A B C D: ``examples`` are A and D,
``context`` is B, and the caption is C. HyperTuning (Phang et al. 2022), https://arxiv.org/abs/2211.12485.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmprefix.atomic import write_atomically
from mmprefix.cli.main import CommandParser
from mmprefix.errors import InputError
from mmprefix.recipes.prepare import tables, writing

PROGRAM = "hyperpretraining"


def cut_in_four(text: str) -> list[str]:
    """Four parts of ``text`` with equally many words, one more or less; words are parted by one space.

    Raises InputError for fewer than four words.
    """
    words = text.split()
    if len(words) < 4:
        raise InputError(f"text {text[:40]!r}: has {len(words)} words; four or more are needed")
    ends = [len(words) * part // 4 for part in range(5)]
    return [" ".join(words[start:end]) for start, end in pairwise(ends)]


def manifest_rows(texts: Iterable[str], least: int) -> Iterator[dict[str, Any]]:
    """Row of a manifest for each text of ``least`` words or more."""
    for number, text in enumerate(texts):
        if len(text.split()) >= least:
            a, b, c, d = cut_in_four(text)
            yield {"id": str(number), "examples": [a, d], "context": b, "captions": [c]}


def build(argv: Sequence[str] | None) -> None:
    """Parse the command line, and write the manifest."""
    parser = CommandParser(
        "hyperpretraining",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("texts", type=Path, metavar="TEXTS", help="a text file, one text a line")
    parser.add_argument("--least", type=int, default=12, help="words of a text, at least (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the manifest to write")
    options = parser.parse_args(argv)
    if options.least < 4:
        raise InputError(f"--least {options.least}: give a number from 4 on")
    try:
        texts = options.texts.read_text(encoding="utf-8").splitlines()
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise tables.refusal(str(error.filename), error) from error
    rows = [json.dumps(row, ensure_ascii=False) for row in manifest_rows(texts, options.least)]
    if not rows:
        raise InputError(f"{options.texts}: has no text of {options.least} words or more")
    write_atomically(options.out, lambda fresh: fresh.write_text("\n".join(rows) + "\n", encoding="utf-8"))
    print(f"{options.out}: {len(rows)} rows of {len(texts)} texts")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``--help``. Returns the exit code: 0 done, 2 wrong usage or data."""
    return writing.exit_code(PROGRAM, build, argv)


if __name__ == "__main__":
    sys.exit(main())
