"""Likelihood of what users wrote, under a model that is told the user, another one, or nobody.

    python -m benchmarks.studies.users.personal runs/personal_alfred/model --data data/personal_alfred

Negative log-likelihood a word of the test sentences (words are parted by white space; the end of the text counts to the
last one), seen and unseen users apart. "N texts in the prompt": nobody's prefix, and the user's earlier sentences, of
DATA/users.jsonl, before the context. A model with a deep prefix for each user is also given one that nobody trained,
made of the user's earlier sentences: their first keys and values in the decoder ("start"), or their closed-form
compaction (``mmprefix.distillation``), of ``--positions``. Files that a model reads are taken from the manifest.
Seconds are CPU time a text, the making of prefixes left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import mmprefix
from benchmarks.lib.report import markdown_table
from mmprefix.data.histories import NOBODY, read_histories
from mmprefix.distillation.student import Start
from mmprefix.distillation.user_numbers import HistoryOptions
from mmprefix.inference.user_prefixes import distil_users, rows_of_users
from mmprefix.mappers.user_prefix import DeepUserPrefix
from mmprefix.metrics.style import other_users
from mmprefix.users.store import UserStore

Row = dict[str, Any]
STARTS: tuple[Start, ...] = ("text", "compact")


def nll_a_word(model: Any, rows: Sequence[Row], **options: Any) -> list[float]:
    """Negative log-likelihood a word of each row's first caption, under the ``options`` of a call."""
    texts = [row["captions"][0] for row in rows]
    inputs = [{name: row[name] for name in model.kinds if name in ("image", "audio")} for row in rows]
    scores = model.score(inputs, texts, **{"batch_size": 16, **options})
    return [-score / len(text.split()) for score, text in zip(scores, texts, strict=True)]


def texts_before(history: Sequence[str], text: str, count: int) -> str:
    """A context behind the last ``count`` texts of a history, one a line."""
    return "\n".join([*(history[-count:] if count else ()), text])


def ways_of_telling(
    model: Any, rows: Sequence[Row], histories: Mapping[str, Sequence[str]], counts: Sequence[int]
) -> dict[str, Callable[[], list[float]]]:
    """Likelihoods by what a model is told of a row's user: a function that computes them for each way."""
    users, contexts = [row["user"] for row in rows], [row.get("context", "") for row in rows]
    reads = {"context": contexts} if model.model.reads_text else {}
    others = other_users(users)

    def by_user(names: Sequence[str]) -> list[float]:
        if "history" in model.kinds:
            return nll_a_word(model, rows, history=[histories.get(name, ()) for name in names], **reads)
        return nll_a_word(model, rows, user=list(names), **reads)

    def in_prompt(count: int) -> list[float]:
        before = [texts_before(histories.get(u, ()), text, count) for u, text in zip(users, contexts, strict=True)]
        return nll_a_word(model, rows, user=[NOBODY] * len(rows), context=before, batch_size=4)

    ways = {
        "the user": lambda: by_user(users),
        "nobody": lambda: by_user([NOBODY] * len(rows)),
        "another user": lambda: by_user(others),
    }
    for count in counts if reads else ():
        ways[f"nobody, {count} texts in the prompt"] = lambda count=count: in_prompt(count)
    return ways


@contextmanager
def own_prefixes(
    model: Any, histories: Mapping[str, Sequence[str]], options: HistoryOptions
) -> Generator[None, None, None]:
    """Let ``model`` take each user's prefix from a store, made of the user's earlier texts."""
    with tempfile.TemporaryDirectory() as folder, UserStore(Path(folder) / "users.db", create=True) as store:
        store.add_many(histories)
        _ = list(distil_users(model, store, histories, options, overwrite=True))
        model.users = store
        yield
        model.users = None


def read_rows(folder: Path, count: int | None) -> list[Row]:
    """Test rows, or ``count`` of them, evenly spread, with the files of ``folder``."""
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row |= {name: str(folder / row[name]) for name in ("image", "audio") if name in row}
    return rows[:: max(1, len(rows) // count)] if count else rows


def table(figures: Mapping[str, Mapping[str, float]], counts: Mapping[str, int]) -> str:
    """One row for what the model is told; ``counts`` are the texts of each group of users."""
    head = ["the model is told", "CPU s a text", *(f"{group} users, {count} texts" for group, count in counts.items())]
    rows = [
        [name, f"{own['seconds']:.2f}", *(f"{own[group]:.3f}" for group in counts)] for name, own in figures.items()
    ]
    return markdown_table(head, rows)


def measure_ways(
    model: Any,
    rows: Sequence[Row],
    histories: Mapping[str, Sequence[str]],
    *,
    groups: Mapping[str, Sequence[bool]],
    options: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Mean likelihood of each group of users, and CPU seconds a text, by what ``model`` is told."""
    figures: dict[str, dict[str, float]] = {}

    def wanted(*names: str) -> bool:
        return not options.only or any(name.startswith(tuple(options.only)) for name in names)

    def measure(name: str, score: Callable[[], list[float]]) -> None:
        if not wanted(name):
            return
        began = time.process_time()
        values = score()
        figures[name] = {"seconds": (time.process_time() - began) / len(rows)} | {
            group: sum(value for value, take in zip(values, own, strict=True) if take) / max(1, sum(own))
            for group, own in groups.items()
        }

    ways = ways_of_telling(model, rows, histories, options.texts)
    for name, score in ways.items():
        measure(name, score)
    deep = isinstance(rows_of_users(model.model), DeepUserPrefix)
    for start in STARTS if deep else ():
        own, others = (f"{who} texts as a prefix: {start}" for who in ("the user's", "another user's"))
        if wanted(own, others):
            with own_prefixes(model, histories, HistoryOptions(options.positions, start)):
                measure(own, ways["the user"])
                measure(others, ways["another user"])
    return figures


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Score and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a saved model that reads a user's id or history")
    parser.add_argument("--data", type=Path, required=True, help="folder with test.jsonl and users.jsonl")
    parser.add_argument("--rows", type=int, help="take so many rows alone, evenly spread")
    parser.add_argument("--texts", type=int, nargs="+", default=[5], help="of a history in the prompt")
    parser.add_argument("--positions", type=int, default=16, help="of a prefix that is made of a history")
    parser.add_argument("--only", nargs="+", metavar="WAY", help="begin of what the model is told")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = read_rows(options.data, options.rows)
    histories = read_histories(options.data / "users.jsonl")
    groups = {"seen": [bool(row.get("user_seen", True)) for row in rows]}
    groups["unseen"] = [not seen for seen in groups["seen"]]
    figures = measure_ways(mmprefix.load(options.model), rows, histories, groups=groups, options=options)
    print(table(figures, {group: sum(own) for group, own in groups.items() if any(own)}))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
