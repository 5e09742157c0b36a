"""Write the words of users' texts with their inverse document frequencies: what `mmprefix.encoders.Keywords` knows.

    python recipes/prepare/keywords.py personal_synth/users.jsonl --most 40000 --out runs/keywords.json

Each line of the files is a user: {"user": ..., "history": [texts]}. All texts of a user are one document, as in
attend2u; give the training users only. The words kept are the most frequent ones; weights are those of scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmprefix.atomic import write_atomically
from mmprefix.cli.main import CommandParser
from mmprefix.data.histories import read_histories
from mmprefix.encoders.keywords import WORD
from mmprefix.errors import InputError
from mmprefix.recipes.prepare import tables, writing


def fit_idf(histories: Sequence[Sequence[str]], most: int) -> dict[str, float]:
    """Inverse document frequency of the ``most`` frequent words of the users' ``histories``, by word."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise InputError("scikit-learn is needed: pip install scikit-learn") from error
    vectorizer: Any = TfidfVectorizer(token_pattern=WORD, lowercase=True, max_features=most)
    try:
        vectorizer.fit([" ".join(texts) for texts in histories])
    except ValueError as error:
        raise InputError("no user has a text with a word in it") from error
    return {
        str(word): float(weight)
        for word, weight in zip(vectorizer.get_feature_names_out(), vectorizer.idf_, strict=True)
    }


def build(argv: Sequence[str] | None) -> None:
    """Parse the command line, and write the words."""
    parser = CommandParser(
        "build_keywords", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("users", nargs="+", type=Path, metavar="USERS", help="JSON lines of users and their texts")
    parser.add_argument(
        "--most", type=int, default=5000, help="words to keep, the most frequent (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON file to write")
    options = parser.parse_args(argv)
    if options.most < 1:
        raise InputError(f"--most {options.most}: give a number from 1 on")
    histories = [texts for file in options.users for texts in read_histories(file).values()]
    idf = fit_idf(histories, options.most)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise tables.refusal(f"--out {options.out}", error) from error
    content = json.dumps({"users": len(histories), "idf": idf}, ensure_ascii=False, indent=0)
    write_atomically(options.out, lambda fresh: fresh.write_text(content + "\n", encoding="utf-8"))
    print(f"{options.out}: {len(idf)} words of {len(histories)} users")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see ``--help``. Returns the exit code: 0 done, 2 wrong usage or data."""
    return writing.exit_code("build_keywords", build, argv)


if __name__ == "__main__":
    sys.exit(main())
