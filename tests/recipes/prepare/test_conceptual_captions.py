"""Program that prepares Conceptual Captions: small folders in both layouts, whole and with every fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprefix.recipes.prepare import conceptual_captions as prepare_conceptual_captions
from tiny.datasets import (
    Shell,
    missing_rows,
    program_error,
    read_json_lines,
    run_program,
    write_picture,
)


@pytest.fixture
def conceptual(tmp_path: Path) -> Path:
    root = tmp_path / "cc"
    root.mkdir()
    rows = [f'a "quoted" thing , number {number}\thttp://x.org/{number}.jpg?a=1\n' for number in range(6)]
    (root / "Train_GCC-training.tsv").write_text("".join(rows))
    (root / "Validation_GCC-1.1.0-Validation.tsv").write_text("".join(rows[:2]))
    return root


def test_conceptual_captions_by_number(conceptual: Path, tmp_path: Path, capsys: Shell) -> None:
    for name in ("train/0.jpg", "train/00000001.png", "train/some/000002.jpeg", "train/x.jpg", "val/1.jpg"):
        write_picture(conceptual / name)
    (conceptual / "train" / "3.jpg").write_text("gone")
    run_program("conceptual_captions", conceptual, "--out", tmp_path)
    rows = read_json_lines(tmp_path / "train.jsonl")
    assert [row["image"] for row in rows] == [
        f"cc/train/{name}" for name in ("0.jpg", "00000001.png", "some/000002.jpeg")
    ]
    assert rows[1]["captions"] == ['a "quoted" thing , number 1']
    assert missing_rows(tmp_path)[0][:3] == ["train", "unreadable", "3 http://x.org/3.jpg?a=1"]
    assert missing_rows(tmp_path)[3] == ["val", "missing", "0 http://x.org/0.jpg?a=1", "no such file"]
    text = capsys.readouterr().out
    assert "train: 6 in Train_GCC-training.tsv (published: 3318333)\n  3 written, 2 missing, 1 unreadable" in text
    assert "(published: 15840)" in text
    words = [str(conceptual), "--out", str(tmp_path), "--names-only"]
    assert prepare_conceptual_captions.main(words) == 0
    assert len(read_json_lines(tmp_path / "train.jsonl")) == 4
    assert "give one of them" in program_error(capsys, "conceptual_captions", *words, "--decode")
    run_program("conceptual_captions", conceptual, "--out", tmp_path, "--first-number", "1")
    assert [row["id"] for row in read_json_lines(tmp_path / "train.jsonl")] == ["0", "1"]


def test_conceptual_captions_from_img2dataset(conceptual: Path, tmp_path: Path, capsys: Shell) -> None:
    for key, number, status in ((0, 4, "success"), (10001, 2, "success"), (10002, 3, "failed_to_download")):
        file = tmp_path / "shards" / f"{key // 10000:05d}" / f"{key:09d}.jpg"
        write_picture(file)
        record = {"caption": "x", "url": f"http://x.org/{number}.jpg?a=1", "key": f"{key:09d}", "status": status}
        file.with_suffix(".json").write_text(json.dumps(record))
        file.with_suffix(".txt").write_text("x")
    write_picture(tmp_path / "shards" / "00000" / "000000007.jpg")
    (tmp_path / "shards" / "00001" / "000010001.json").with_name("00001_stats.json").write_text("{}")
    file = conceptual / "Train_GCC-training.tsv"
    file.write_text("caption\turl\n" + file.read_text())  # as img2dataset wants it
    (conceptual / "Validation_GCC-1.1.0-Validation.tsv").unlink()
    run_program("conceptual_captions", conceptual, "--train-pictures", tmp_path / "shards", "--out", tmp_path)
    rows = read_json_lines(tmp_path / "train.jsonl")
    assert [row["id"] for row in rows] == ["2", "4"]
    assert [row["image"] for row in rows] == ["shards/00001/000010001.jpg", "shards/00000/000000000.jpg"]
    assert "train: 6 in Train_GCC" in capsys.readouterr().out


def test_faults_in_conceptual_captions_are_refused(conceptual: Path, tmp_path: Path, capsys: Shell) -> None:
    for name in ("train/0.jpg", "val/0.jpg"):
        write_picture(conceptual / name)
    out = tmp_path / "out"
    run_program("conceptual_captions", conceptual, "--out", out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    file = conceptual / "Validation_GCC-1.1.0-Validation.tsv"
    for line, message in {
        b"no tab\n": ":3: not a caption, a tab and an address",
        b" \thttp://x\n": ":3: an empty caption",
        b"\xff\xfe\thttp://x\n": ": not UTF-8",
    }.items():
        content = file.read_bytes()
        file.write_bytes(content + line)
        assert f"{file}{message}" in program_error(capsys, "conceptual_captions", conceptual, "--out", out)
        file.write_bytes(content)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    words = (conceptual, "--train-pictures", tmp_path / "not", "--out", out)
    assert f"{tmp_path / 'not'}: no such file" in program_error(capsys, "conceptual_captions", *words)
