"""Likelihood and style of what users wrote, under a model that is told the user, another one, or nobody.

    python -m benchmarks.studies.users.personal runs/personal_alfred/model --data data/personal_alfred --write

Negative log-likelihood a word of the test sentences (words are parted by white space; the end of the text counts to the
last one), seen and unseen users apart. "N texts in the prompt": nobody's prefix, and the user's earlier sentences, of
DATA/users.jsonl, before the context, in the prompt of a model that was trained without them. A model whose prompt holds
such texts in training too (``wording.history``) is told texts, its user (where it has a prefix for each), both or
neither. A model with a deep prefix for each user is also given one that nobody trained, made of the user's earlier
sentences: their first keys and values in the decoder ("start"), or their closed-form compaction
(``mmprefix.distillation``), of ``--positions``. Files that a model reads are taken from the manifest. Seconds are CPU
time a text, the making of prefixes left out.

With ``--write`` the model writes each text too: ROUGE-L against what the user wrote, and how often a classifier of the
users' own texts (words; ``mmprefix.metrics.style``, fit on DATA/train.jsonl and users.jsonl, seen users and unseen ones
among themselves) takes it for the user's. "what the users wrote" is that classifier's ceiling. Written texts go to
``--texts-out``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import mmprefix
from benchmarks.lib.report import markdown_table
from mmprefix.cli.evaluation.personal import read_own_texts
from mmprefix.data.histories import NOBODY, read_histories
from mmprefix.distillation.student import Start
from mmprefix.distillation.user_numbers import HistoryOptions
from mmprefix.inference.user_prefixes import distil_users, rows_of_users
from mmprefix.mappers.user_prefix import DeepUserPrefix
from mmprefix.metrics.caption import caption
from mmprefix.metrics.style import StyleClassifier, other_users, style
from mmprefix.users.store import UserStore

Row = dict[str, Any]
Call = dict[str, Any]
Figures = dict[str, dict[str, float]]
STARTS: tuple[Start, ...] = ("text", "compact")
CEILING = "what the users wrote"


def inputs_of(model: Any, rows: Sequence[Row]) -> list[Row]:
    """Files of each row that the model reads."""
    return [{name: row[name] for name in model.kinds if name in ("image", "audio")} for row in rows]


def nll_a_word(model: Any, rows: Sequence[Row], **options: Any) -> list[float]:
    """Negative log-likelihood a word of each row's first caption, under the ``options`` of a call."""
    texts = [row["captions"][0] for row in rows]
    scores = model.score(inputs_of(model, rows), texts, **{"batch_size": 16, **options})
    return [-score / len(text.split()) for score, text in zip(scores, texts, strict=True)]


def texts_before(history: Sequence[str], text: str, count: int) -> str:
    """A context behind the last ``count`` texts of a history, one a line."""
    return "\n".join([*(history[-count:] if count else ()), text])


@dataclass(frozen=True)
class Telling:
    """Calls that tell ``model`` of the users of ``rows``, whose earlier texts are ``histories``."""

    model: Any
    rows: Sequence[Row]
    histories: Mapping[str, Sequence[str]]

    @property
    def reads_ids(self) -> bool:
        """True for a model with a prefix for each user."""
        return "user" in self.model.kinds

    @property
    def shows_texts(self) -> bool:
        """True for a model whose prompt held earlier texts in training."""
        return bool(self.model.model.wording.history)

    def call(self, users: Sequence[str] | None, texts_of: Sequence[str] | None) -> Call:
        """Options of a call that is told these ``users`` by id, and the texts of others; None: nobody, no texts."""
        rows, options = self.rows, Call()
        if self.model.model.reads_text:
            options["context"] = [row.get("context", "") for row in rows]
        if self.reads_ids:
            options["user"] = [NOBODY] * len(rows) if users is None else list(users)
        if self.shows_texts or "history" in self.model.kinds:
            options["history"] = [list(self.histories.get(name, ())) for name in texts_of or [""] * len(rows)]
        return options

    def ways(self, counts: Sequence[int]) -> dict[str, Call]:
        """Options of a call by what the model is told; ``counts`` of texts in a prompt that never had any."""
        users = [row["user"] for row in self.rows]
        others, nobody = other_users(users), self.call(None, None)
        if self.reads_ids and self.shows_texts:
            return {
                "the user": self.call(users, None),
                "nobody": nobody,
                "another user": self.call(others, None),
                "nobody, texts of the user": self.call(None, users),
                "nobody, texts of another user": self.call(None, others),
                "the user, texts of the user": self.call(users, users),
            }
        ways = {"the user": self.call(users, users), "nobody": nobody, "another user": self.call(others, others)}
        for count in counts if "context" in nobody and not self.shows_texts else ():
            pairs = zip(users, nobody["context"], strict=True)
            before = [texts_before(self.histories.get(user, ()), text, count) for user, text in pairs]
            ways[f"nobody, {count} texts in the prompt"] = {**nobody, "context": before, "batch_size": 4}
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


