"""Score transcripts: the word error rate of what ``mmprefix transcribe --manifest ... --out FILE`` wrote.

    python recipes/score/transcripts.py transcripts.jsonl

Rows hold ``asr`` (what was written) and ``transcript`` (what was said). Case and punctuation do not count: both go
through Whisper's own normalizer, of English (numbers become digits, contractions are spelled out) or of any language.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from mmprefix.errors import InputError
from mmprefix.metrics.edit_distance import wer


def word_errors(rows: Iterable[dict[str, Any]], normalize: Callable[[str], str]) -> tuple[float, int, int]:
    """Word error rate of rows with ``asr`` and ``transcript``, sentences without an error, and sentences.

    Raises InputError where no row has both.
    """
    pairs = [
        (normalize(row["asr"]), normalize(row["transcript"])) for row in rows if row.keys() >= {"asr", "transcript"}
    ]
    if not pairs:
        raise InputError("no row has both asr and transcript; write them by mmprefix transcribe --manifest FILE --out")
    rate = wer([written for written, _ in pairs], [spoken for _, spoken in pairs])
    return rate, sum(written == spoken for written, spoken in pairs), len(pairs)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help="what transcribe wrote: JSON lines with asr and transcript")
    parser.add_argument("--language", default="en", help="en, or another code: no rules of English then")
    options = parser.parse_args(argv)
    with options.file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    english = options.language == "en"
    try:
        rate, right, count = word_errors(rows, EnglishTextNormalizer({}) if english else BasicTextNormalizer())
    except InputError as error:
        sys.exit(f"{options.file}: {error}")
    print(f"{count} sentences, word error rate {rate:.3f}, {right} sentences without an error")


if __name__ == "__main__":
    main()
