"""Score a captioner of NLVR scenes: the share of statements that it finds likelier where they are true.

    python recipes/score/nlvr.py runs/nlvr/model --manifest nlvr/manifest.jsonl

NLVR shows a sentence with several scenes and says of which it is true. For every sentence and every pair of a scene
where it is true and one where it is false, the sentence ought to be likelier after the first. Chance is one half.
(CIDEr cannot tell: a scene has one sentence of many that are true of it.)
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import mmprefix


def preferred(scored: Iterable[tuple[str, bool, float]]) -> tuple[float, int]:
    """Score (sentence, its truth, log-probability) rows: the share of pairs in right order, and their number."""
    values: dict[str, dict[bool, list[float]]] = defaultdict(lambda: {True: [], False: []})
    for sentence, true, value in scored:
        values[sentence][true].append(value)
    pairs = [(yes, no) for by in values.values() for yes in by[True] for no in by[False]]
    return sum((yes > no) + 0.5 * (yes == no) for yes, no in pairs) / max(1, len(pairs)), len(pairs)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="a saved model")
    parser.add_argument("--manifest", type=Path, required=True, help="NLVR's manifest, with statement and label")
    parser.add_argument("--split", default="test")
    options = parser.parse_args(argv)
    with options.manifest.open(encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row["split"] == options.split]
    files = [str(options.manifest.parent / row["image"]) for row in rows]
    values = mmprefix.load(options.model).score(files, [row["statement"] for row in rows])
    scored = ((row["statement"], row["label"] == "true", value) for row, value in zip(rows, values, strict=True))
    share, pairs = preferred(scored)
    print(f"{len(rows)} statements, {pairs} pairs, {share:.1%} likelier where true")


if __name__ == "__main__":
    main()
