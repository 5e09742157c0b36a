"""Likelihood of what users wrote, under a model that is told the user, another one, or nobody.

    python -m benchmarks.studies.personal runs/personal_alfred/model --data data/personal_alfred

Negative log-likelihood a word of the test sentences (words are parted by white space; the end of the text counts to the
last one), seen and unseen users apart. "history in the prompt": nobody's prefix, and the user's earlier sentences, of
DATA/users.jsonl, before the context. Files that a model reads are taken from the manifest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import mmprefix
from benchmarks.lib.report import markdown_table
from mmprefix.data.histories import read_histories
from mmprefix.inference.users import NOBODY
from mmprefix.metrics.style import other_users

Row = dict[str, Any]


def nll_a_word(model: Any, rows: Sequence[Row], **options: Any) -> list[float]:
    """Negative log-likelihood a word of each row's first caption, under the ``options`` of a call."""
    texts = [row["captions"][0] for row in rows]
    inputs = [{name: row[name] for name in model.kinds if name in ("image", "audio")} for row in rows]
    scores = model.score(inputs, texts, **{"batch_size": 16, **options})
    return [-score / len(text.split()) for score, text in zip(scores, texts, strict=True)]


def ways_of_telling(
    model: Any, rows: Sequence[Row], histories: Mapping[str, Sequence[str]]
) -> dict[str, Callable[[], list[float]]]:
    """Likelihoods by what a model is told of a row's user: a function that computes them for each way."""
    users, contexts = [row["user"] for row in rows], [row.get("context", "") for row in rows]
    reads = {"context": contexts} if model.model.reads_text else {}
    others = other_users(users)

    def by_user(names: Sequence[str]) -> list[float]:
        if "history" in model.kinds:
            return nll_a_word(model, rows, history=[histories.get(name, ()) for name in names], **reads)
        return nll_a_word(model, rows, user=list(names), **reads)

    ways = {
        "the user": lambda: by_user(users),
        "nobody": lambda: by_user([NOBODY] * len(rows)),
        "another user": lambda: by_user(others),
    }
    if reads:
        before = ["\n".join([*histories.get(user, ())[:5], text]) for user, text in zip(users, contexts, strict=True)]
        ways["history in the prompt"] = lambda: nll_a_word(model, rows, user=[NOBODY] * len(rows), context=before)
    return ways


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Score and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a saved model that reads a user's id or history")
    parser.add_argument("--data", type=Path, required=True, help="folder with test.jsonl and users.jsonl")
    parser.add_argument("--rows", type=int, help="take so many rows alone, evenly spread")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in (options.data / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = rows[:: max(1, len(rows) // options.rows)] if options.rows else rows
    for row in rows:
        row |= {name: str(options.data / row[name]) for name in ("image", "audio") if name in row}
    histories = read_histories(options.data / "users.jsonl")
    groups = {"seen": [bool(row.get("user_seen", True)) for row in rows]}
    groups["unseen"] = [not seen for seen in groups["seen"]]
    figures: dict[str, dict[str, float]] = {}
    for name, score in ways_of_telling(mmprefix.load(options.model), rows, histories).items():
        values = score()
        figures[name] = {
            group: sum(value for value, take in zip(values, own, strict=True) if take) / max(1, sum(own))
            for group, own in groups.items()
        }
    counts = {group: sum(own) for group, own in groups.items()}
    head = ["the model is told", *(f"{group} users, {count} texts" for group, count in counts.items() if count)]
    body = [[name, *(f"{own[group]:.3f}" for group in groups if counts[group])] for name, own in figures.items()]
    print(markdown_table(head, body))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
