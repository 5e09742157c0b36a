"""Labels that a logistic regression on words and pairs of words gets right: a baseline for models that read text.

python -m benchmarks.studies.words runs/slurp_asr/manifest.jsonl --label intent --train transcript asr --test asr
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def accuracy(rows: Sequence[Row], label: str, train: Sequence[str], test: str) -> dict[str, float]:
    """Share of right labels of each split but "train", learned from the text fields ``train`` of that one."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(words, LogisticRegression(C=10, max_iter=1000))
    learned = [
        (row[field], row[label]) for field in train for row in rows if row["split"] == "train" and row.get(field)
    ]
    model.fit([text for text, _ in learned], [value for _, value in learned])
    shares: dict[str, float] = {}
    for split in sorted({row["split"] for row in rows} - {"train"}):
        own = [row for row in rows if row["split"] == split]
        predicted = model.predict([row[test] for row in own])
        shares[split] = sum(value == row[label] for value, row in zip(predicted, own, strict=True)) / len(own)
    return shares


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("manifest", type=Path, help="JSON lines with split, label and texts")
    parser.add_argument("--label", default="intent", help="field of the label")
    parser.add_argument("--train", nargs="+", default=["transcript", "asr"], help="text fields to learn from")
    parser.add_argument("--test", default="asr", help="text field to be tested on")
    options = parser.parse_args(argv)
    with options.manifest.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    shares = accuracy(rows, options.label, options.train, options.test)
    print(", ".join(f"{split} {share:.3f}" for split, share in shares.items()))


if __name__ == "__main__":
    main()
