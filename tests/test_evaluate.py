"""`mmprefix evaluate`: what it prints, and what it says about a bad file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from tiny_bert import save_bert

from mmprefix.evaluate import add_arguments, read_predictions, run
from mmprefix.metrics import caption
from mmprefix.metrics.caption import NAMES
from mmprefix.types import InputError

ROWS = [
    {"id": "a", "prediction": "A dog barks.", "references": ["a dog barks", "the dog is barking"], "file": "a.wav"},
    {"id": 2, "prediction": "rain falls on a roof", "references": ["Rain falls."]},
    {"id": "c", "prediction": "", "references": ["a bell rings"]},
]


def _file(folder: Path, *lines: object) -> Path:
    path = folder / "predictions.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def _run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(argument) for argument in arguments]))


def test_a_table_of_all_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(_file(tmp_path, ROWS[0], "", ROWS[1], ROWS[2])) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    want = caption([row["prediction"] for row in ROWS], [row["references"] for row in ROWS])
    assert rows[:2] == [["tokenizer", "ptb"], ["items", "3"]]
    assert rows[2:] == [[name, f"{want[name]:.4f}"] for name in NAMES]


def test_json_in_full_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(_file(tmp_path, *ROWS), "--json", "--tokenize", "none", "--metrics", "cider_d, exact_match") == 0
    want = caption([row["prediction"] for row in ROWS], [row["references"] for row in ROWS], "none")
    assert json.loads(capsys.readouterr().out) == {
        "task": "caption",
        "tokenizer": "none",
        "items": 3,
        "scores": {"cider_d": want["cider_d"], "exact_match": want["exact_match"]},
        "not_available": {},
    }


def test_what_is_not_available_is_said_beside_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = _file(tmp_path, *ROWS)
    assert _run(path, "--metrics", "bleu_1,meteor,fense") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("bleu_1 ")
    assert lines[3].split(maxsplit=1)[1].startswith("meteor is not available: ")
    assert lines[4].split(maxsplit=1)[1].startswith("fense is not available: ")
    assert _run(path, "--metrics", "bleu_1,fense", "--fense-sentences", "nowhere", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert list(report["scores"]) == ["bleu_1"]
    assert "fluency detector" in report["not_available"]["fense"]


def test_measures_on_demand_come_with_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_bert(tmp_path / "sentences", 1)
    options = ["--metrics", "sbert_sim,bleu_1", "--fense-sentences", folder, "--json"]
    assert _run(_file(tmp_path, *ROWS), *options) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert list(scores) == ["sbert_sim", "bleu_1"]
    assert 0 < scores["sbert_sim"] < 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "x", ', ":2: not JSON ("),
        ("[1]", ":2: a line must be an object"),
        ({"id": "x", "references": ["a"]}, ":2: no prediction; a line needs"),
        ({"prediction": "a"}, ":2: no id and no references; a line needs"),
        ({"id": None, "prediction": "a", "references": ["a"]}, ":2: id must be a string"),
        ({"id": "x", "prediction": None, "references": ["a"]}, ":2: prediction must be a string, not null"),
        ({"id": "x", "prediction": "a", "references": "a"}, ":2: references must be a list of strings"),
        ({"id": "x", "prediction": "a", "references": ["a", 1]}, ":2: references must be a list of strings"),
        ({"id": "x", "prediction": "a", "references": []}, ":2: no references for id 'x'"),
        ({"id": "a", "prediction": "a", "references": ["a"]}, ":2: id 'a' stands in line 1 already"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, said: str) -> None:
    path = _file(tmp_path, ROWS[0], line)
    with pytest.raises(InputError) as error:
        _run(path)
    assert str(error.value).startswith(str(path) + said)
    assert "\n" not in str(error.value)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing.jsonl: No such file"):
        _run(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="Is a directory"):
        _run(tmp_path)
    with pytest.raises(InputError, match="no predictions"):
        _run(_file(tmp_path, "", " "))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(InputError, match="not UTF-8 text"):
        _run(tmp_path / "latin.jsonl")


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode() + b"\r\n")
    assert read_predictions(tmp_path / "p.jsonl").ids == ["a"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--task", "slu"], "--task slu is not built yet; use --task caption"),
        (["--task", "detection"], "--task detection is not built yet"),
        (["--metrics", "bleu_1,cidre"], "--metrics cidre: no such measure; use some of bleu_1"),
        (["--metrics", ","], "--metrics ,: no such measure"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, options: list[str], said: str) -> None:
    with pytest.raises(InputError) as error:
        _run(_file(tmp_path, *ROWS), *options)
    assert str(error.value).startswith(said)
