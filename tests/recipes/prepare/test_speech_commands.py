"""Program that prepares Speech Commands: a small folder in its layout, whole and with every fault."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mmprefix.data.manifest import read_manifest
from mmprefix.recipes.prepare import speech_commands as prepare_speech_commands
from mmprefix.slu.schema import read_schema
from tiny.datasets import (
    Shell,
    missing_rows,
    program_error,
    read_json_lines,
    run_program,
    truncate_to_half,
    write_sound,
)

# Speakers of v0.02 as its lists have them; 0a7c2a8d is in neither.
SPEAKERS = {"train": "0a7c2a8d", "val": "8b775397", "test": "2aa787cf"}


@pytest.fixture
def words(tmp_path: Path) -> Path:
    root = tmp_path / "speech_commands"
    for word in ("yes", "bed"):
        for speaker in SPEAKERS.values():
            write_sound(root / word / f"{speaker}_nohash_0.wav", 1)
    (root / "validation_list.txt").write_text(
        f"yes/{SPEAKERS['val']}_nohash_0.wav\nbed/{SPEAKERS['val']}_nohash_0.wav\n"
    )
    (root / "testing_list.txt").write_text(
        f"yes/{SPEAKERS['test']}_nohash_0.wav\n\nbed/{SPEAKERS['test']}_nohash_0.wav"
    )
    for noise, seconds in {"running_tap": 2.5, "pink_noise": 1.7, "white_noise": 0.9, "second": 1, "bit": 0.3}.items():
        write_sound(root / "_background_noise_" / f"{noise}.wav", seconds)
    (root / "_background_noise_" / "README.md").write_text("noise")
    return root


def test_speech_commands(words: Path, tmp_path: Path, capsys: Shell) -> None:
    run_program("speech_commands", words, "--out", tmp_path)
    rows = read_json_lines(tmp_path / "train.jsonl")
    assert rows[1] == {
        "id": "yes/0a7c2a8d_nohash_0.wav",
        "audio": "speech_commands/yes/0a7c2a8d_nohash_0.wav",
        "label": "yes",
        "transcript": "yes",
        "user": "0a7c2a8d",
        "split": "train",
        "duration": 1.0,
    }
    for split, speaker in SPEAKERS.items():
        assert [row["id"] for row in read_json_lines(tmp_path / f"{split}.jsonl")] == [
            f"{word}/{speaker}_nohash_0.wav" for word in ("bed", "yes")
        ]
    text = capsys.readouterr().out
    assert "train: 2 in speech_commands (published: 84843)\n  2 written, 0 missing, 0 unreadable\n" in text
    assert "  1.00 to 1.00 s, mean 1.00 s (published: 0 to 1 s)\n" in text
    assert "val: 2 in speech_commands (published: 9981)" in text
    assert {row["label"] for row in rows} <= read_schema("speech_commands").intents.keys()
    run_program("speech_commands", words, "--out", tmp_path, "--version", "v0.01")
    assert "test: 2 in speech_commands (published: 6835)" in capsys.readouterr().out


def test_speech_commands_are_split_by_their_lists_not_by_the_rule(words: Path, tmp_path: Path) -> None:
    (words / "validation_list.txt").write_text("yes/0a7c2a8d_nohash_0.wav\n")
    run_program("speech_commands", words, "--out", tmp_path)
    assert [row["user"] for row in read_json_lines(tmp_path / "val.jsonl")] == ["0a7c2a8d"]
    assert {row["user"] for row in read_json_lines(tmp_path / "train.jsonl")} == {"0a7c2a8d", "8b775397"}


def test_speech_commands_without_lists(words: Path, tmp_path: Path, capsys: Shell) -> None:
    for name in ("validation_list.txt", "testing_list.txt"):
        (words / name).unlink()
    write_sound(words / "yes" / "my own.wav", 0.5)
    run_program("speech_commands", words, "--out", tmp_path)
    assert f"no lists in {words}: split by the rule" in capsys.readouterr().out
    for split, speaker in SPEAKERS.items():
        assert {row["user"] for row in read_json_lines(tmp_path / f"{split}.jsonl") if "user" in row} == {speaker}
    rows = [
        row
        for split in SPEAKERS
        for row in read_json_lines(tmp_path / f"{split}.jsonl")
        if row["id"] == "yes/my own.wav"
    ]
    assert [(row["label"], "user" in row) for row in rows] == [("yes", False)]


def test_the_rule_gives_the_published_splits() -> None:
    """Names from the published lists of v0.01, and the shares that the rule gives."""
    val = ["2643992f_nohash_1.wav", "060cd039_nohash_2.wav", "f5e5e8b0_nohash_0.wav", "c4e1f6e0_nohash_0.wav"]
    test = ["ffa76c4a_nohash_0.wav", "24ad3ebe_nohash_1.wav", "37fc5d97_nohash_0.wav", "c0e0f834_nohash_0.wav"]
    assert {prepare_speech_commands.split_by_rule(name) for name in val} == {"val"}
    assert {prepare_speech_commands.split_by_rule(name) for name in test} == {"test"}
    names = [f"{hashlib.sha256(str(number).encode()).hexdigest()[:8]}_nohash_0.wav" for number in range(4000)]
    splits = [prepare_speech_commands.split_by_rule(name) for name in names]
    assert [round(splits.count(name) / 4000, 1) for name in ("train", "val", "test")] == [0.8, 0.1, 0.1]


def test_speech_commands_files_that_are_missing_or_broken(words: Path, tmp_path: Path, capsys: Shell) -> None:
    (words / "bed" / "8b775397_nohash_0.wav").unlink()
    truncate_to_half(words / "bed" / "2aa787cf_nohash_0.wav")
    write_sound(words / "bed" / "0a7c2a8d_nohash_1.wav", 1.5)
    run_program("speech_commands", words, "--out", tmp_path, "--decode")
    assert [fault[:3] for fault in missing_rows(tmp_path)] == [
        ["val", "missing", "bed/8b775397_nohash_0.wav"],
        ["test", "unreadable", "bed/2aa787cf_nohash_0.wav"],
    ]
    text = capsys.readouterr().out
    assert "val: 2 in speech_commands (published: 9981)\n  1 written, 1 missing, 0 unreadable\n" in text
    assert "  1 not as published: bed/0a7c2a8d_nohash_1.wav (1.50 s)\n" in text


def test_speech_commands_with_silence(words: Path, tmp_path: Path, capsys: Shell) -> None:
    (words / "_background_noise_" / "broken.wav").write_text("no sound")
    run_program("speech_commands", words, "--out", tmp_path, "--silence", "--decode")
    (row, *rest) = [row for row in read_json_lines(tmp_path / "train.jsonl") if row["label"] == "_silence_"]
    assert row == {
        "id": "_background_noise_/pink_noise.wav@0.0",
        "audio": "speech_commands/_background_noise_/pink_noise.wav",
        "label": "_silence_",
        "transcript": "",
        "split": "train",
        "start": 0.0,
        "end": 1.0,
        "duration": 1.0,
    }
    assert [(row["start"], row["end"]) for row in rest] == [(0.5, 1.5)]  # of 1.7 s; the other sounds are too short
    starts = [row["start"] for row in read_json_lines(tmp_path / "val.jsonl") if row["label"] == "_silence_"]
    assert starts == [0.0, 0.5, 1.0]  # of 2.5 s; TensorFlow Datasets lacks the clip that ends with the file, too
    assert [row["label"] for row in read_json_lines(tmp_path / "test.jsonl")] == ["bed", "yes"]
    assert missing_rows(tmp_path)[0][:3] == ["train", "unreadable", "_background_noise_/broken.wav"]
    text = capsys.readouterr().out
    assert "val: 5 in speech_commands (published: 9981)\n  5 written" in text
    assert "  2 words and 3 clips of silence (published: 121)\n  1.00 to 1.00 s" in text
    examples, _ = read_manifest(tmp_path / "val.jsonl")
    assert (examples[-1].inputs["audio"].start, examples[-1].inputs["audio"].end) == (1.0, 2.0)


def test_speech_commands_with_the_official_test(words: Path, tmp_path: Path, capsys: Shell) -> None:
    official = tmp_path / "official"
    names = ["_silence_/0.wav", "_unknown_/bed_2aa787cf_nohash_0.wav.wav", "_unknown_/wow_2aa787cf_nohash_1.wav"]
    for name in (*names, "yes/2aa787cf_nohash_0.wav"):
        write_sound(official / name, 1)
    run_program("speech_commands", words, "--out", tmp_path, "--official-test", official, "--silence")
    keys = ("audio", "label", "transcript", "user")
    assert [tuple(row.get(key) for key in keys) for row in read_json_lines(tmp_path / "test.jsonl")] == [
        ("official/_silence_/0.wav", "_silence_", "", None),
        ("official/_unknown_/bed_2aa787cf_nohash_0.wav.wav", "_unknown_", "bed", "2aa787cf"),
        ("official/_unknown_/wow_2aa787cf_nohash_1.wav", "_unknown_", "wow", "2aa787cf"),
        ("official/yes/2aa787cf_nohash_0.wav", "yes", "yes", "2aa787cf"),
    ]
    train = read_json_lines(tmp_path / "train.jsonl")
    assert [(row["label"], row["transcript"]) for row in train[:2]] == [("_unknown_", "bed"), ("yes", "yes")]
    assert {row["label"] for row in train[2:]} == {"_silence_"}
    assert "test: 4 in official (published: 4890)" in capsys.readouterr().out


def test_faults_in_speech_commands_are_refused(words: Path, tmp_path: Path, capsys: Shell) -> None:
    out = tmp_path / "out"
    run_program("speech_commands", words, "--out", out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def refusal(*more: str | Path, root: Path = words) -> str:
        return program_error(capsys, "speech_commands", root, "--out", out, *more)

    file = words / "validation_list.txt"
    good = file.read_text()
    for content, message in {
        b"bed\n": ":3: 'bed' is not WORD/NAME of a recording",
        b"yes/8b775397_nohash_0.wav\n": ":3: 'yes/8b775397_nohash_0.wav' stands in the lists twice",
        b"\xff\n": ": not UTF-8",
    }.items():
        file.write_bytes(good.encode() + content)
        assert f"{file}{message}" in refusal()
    file.write_text("bed/2aa787cf_nohash_0.wav")
    assert f"{words / 'testing_list.txt'}:3: 'bed/2aa787cf_nohash_0.wav' stands in the lists twice" in refusal()
    file.unlink()
    assert "of validation_list.txt and testing_list.txt only one is there; give both or none" in refusal()
    file.write_text(good)
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: no folders of words" in refusal(root=tmp_path / "empty")
    assert f"{tmp_path}: no folders of words" in refusal(root=tmp_path)  # the words are one folder further down
    assert f"{tmp_path / 'not'}: no such file" in refusal(root=tmp_path / "not")
    assert f"{tmp_path / 'not'}: no such file" in refusal("--official-test", tmp_path / "not")
    assert "invalid choice: 'v3'" in refusal("--version", "v3")
    for noise in (words / "_background_noise_").glob("*.wav"):
        noise.unlink()
    assert f"--silence: no sound in {words / '_background_noise_'}" in refusal("--silence")
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
