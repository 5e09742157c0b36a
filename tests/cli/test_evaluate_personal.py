"""`mmprefix evaluate --task personal`: style, references, the gap to shuffled users, and messages about bad files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from mmprefix.cli.evaluate import add_arguments, run
from mmprefix.errors import InputError
from mmprefix.metrics import caption
from mmprefix.metrics.style import StyleClassifier, other_users, style

HABITS = {"u1": "a {} on a hill.", "u2": "A {} ON A HILL!!!", "u3": "{} #hill", "new": "hill: {}?"}
THINGS = ["dog", "cat", "boat", "bird", "kite", "tree"]


def _file(folder: Path, name: str, rows: list[Any]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(["--task", "personal", *(str(argument) for argument in arguments)]))


@pytest.fixture
def train(tmp_path: Path) -> Path:
    rows = [
        {"id": f"{user}-{thing}", "user": user, "captions": [HABITS[user].format(thing)], "split": "train"}
        for user in ("u1", "u2", "u3")
        for thing in THINGS
    ]
    return _file(tmp_path, "train.jsonl", [*rows, {"id": "t", "user": "u9", "captions": ["x"], "split": "test"}])


def _predictions(named: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Lines of a model that writes as the user whom it is named, with references by the row's own user."""
    lines = []
    for user in ("u1", "u2", "u3"):
        for thing in THINGS[:4]:
            name = user if named is None else named[user]
            references = [HABITS[user].format(thing)]
            text = HABITS[name].format(thing)
            line = {"id": f"{user}-{thing}", "user": name, "caption": text, "references": references}
            lines.append(line if named is None else {**line, "true_user": user})
    return lines


NEXT = {"u1": "u2", "u2": "u3", "u3": "u1"}