@dataclass(frozen=True)
class Judge:
    """Figures of likelihoods and written texts of ``rows``, by group of users; ``writes``: texts are judged too."""

    rows: Sequence[Row]
    groups: Mapping[str, Sequence[bool]]
    classifiers: Mapping[str, StyleClassifier] = field(default_factory=dict[str, StyleClassifier])

    @classmethod
    def of(cls, rows: Sequence[Row], folder: Path, *, writes: bool) -> Judge:
        """Judge of ``rows``; with ``writes`` classifiers are fit on the texts in ``folder``."""
        seen = [bool(row.get("user_seen", True)) for row in rows]
        groups = {name: own for name, own in (("seen", seen), ("unseen", [not one for one in seen])) if any(own)}
        if not writes:
            return cls(rows, groups)
        texts = read_own_texts([str(folder / name) for name in ("train.jsonl", "users.jsonl")])
        own = {name: texts.of_group(name) for name in groups}
        fit = {n: StyleClassifier(part.texts, part.users) for n, part in own.items() if len(set(part.users)) > 1}
        return cls(rows, groups, fit)

    def likelihood(self, values: Sequence[float]) -> dict[str, float]:
        """Mean of each group."""
        return {name: sum(self._of(values, own)) / sum(own) for name, own in self.groups.items()}

    def writing(self, texts: Sequence[str]) -> dict[str, float]:
        """ROUGE-L of each group, and the share of the texts that are taken for their user's."""
        figures: dict[str, float] = {}
        for name, own in self.groups.items():
            rows, written = self._of(self.rows, own), self._of(texts, own)
            figures[f"{name} rouge_l"] = caption(written, [row["captions"] for row in rows])["rouge_l"]
            if (classifier := self.classifiers.get(name)) is not None:
                figures[f"{name} style"] = style(classifier, written, [row["user"] for row in rows])["accuracy"]
        return figures

    @staticmethod
    def _of(values: Sequence[Any], own: Sequence[bool]) -> list[Any]:
        return [value for value, take in zip(values, own, strict=True) if take]

    def table(self, figures: Figures) -> str:
        """One row for what the model is told."""
        columns = {"seconds": "CPU s a text"}
        for name, own in self.groups.items():
            columns |= {name: f"{name} users, {sum(own)} texts", f"{name} rouge_l": "ROUGE-L", f"{name} style": "style"}
        held = [key for key in columns if any(key in row for row in figures.values())]
        digits = {"seconds": 2}
        rows = [
            [name, *(f"{row[key]:.{digits.get(key, 3)}f}" if key in row else "" for key in held)]
            for name, row in figures.items()
        ]
        return markdown_table(["the model is told", *(columns[key] for key in held)], rows)


def measured(model: Any, judge: Judge, call: Call, *, writes: bool) -> tuple[dict[str, float], list[str]]:
    """Figures under a ``call``, and the texts that the model wrote, if it ``writes``."""
    began = time.process_time()
    values = nll_a_word(model, judge.rows, **call)
    figures = {"seconds": (time.process_time() - began) / len(values), **judge.likelihood(values)}
    if not writes:
        return figures, []
    texts = model(inputs_of(model, judge.rows), **call)
    return {**figures, **judge.writing(texts)}, texts


def each_way(telling: Telling, options: argparse.Namespace) -> Iterator[tuple[str, Call]]:
    """Names and calls that are asked for; while one of the last four is used the model has that prefix of its users."""

    def wanted(*names: str) -> bool:
        return not options.only or any(name.startswith(tuple(options.only)) for name in names)

    ways = telling.ways(options.texts)
    yield from ((name, call) for name, call in ways.items() if wanted(name))
    deep = isinstance(rows_of_users(telling.model.model), DeepUserPrefix)
    for start in STARTS if deep else ():
        names = {f"{who}'s texts as a prefix: {start}": who for who in ("the user", "another user")}
        if wanted(*names):
            with own_prefixes(telling.model, telling.histories, HistoryOptions(options.positions, start)):
                yield from ((name, ways[who]) for name, who in names.items())


def measure_ways(model: Any, judge: Judge, histories: Mapping[str, Sequence[str]], options: Any) -> Figures:
    """Figures of each group of users, and CPU seconds a text, by what ``model`` is told."""
    figures, written = Figures(), dict[str, list[str]]()
    if options.write:
        figures[CEILING] = judge.writing([row["captions"][0] for row in judge.rows])
    for name, call in each_way(Telling(model, judge.rows, histories), options):
        figures[name], written[name] = measured(model, judge, call, writes=options.write)
        print(judge.table({name: figures[name]}).splitlines()[-1], flush=True)
    if options.texts_out:
        lines = (
            {"id": row.get("id"), **{n: texts[k] for n, texts in written.items()}} for k, row in enumerate(judge.rows)
        )
        options.texts_out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return figures


def main(argv: Sequence[str] | None = None) -> Figures:
    """Score and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a saved model that reads a user's id or history")
    parser.add_argument("--data", type=Path, required=True, help="folder with test.jsonl and users.jsonl")
    parser.add_argument("--rows", type=int, help="take so many rows alone, evenly spread")
    parser.add_argument("--texts", type=int, nargs="+", default=[5], help="of a history in the prompt")
    parser.add_argument("--positions", type=int, default=16, help="of a prefix that is made of a history")
    parser.add_argument("--only", nargs="+", metavar="WAY", help="begin of what the model is told")
    parser.add_argument("--write", action="store_true", help="write each text too: ROUGE-L and style")
    parser.add_argument("--texts-out", type=Path, help="with --write: the texts, a line of JSON for each row")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    if options.texts_out and not options.write:
        parser.error("--texts-out: give --write too")
    torch.set_num_threads(1)
    judge = Judge.of(read_rows(options.data, options.rows), options.data, writes=options.write)
    figures = measure_ways(mmprefix.load(options.model), judge, read_histories(options.data / "users.jsonl"), options)
    print(judge.table(figures))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
