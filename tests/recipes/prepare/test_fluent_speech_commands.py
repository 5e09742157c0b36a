"""Program that prepares Fluent Speech Commands: a small folder in its layout, whole and with every fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmprefix.metrics.slurp_records import read_frame
from mmprefix.slu.schema import read_schema
from tiny.datasets import (
    Shell,
    missing_rows,
    program_error,
    read_json_lines,
    run_program,
    truncate_to_half,
    write_sound,
    write_table,
)

ORDERS = ["path", "speakerId", "transcription", "action", "object", "location"]


@pytest.fixture
def fluent(tmp_path: Path) -> Path:
    root = tmp_path / "fluent"
    orders = {
        "train": [
            ["2BqVo8", "a", "Turn on the lights, please", "activate", "lights", "none"],
            ["2BqVo8", "b", "Change language", "change language", "none", "none"],
            ["4Xz", "c", "Heat up the kitchen", "increase", "heat", "kitchen"],
        ],
        "valid": [["9aB", "d", "Bring me the newspaper", "bring", "newspaper", "none"]],
        "test": [["7cD", "e", "Lamp off", "deactivate", "lamp", "none"]],
    }
    for name, rows in orders.items():
        cells = [[f"wavs/speakers/{speaker}/{file}.wav", speaker, *rest] for speaker, file, *rest in rows]
        write_table(
            root / "data" / f"{name}_data.csv", ["", *ORDERS], [[place, *row] for place, row in enumerate(cells)]
        )
        for path, *_ in cells:
            write_sound(root / path, 1.5)
    return root


def test_fluent(fluent: Path, tmp_path: Path, capsys: Shell) -> None:
    run_program("fluent_speech_commands", fluent, "--out", tmp_path)
    rows = read_json_lines(tmp_path / "train.jsonl")
    assert rows[0] == {
        "id": "wavs/speakers/2BqVo8/a.wav",
        "audio": "fluent/wavs/speakers/2BqVo8/a.wav",
        "transcript": "Turn on the lights, please",
        "intent": "activate_lights_none",
        "action": "activate",
        "object": "lights",
        "location": "none",
        "slots": [],
        "user": "2BqVo8",
        "split": "train",
        "duration": 1.5,
    }
    assert [row["intent"] for row in rows[1:]] == ["change language_none_none", "increase_heat_kitchen"]
    assert {row["intent"] for row in rows} <= read_schema("fluent_speech_commands").intents.keys()
    assert read_frame(rows[2], "", gold=True).name == "increase_heat_kitchen"
    assert [
        row["user"] for row in read_json_lines(tmp_path / "val.jsonl") + read_json_lines(tmp_path / "test.jsonl")
    ] == ["9aB", "7cD"]
    assert missing_rows(tmp_path) == []
    text = capsys.readouterr().out
    assert "train: 3 in train_data.csv (published: 23132)\n  3 written, 0 missing, 0 unreadable\n" in text
    assert "  2 speakers (published: 77)\n  1.50 to 1.50 s" in text
    assert "val: 1 in valid_data.csv (published: 3118)" in text


def test_fluent_recordings_that_are_missing_broken_or_listed_twice(fluent: Path, tmp_path: Path, capsys: Shell) -> None:
    file = fluent / "data" / "train_data.csv"
    file.write_text(file.read_text() + file.read_text().splitlines()[1] + "\n")
    (fluent / "wavs/speakers/2BqVo8/b.wav").unlink()
    truncate_to_half(fluent / "wavs/speakers/4Xz/c.wav")
    (fluent / "data" / "valid_data.csv").unlink()
    run_program("fluent_speech_commands", fluent, "--out", tmp_path, "--decode")
    assert [row["id"][-5:] for row in read_json_lines(tmp_path / "train.jsonl")] == ["a.wav"]
    assert [fault[:3] for fault in missing_rows(tmp_path)] == [
        ["train", "missing", "wavs/speakers/2BqVo8/b.wav"],
        ["train", "unreadable", "wavs/speakers/4Xz/c.wav"],
    ]
    text = capsys.readouterr().out
    assert "train: 3 in train_data.csv (published: 23132)\n  1 written, 1 missing, 1 unreadable\n" in text
    assert "val: skipped, for " in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("speakerId", "speaker"),
            ": no column 'speakerId'; the header says , path, speaker, ",
        ),
        (lambda text: text.replace(",object", ",action"), ": two columns 'action'"),
        (lambda text: text.replace(",heat,", ",,"), ":4: object: an empty cell"),
        (lambda text: text.replace("Heat up the kitchen", " "), ":4: transcription: an empty cell"),
        (
            lambda text: text.replace("8/b", "8/a"),
            ":3: 'wavs/speakers/2BqVo8/a.wav' stands in the table twice, and not",
        ),
        (lambda text: text.replace(",none", ""), ":2: the row has not the 7 cells of the header"),
        (lambda text: text.splitlines()[0], ": no rows"),
        (lambda text: text + "3,gone.wav,x,ü,a,b,c\n", ": not UTF-8"),
    ],
)
def test_faults_in_fluents_tables_are_refused(
    fluent: Path, tmp_path: Path, capsys: Shell, change: Callable[[str], str], message: str
) -> None:
    file = fluent / "data" / "train_data.csv"
    file.write_text(change(file.read_text()), encoding="latin-1")
    assert f"{file}{message}" in program_error(capsys, "fluent_speech_commands", fluent, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fluent_without_files_is_refused(fluent: Path, tmp_path: Path, capsys: Shell) -> None:
    name = "fluent_speech_commands"
    assert "none of these files is there" in program_error(capsys, name, tmp_path / "data", "--out", tmp_path)
    (fluent / "wavs").rename(tmp_path / "elsewhere")
    text = program_error(capsys, name, fluent, "--out", tmp_path / "out")
    assert "no file can be used: wavs/speakers/2BqVo8/a.wav: no such file" in text
    assert list((tmp_path / "out").iterdir()) == []