def test_a_model_that_follows_the_user(train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, other = _file(tmp_path, "p.jsonl", _predictions()), _file(tmp_path, "s.jsonl", _predictions(NEXT))
    assert _run(own, "--train", train, "--shuffled", other, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["items"], report["users"], report["chance"]) == (12, 3, 1 / 3)
    assert report["scores"]["word_accuracy"] == report["scores"]["char_accuracy"] == 1
    assert report["ceiling"]["word_accuracy"] == 1
    assert report["shuffled"]["word_accuracy"] == 0
    assert (report["gap"]["word_accuracy"], report["named"]["word_accuracy"]) == (1, 1)
    lines = _predictions(NEXT)
    expected = caption([line["caption"] for line in lines], [line["references"] for line in lines])
    assert report["shuffled"]["rouge_l"] == expected["rouge_l"]
    assert report["gap"]["rouge_l"] == report["scores"]["rouge_l"] - expected["rouge_l"] > 0


def test_a_model_that_ignores_the_user_has_no_gap(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _predictions()
    others = other_users([line["user"] for line in lines])
    for stated in (False, True):  # the true user is known by the id, or stands in the line
        shuffled = [
            {**line, "user": other} | ({"true_user": line["user"]} if stated else {})
            for line, other in zip(lines, others, strict=True)
        ]
        files = _file(tmp_path, "p.jsonl", lines), _file(tmp_path, "s.jsonl", shuffled[::-1])
        assert _run(files[0], "--train", train, "--shuffled", files[1], "--json") == 0
        report = json.loads(capsys.readouterr().out)
        assert set(report["gap"].values()) == {0.0}
        assert {"bleu_4", "rouge_l", "cider_d", "word_together", "char_best_five"} <= report["gap"].keys()
        assert report["named"]["word_accuracy"] == 0


def test_the_table_is_that_of_the_functions(train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _predictions()
    lines[0]["caption"], lines[5]["caption"] = lines[5]["caption"], lines[0]["caption"]
    assert _run(_file(tmp_path, "p.jsonl", lines), "--train", train, "--classifier", "word") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[:3] == [["items", "12"], ["users", "3,", "chance", "0.3333"], ["measure", "predictions", "ceiling"]]
    own = [json.loads(line) for line in train.read_text().splitlines()][:-1]
    classifier = StyleClassifier([row["captions"][0] for row in own], [row["user"] for row in own])
    figures = style(classifier, [line["caption"] for line in lines], [line["user"] for line in lines])
    printed = {row[0]: row[1:] for row in rows[3:]}
    assert printed["word_accuracy"] == [f"{figures['accuracy']:.4f}", "1.0000"]
    assert figures["accuracy"] == 10 / 12
    scores = caption([line["caption"] for line in lines], [line["references"] for line in lines])
    assert printed["cider_d"] == [f"{scores['cider_d']:.4f}", "-"]


def test_a_history_stands_for_a_user_without_other_texts(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user who is not in train is left out of the figures of style, unless users.jsonl has a history."""
    extra = {"id": "n", "user": "new", "prediction": "hill: cup?", "target": "hill: cup?"}
    predictions = _file(tmp_path, "p.jsonl", [*_predictions(), extra])
    histories = [
        {"user": "new", "history": [HABITS["new"].format(thing) for thing in THINGS]},
        {"user": "another", "history": ["BOATS", "CUPS", "HATS"]},
    ]
    users = _file(tmp_path, "users.jsonl", [*histories, {"user": "u1", "history": ["A STRANGE TEXT!!!"] * 9}])
    assert _run(predictions, "--train", train) == 0
    assert "without texts  1 items of 1 users: not in the figures of style" in capsys.readouterr().out
    assert _run(predictions, "--train", train, users, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["users"], report["without_texts"]) == (5, {"items": 0, "users": 0})
    assert report["scores"]["word_accuracy"] == report["ceiling"]["char_accuracy"] == 1
    for group, items, count in (("seen", 12, 3), ("unseen", 1, 2)):
        assert _run(predictions, "--train", train, users, "--users", group, "--json") == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["items"], report["users"], report["scores"]["word_accuracy"]) == (items, count, 1)
    with pytest.raises(InputError, match=r"--users unseen: no line of .*q.jsonl is one of such a user"):
        _run(_file(tmp_path, "q.jsonl", _predictions()), "--train", train, users, "--users", "unseen")


def test_without_references_there_is_style_alone(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{key: value for key, value in line.items() if key != "references"} for line in _predictions()]
    assert _run(_file(tmp_path, "p.jsonl", lines), "--train", train, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert {name.split("_")[0] for name in report["scores"]} == {"word", "char"}
    assert report["ceiling"] == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x", ":1: a line must be an object with id, prediction and user"),
        ({"id": "a", "prediction": "b"}, ":1: no user; mmprefix caption --manifest writes the manifest's field user"),
        ({"user": "a", "prediction": "b"}, ":1: no id"),
        ({"id": "a", "user": "u1", "prediction": 3}, ":1: prediction must be a string, not 3"),
        ({"id": "a", "user": ["u1"], "prediction": "b"}, ':1: user must be a text or a whole number, not ["u1"]'),
        ({"id": "a", "user": "u1", "prediction": "b", "references": 3}, ":1: references must be a text or a list"),
        ({"id": "a", "user": "u1", "true_user": "u2", "prediction": "b"}, "is not true_user 'u2'; give this file as"),
        ({"id": "a", "user": "u7", "prediction": "b"}, "no user of the predictions has a text in --train; the first"),
    ],
)
def test_a_bad_line_is_named(train: Path, tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        _run(_file(tmp_path, "p.jsonl", [line]), "--train", train)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": "u1"}, "s.jsonl:1: user is the row's own, in 1 of 12 rows; --shuffled needs another in each"),
        ({"true_user": "u3"}, "s.jsonl:1: true_user 'u3', but {}/p.jsonl:1 has 'u1'"),
        ({"id": "other"}, "s.jsonl: no id 'u1-dog', which stands in {}/p.jsonl:1; both need the same rows"),
        ({"id": "u1-cat"}, "s.jsonl:2: id 'u1-cat' is already used in {}/s.jsonl:1"),
    ],
)
def test_shuffled_predictions_of_other_rows_are_refused(
    train: Path, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    shuffled = _predictions(NEXT)
    shuffled[0] |= change
    files = _file(tmp_path, "p.jsonl", _predictions()), _file(tmp_path, "s.jsonl", shuffled)
    with pytest.raises(InputError) as error:
        _run(files[0], "--train", train, "--shuffled", files[1])
    assert message.format(tmp_path) in str(error.value)


def test_own_texts_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    predictions = _file(tmp_path, "p.jsonl", _predictions())
    with pytest.raises(InputError, match="--task personal needs --train FILE"):
        _run(predictions)
    for rows, message in (
        ([], "--train .*own.jsonl: no rows"),
        ([{"user": "a", "captions": ["x"], "split": "val"}], "--train .*own.jsonl: no row with split train"),
        ([{"captions": ["x"]}], "own.jsonl:1: no user in the row"),
        ([{"user": "a"}], "own.jsonl:1: no captions, target or history in the row"),
        ([{"user": "a", "target": 3}], "own.jsonl:1: target must be a text or a list of texts"),
        ([3], "own.jsonl:1: a row must be an object with user and captions"),
    ):
        with pytest.raises(InputError, match=message):
            _run(predictions, "--train", _file(tmp_path, "own.jsonl", rows))
