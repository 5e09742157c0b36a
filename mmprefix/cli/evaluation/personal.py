"""``mmprefix evaluate --task personal``: texts written for users, against what the users wrote and how they write.

A line is ``{"id": ..., "prediction": ..., "user": ..., "references": [...]}``, as ``mmprefix caption --manifest ...
--out`` writes it: ``caption`` may stand in place of ``prediction``, ``captions`` or ``target`` in place of
``references``. ``user`` is the user whom the model was told, ``true_user`` the one whose reference it is, where that is
another. ``--train`` names the users' own texts: rows of ``user`` with ``captions``, ``caption``, ``target`` or
``history``; of rows with a field ``split`` those of train. A history counts for users who have no other text.

``--shuffled`` is a second file, of the same ids, that the same model wrote while it was told other users. Both files
are scored against the true user of each id (``true_user`` of either file, or else ``user`` of the first), so that a
model which ignores the user has the same figures in both, and a gap of 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmprefix.cli.evaluation.jsonl import format_table, identifier, read_jsonl
from mmprefix.errors import InputError
from mmprefix.metrics.caption import caption
from mmprefix.metrics.style import FEATURES, StyleClassifier, style

LINE = "lines of id, prediction, user and references (lists of texts), as mmprefix caption --manifest writes them"
REFERENCED = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")
_OWN_TEXTS = ("captions", "caption", "target")


class OwnTexts(NamedTuple):
    """Texts (N) of ``--train``, their users (N), and the users who have more than a history."""

    texts: list[str]
    users: list[str]
    seen: frozenset[str]

    def of_group(self, group: str) -> OwnTexts:
        """Texts of the users of a ``group``: all, seen or unseen."""
        kept = [
            pair
            for pair in zip(*self[:2], strict=True)
            if group == "all" or (pair[1] in self.seen) is (group == "seen")
        ]
        return OwnTexts([text for text, _ in kept], [user for _, user in kept], self.seen)


@dataclass(frozen=True)
class PersonalLine:
    """One line: its location (file:line), the text, whom the model was told, whose input it is, and references."""

    location: str
    prediction: str
    user: str
    true_user: str | None
    references: tuple[str, ...]

    @property
    def author(self) -> str:
        """User whose reference it is."""
        return self.user if self.true_user is None else self.true_user


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the options of this task to ``parser``."""
    parser.add_argument(
        "--train",
        nargs="+",
        metavar="FILE",
        help="the users' own texts, JSON lines of user and captions, target or history; of several splits only train",
    )
    parser.add_argument(
        "--shuffled", metavar="FILE", help="the same model's predictions of the same ids, told other users: the gap"
    )
    parser.add_argument(
        "--users",
        choices=("all", "seen", "unseen"),
        default="all",
        help="users to be told apart: all, those who have rows in --train, or those who have a history alone",
    )
    parser.add_argument(
        "--classifier",
        choices=(*FEATURES, "both"),
        default="both",
        help="what tells users by their style: n-grams of words, of characters, or one of each (default: both)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the scores and return 0. Raises InputError that names file and line."""
    if not args.train:
        raise InputError("--task personal needs --train FILE: the users' own texts, a manifest of rows with user")
    lines = read_lines(args.predictions)
    for line in lines.values():
        if line.author != line.user:
            raise InputError(
                f"{line.location}: user {line.user!r} is not true_user {line.author!r}; give this file as --shuffled"
            )
    shuffled = _shuffled(args.shuffled, lines, args.predictions) if args.shuffled else {}
    own = read_own_texts(args.train).of_group(args.users)
    if args.users != "all":
        lines = {name: line for name, line in lines.items() if line.author in set(own.users)}
        shuffled = {name: line for name, line in shuffled.items() if name in lines}
    if not lines:
        raise InputError(f"--users {args.users}: no line of {args.predictions} is one of such a user")
    names = tuple(FEATURES) if args.classifier == "both" else (args.classifier,)
    report = _report(lines, shuffled, {name: StyleClassifier(own.texts, own.users, name) for name in names})
    if args.json:
        sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(_table(report))
    return 0


def read_lines(path: str | Path) -> dict[str, PersonalLine]:
    """Lines of a file by id, in its order; raises InputError with file and line for the first bad line."""
    lines = dict[str, PersonalLine]()
    for number, record in read_jsonl(path):
        name, line = _line(record, f"{path}:{number}")
        if name in lines:
            raise InputError(f"{line.location}: id {name!r} is already used in {lines[name].location}")
        lines[name] = line
    if not lines:
        raise InputError(f"{path}: no predictions; a line is a JSON object with id, prediction and user")
    return lines


def read_own_texts(paths: Sequence[str]) -> OwnTexts:
    """Texts and users of ``--train``: of rows with a split those of train. Raises InputError for a bad row."""
    pairs, histories = list[tuple[str, str]](), dict[str, list[str]]()
    for path in paths:
        rows = [(f"{path}:{number}", record) for number, record in read_jsonl(path)]
        kept = [(place, row) for place, row in rows if not isinstance(row, Mapping) or row.get("split") in _TRAIN]
        if not kept:
            raise InputError(f"--train {path}: no row" + (" with split train" if rows else "s"))
        for place, row in kept:
            if not isinstance(row, Mapping):
                raise InputError(f"{place}: a row must be an object with user and captions, target or history")
            user = _user(row, "user", place)
            key = next((key for key in (*_OWN_TEXTS, "history") if key in row), None)
            if user is None or key is None:
                raise InputError(f"{place}: no {'user' if user is None else 'captions, target or history'} in the row")
            texts = _texts(row[key], f"{place}: {key}")
            if key == "history":
                histories.setdefault(user, []).extend(texts)
            else:
                pairs += [(text, user) for text in texts]
    seen = frozenset(user for _, user in pairs)
    pairs += [(text, user) for user, texts in histories.items() if user not in seen for text in texts]
    return OwnTexts([text for text, _ in pairs], [user for _, user in pairs], seen)


_TRAIN = (None, "", "train")  # values of split of a row to learn from


def _line(record: Any, location: str) -> tuple[str, PersonalLine]:
    """Id and content of one line. Raises InputError."""
    if not isinstance(record, Mapping):
        raise InputError(f"{location}: a line must be an object with id, prediction and user")
    prediction = record.get("prediction", record.get("caption"))  # caption: of mmprefix caption --out
    user, true_user = _user(record, "user", location), _user(record, "true_user", location)
    if "id" not in record or not isinstance(prediction, str):
        lacking = "no id" if "id" not in record else f"prediction must be a string, not {json.dumps(prediction)}"
        raise InputError(f"{location}: {lacking}")
    if user is None:
        raise InputError(f"{location}: no user; mmprefix caption --manifest writes the manifest's field user")
    key = next((key for key in ("references", "captions", "target") if key in record), None)
    references = _texts(record[key], f"{location}: {key}") if key else []
    return identifier(record["id"], location), PersonalLine(location, prediction, user, true_user, tuple(references))


def _user(record: Mapping[str, Any], key: str, location: str) -> str | None:
    """User in the field ``key``; None where there is none. Raises InputError unless it is a text or a number."""
    value = record.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{location}: {key} must be a text or a whole number, not {json.dumps(value)}")
    return str(value)


def _texts(value: Any, location: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{location} must be a text or a list of texts")
    return texts


def _shuffled(path: str, lines: Mapping[str, PersonalLine], own: str) -> dict[str, PersonalLine]:
    """Lines of ``--shuffled`` in the order of ``lines``. Raises InputError where they are not of the same rows."""
    read = read_lines(path)
    for name, line in lines.items():
        if name not in read:
            raise InputError(f"{path}: no id {name!r}, which stands in {line.location}; both need the same rows")
        true_user = read[name].true_user
        if true_user not in (None, line.author):
            raise InputError(f"{read[name].location}: true_user {true_user!r}, but {line.location} has {line.author!r}")
    extra = next((line for name, line in read.items() if name not in lines), None)
    if extra is not None:
        raise InputError(f"{extra.location}: the id does not stand in {own}; both need the same rows")
    same = [name for name, line in lines.items() if read[name].user == line.author]
    if same:
        count = f"in {len(same)} of {len(lines)} rows"
        raise InputError(f"{read[same[0]].location}: user is the row's own, {count}; --shuffled needs another in each")
    return {name: read[name] for name in lines}


def _report(
    lines: Mapping[str, PersonalLine],
    shuffled: Mapping[str, PersonalLine],
    classifiers: Mapping[str, StyleClassifier],
) -> dict[str, Any]:
    """All figures: of the predictions, the ceiling, the shuffled ones, and the gap between the two."""
    users = next(iter(classifiers.values())).users
    authors = {name: line.author for name, line in lines.items()}
    known = set(users)
    unknown = [author for author in authors.values() if author not in known]
    if len(unknown) == len(lines):
        raise InputError(f"no user of the predictions has a text in --train; the first is {unknown[0]!r}")
    report: dict[str, Any] = {"task": "personal", "items": len(lines), "users": len(users), "chance": 1 / len(users)}
    report["without_texts"] = {"items": len(unknown), "users": len(set(unknown))}
    pairs = [(line.prediction, authors[name]) for name, line in lines.items()]
    report["scores"] = _referenced(lines, lines) | _styles(classifiers, pairs)
    own = [(text, authors[name]) for name, line in lines.items() for text in line.references]
    report["ceiling"] = _styles(classifiers, own)
    if shuffled:
        pairs = [(line.prediction, authors[name]) for name, line in shuffled.items()]
        report["shuffled"] = _referenced(shuffled, lines) | _styles(classifiers, pairs)
        report["gap"] = {name: value - report["shuffled"][name] for name, value in report["scores"].items()}
        report["named"] = _styles(classifiers, [(line.prediction, line.user) for line in shuffled.values()])
    return report


def _referenced(lines: Mapping[str, PersonalLine], own: Mapping[str, PersonalLine]) -> dict[str, float]:
    """Scores of predictions against the references of the same ids in ``own``; none where a row has no reference."""
    references = [own[name].references for name in lines]
    if not all(references):
        return {}
    scores = caption([line.prediction for line in lines.values()], references)
    return {name: scores[name] for name in REFERENCED}


def _styles(classifiers: Mapping[str, StyleClassifier], pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Figures of style of (text, user) by classifier and figure; of users whom the classifiers know."""
    scores = dict[str, float]()
    for name, classifier in classifiers.items():
        known = set(classifier.users)
        kept = [(text, user) for text, user in pairs if user in known]
        if kept:
            figures = style(classifier, [text for text, _ in kept], [user for _, user in kept])
            scores |= {f"{name}_{figure}": value for figure, value in figures.items()}
    return scores


def _table(report: Mapping[str, Any]) -> str:
    """Text of a report: the counts, then a row a measure."""
    left = report["without_texts"]
    counts = [("items", str(report["items"])), ("users", f"{report['users']}, chance {report['chance']:.4f}")]
    if left["items"]:
        counts.append(("without texts", f"{left['items']} items of {left['users']} users: not in the figures of style"))
    columns = [name for name in ("scores", "ceiling", "shuffled", "gap", "named") if report.get(name)]
    names = dict.fromkeys(name for column in columns for name in report[column])
    rows: list[Sequence[str]] = [("measure", *("predictions" if name == "scores" else name for name in columns))]
    for name in names:
        cells = [f"{report[column][name]:.4f}" if name in report[column] else "-" for column in columns]
        rows.append((name, *cells))
    return format_table(counts) + format_table(rows)
