"""Program that prepares AudioCaps: a small folder in its layout, whole and with every fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny.datasets import (
    Shell,
    missing_rows,
    program_error,
    read_json_lines,
    run_program,
    write_sound,
    write_table,
)

CLIPS = ["audiocap_id", "youtube_id", "start_time", "caption"]


@pytest.fixture
def audiocaps(tmp_path: Path) -> Path:
    root = tmp_path / "audiocaps"
    train = [
        [1, "-aaaaaaaaaa", 30, "A, b"],
        [2, "bbbbbbbbbbb", 0, "c"],
        [3, "ccccccccccc", 5, "d"],
        [4, "gone", 5, "e"],
    ]
    write_table(root / "train.csv", CLIPS, train)
    val = [[10 + i, ("vvvvvvvvvvv", "wwwwwwwwwww")[i % 2], 7, f"caption {i}"] for i in range(10)]
    write_table(root / "val.csv", CLIPS, val)
    for name in (
        "train/-aaaaaaaaaa.wav",
        "train/Ybbbbbbbbbbb.flac",
        "train/3.ogg",
        "val/vvvvvvvvvvv_7.WAV",
        "val/13.wav",
    ):
        write_sound(root / "clips" / name, 10.5 if "bbb" in name else 4)
    return root


def test_audiocaps(audiocaps: Path, tmp_path: Path, capsys: Shell) -> None:
    run_program("audiocaps", audiocaps, "--out", tmp_path)
    rows = read_json_lines(tmp_path / "train.jsonl")
    assert [row["id"] for row in rows] == ["-aaaaaaaaaa_30", "bbbbbbbbbbb_0", "ccccccccccc_5"]
    assert [row["captions"] for row in rows] == [["A, b"], ["c"], ["d"]]
    assert [row.get("end") for row in rows] == [None, 10.0, None]
    assert rows[1]["duration"] == 10.5
    assert rows[1]["audio"] == "audiocaps/clips/train/Ybbbbbbbbbbb.flac"
    val = read_json_lines(tmp_path / "val.jsonl")
    assert [row["captions"] for row in val] == [[f"caption {i}" for i in range(k, 10, 2)] for k in (0, 1)]
    assert [row["audio"][-9:] for row in val] == ["vvv_7.WAV", "al/13.wav"]
    assert missing_rows(tmp_path) == [["train", "missing", "gone_5", "no such file"]]
    text = capsys.readouterr().out
    assert "test: skipped, for " in text
    assert "train: 4 in train.csv (published: 49838)\n  3 written, 1 missing, 0 unreadable" in text
    assert "  1 longer than 10 s: to be read up to it\n  1 not as published: bbbbbbbbbbb_0 (10.50 s)" in text


def test_audiocaps_in_one_folder_elsewhere(audiocaps: Path, tmp_path: Path, capsys: Shell) -> None:
    rows = [[20, "vvvvvvvvvvv", 7, "one"], [21, "vvvvvvvvvvv", 7, "Two. "]]
    write_table(audiocaps / "test.csv", CLIPS, rows)
    (audiocaps / "clips" / "val").rename(tmp_path / "flat")
    run_program(
        "audiocaps", audiocaps, "--clips", tmp_path / "flat", "--out", tmp_path / "flat", "--captions", "prefix-aac"
    )
    (row,) = read_json_lines(tmp_path / "flat" / "test.jsonl")
    assert (row["audio"], row["captions"]) == ("vvvvvvvvvvv_7.WAV", ["one.", "two."])
    text = capsys.readouterr().out
    assert "  1 not as published: vvvvvvvvvvv_7 (2 captions, not 5)" in text
    assert "train: 4 in train.csv (published: 49838)\n  0 written, 4 missing, 0 unreadable\n  no manifest" in text
    assert not (tmp_path / "flat" / "train.jsonl").exists()


def test_audiocaps_without_clips(audiocaps: Path, tmp_path: Path, capsys: Shell) -> None:
    (tmp_path / "empty").mkdir()
    words = ["audiocaps", audiocaps, "--out", tmp_path / "out", "--clips"]
    assert "no file can be used: -aaaaaaaaaa_30: no such file" in program_error(capsys, *words, tmp_path / "empty")
    assert list((tmp_path / "out").iterdir()) == []
    assert f"{tmp_path / 'not'}: no such file or directory" in program_error(capsys, *words, tmp_path / "not")
