"""Programs that prepare spoken commands: small folders in each set's own layout, whole and with every fault."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmprefix.data.manifest import read_manifest
from mmprefix.metrics.slurp_records import read_frame
from mmprefix.recipes.prepare import slurp as prepare_slurp
from mmprefix.recipes.prepare import speech_commands as prepare_speech_commands
from mmprefix.slu.schema import read_schema
from tiny.datasets import (
    Shell,
    missing_rows,
    program,
    program_error,
    read_json_lines,
    run_program,
    truncate_to_half,
    write_sound,
    write_table,
)
from tiny.recorded import PARITY, needs_parity

# ------------------------------------------------------------------------------------------------------------ SLURP


def sentence(number: int, text: str, files: list[str], **fields: Any) -> dict[str, Any]:
    tokens = [{"surface": word, "id": place, "lemma": word, "pos": "NN"} for place, word in enumerate(text.split())]
    recordings = [{"file": file, "wer": 0.0, "ent_wer": None, "status": "correct"} for file in files]
    record = {"slurp_id": number, "sentence": text, "sentence_annotation": text, "intent": "alarm_set", "action": "set"}
    return {**record, "tokens": tokens, "scenario": "alarm", "recordings": recordings, "entities": [], **fields}


def write(file: Path, records: list[Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def slurp(tmp_path: Path) -> Path:
    """Folder of the texts, in a small copy of SLURP's repository with all its recordings."""
    root = tmp_path / "slurp" / "dataset" / "slurp"
    time = [{"span": [4, 5], "type": "time"}, {"span": [0], "type": "order_type"}]
    train = [
        sentence(1, "Wake me up at Eight O'Clock", ["audio-1-headset.flac", "audio-1.flac"], entities=time),
        sentence(2, "play  jazz ", ["audio--2.flac"], scenario="play", action="music", intent="play_jazz"),
    ]
    made = [sentence(7, "wake me", ["audio-7a-synth.flac", "audio-7b-synth.flac"])]
    parts = {"train": train, "train_synthetic": made, "devel": [sentence(3, "stop", ["audio-3.flac"])]}
    parts["test"] = [sentence(4, "what time is it", ["audio-4.flac"], scenario="datetime", action="query")]
    for name, records in parts.items():
        write(root / f"{name}.jsonl", records)
        folder = tmp_path / "slurp" / "audio" / ("slurp_synth" if name == "train_synthetic" else "slurp_real")
        for recording in (recording for record in records for recording in record["recordings"]):
            write_sound(folder / recording["file"])
    return root


def test_slurp(slurp: Path, tmp_path: Path, capsys: Shell) -> None:
    out = tmp_path / "out"
    run_program("slurp", slurp, "--out", out)
    rows = read_json_lines(out / "train.jsonl")
    assert rows[0] == {
        "id": "audio-1-headset",
        "audio": "../slurp/audio/slurp_real/audio-1-headset.flac",
        "transcript": "Wake me up at Eight O'Clock",
        "intent": "alarm_set",
        "scenario": "alarm",
        "action": "set",
        "slots": [["time", "eight o'clock"], ["order_type", "wake"]],
        "slurp_id": 1,
        "file": "audio-1-headset.flac",
        "split": "train",
        "duration": 0.5,
    }
    assert [row["id"] for row in rows] == ["audio-1-headset", "audio-1", "audio--2"]
    assert (rows[2]["intent"], rows[2]["transcript"], rows[2]["slots"]) == ("play_music", "play jazz", [])
    assert [row["id"] for row in read_json_lines(out / "val.jsonl")] == ["audio-3"]
    assert read_json_lines(out / "test.jsonl")[0]["intent"] == "datetime_query"
    assert missing_rows(out) == []
    text = capsys.readouterr().out
    assert "train: 3 in train.jsonl (published: 50628)\n  3 written, 0 missing, 0 unreadable\n  2 sentences" in text
    assert "  2 sentences (published: 11514), 0 without any recording that is there\n" in text
    assert '  1 sentences whose field "intent" is not scenario_action\n  0.50 to 0.50 s' in text
    assert "val: 1 in devel.jsonl (published: 8690)" in text
    assert "captions" not in text.split("test: 1 in")[0]  # check-data speaks of them


def test_slurp_real_synthetic_or_both(slurp: Path, tmp_path: Path, capsys: Shell) -> None:
    run_program("slurp", slurp, "--out", tmp_path / "made", "--train", "synthetic")
    made = read_json_lines(tmp_path / "made" / "train.jsonl")
    assert [row["audio"] for row in made] == [f"../slurp/audio/slurp_synth/audio-7{part}-synth.flac" for part in "ab"]
    assert [row["id"] for row in read_json_lines(tmp_path / "made" / "test.jsonl")] == ["audio-4"]
    text = capsys.readouterr().out
    assert "train: 2 in train_synthetic.jsonl (published: 69253)" in text
    assert "  1 sentences, 0 without any recording" in text  # how many there should be is not published
    run_program("slurp", slurp, "--out", tmp_path / "both", "--train", "both")
    ids = [row["id"] for row in read_json_lines(tmp_path / "both" / "train.jsonl")]
    assert ids == ["audio-1-headset", "audio-1", "audio--2", "audio-7a-synth", "audio-7b-synth"]
    assert f"train: 5 in train.jsonl and train_synthetic.jsonl (published: {50628 + 69253})" in capsys.readouterr().out


def test_slurp_recordings_that_are_missing_broken_or_listed_twice(slurp: Path, tmp_path: Path, capsys: Shell) -> None:
    folder = slurp.parents[1] / "audio" / "slurp_real"
    (folder / "audio-1-headset.flac").unlink()
    (folder / "audio--2.flac").unlink()
    truncate_to_half(folder / "audio-3.flac")
    again = sentence(8, "wake me again", ["audio-1.flac", "audio-8.flac"])
    write(slurp / "train.jsonl", [*read_json_lines(slurp / "train.jsonl"), again, sentence(9, "never said", [])])
    run_program("slurp", slurp, "--out", tmp_path / "all", "--decode")
    assert [(row["id"], row["slurp_id"]) for row in read_json_lines(tmp_path / "all" / "train.jsonl")] == [
        ("audio-1", 1)
    ]
    assert not (tmp_path / "all" / "val.jsonl").exists()
    assert [fault[:3] for fault in missing_rows(tmp_path / "all")] == [
        ["train", "missing", "audio-1-headset.flac"],
        ["train", "missing", "audio--2.flac"],
        ["train", "missing", "audio-8.flac"],
        ["val", "unreadable", "audio-3.flac"],
    ]
    text = capsys.readouterr().out
    assert "train: 4 in train.jsonl (published: 50628)\n  1 written, 3 missing, 0 unreadable\n  4 sentences" in text
    assert "11514), 2 without any recording that is there" in text
    assert "  1 listed again, of no effect: audio-1.flac\n" in text
    assert "  no manifest, for no file can be used: audio-3.flac: " in text


def test_slurp_one_recording_a_sentence(slurp: Path, tmp_path: Path, capsys: Shell) -> None:
    (slurp.parents[1] / "audio" / "slurp_real" / "audio-1-headset.flac").unlink()
    (slurp.parents[1] / "audio" / "slurp_real" / "audio--2.flac").unlink()
    run_program("slurp", slurp, "--out", tmp_path, "--recordings", "one")
    assert [row["id"] for row in read_json_lines(tmp_path / "train.jsonl")] == ["audio-1"]  # the first that is there
    assert missing_rows(tmp_path) == [["train", "missing", "audio--2.flac", "no such file"]]
    assert "train: 2 in train.jsonl (published: 11514)\n  1 written, 1 missing" in capsys.readouterr().out


def test_slurp_with_its_recordings_elsewhere_and_in_another_form(slurp: Path, tmp_path: Path, capsys: Shell) -> None:
    write_sound(tmp_path / "wav" / "slurp_real" / "audio-4.wav")
    (slurp / "train.jsonl").unlink()
    (slurp / "devel.jsonl").unlink()
    run_program("slurp", slurp, "--out", tmp_path, "--audio", tmp_path / "wav")
    (row,) = read_json_lines(tmp_path / "test.jsonl")
    assert (row["audio"], row["file"]) == ("wav/slurp_real/audio-4.wav", "audio-4.flac")
    assert "train: skipped, for " in capsys.readouterr().out


def test_slurp_manifest_has_the_same_gold_frames_as_its_sentences(slurp: Path, tmp_path: Path) -> None:
    run_program("slurp", slurp, "--out", tmp_path)
    rows = read_json_lines(tmp_path / "train.jsonl")
    frames = [read_frame(record, "", gold=True) for record in read_json_lines(slurp / "train.jsonl")]
    ours = [read_frame(row, "", gold=True) for row in rows]
    assert [(frame.joined, frame.slots) for frame in ours] == [(f.joined, f.slots) for f in (frames[0], *frames)]
    assert [frame.keys["file"] for frame in ours] == [(row["file"],) for row in rows]
    examples, _ = read_manifest(tmp_path / "train.jsonl")
    assert examples[0].extra["slots"] == rows[0]["slots"]


@needs_parity
def test_slurp_fillers_of_the_real_test_part(tmp_path: Path) -> None:
    records = read_json_lines(PARITY / "slurp_gold.jsonl")
    for record in records:
        record["sentence"] = " ".join(token["surface"] for token in record["tokens"])
    write(tmp_path / "test.jsonl", records)
    split = prepare_slurp.make_split("test", {"test": tmp_path / "test.jsonl"}, {}, one=False)
    rows = {row.name: row for row in split.rows}
    assert len(rows) == sum(len(record["recordings"]) for record in records) == 11619
    for record in records:
        frame = read_frame(record, "", gold=True)
        for name in frame.keys["file"]:
            ours = read_frame({**rows[name].fields, "id": rows[name].id}, "")
            assert (ours.intent, ours.slots) == (frame.joined, frame.slots)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"slurp_id": 5, "sentence"', ":2: not JSON ("),
        ("[]", ":2: not a sentence of SLURP ("),
        ("null", ":2: not a sentence of SLURP ("),
        ({"recordings": 3}, ":2: not a sentence of SLURP ("),
        ({"recordings": [{}]}, ":2: no field 'file'"),
        ({"tokens": None}, ":2: not a sentence of SLURP ("),
        ({"tokens": [{"id": 0}]}, ":2: no field 'surface'"),
        ({"sentence": " "}, ':2: sentence must be a text that is not empty, not " "'),
        ({"scenario": None}, ":2: scenario must be a text that is not empty, not null"),
        (
            {"entities": [{"type": "time", "span": [0, 2]}]},
            ":2: an entity spans the tokens [0, 2], but the sentence has 2",
        ),
        ({"entities": [{"type": "time", "span": [-1]}]}, ":2: an entity spans the tokens [-1], but the sentence has 2"),
        ({"entities": [{"type": "time", "span": []}]}, ":2: an entity spans the tokens [], but the sentence has 2"),
        ({"entities": [{"type": "time", "span": ["0"]}]}, ":2: not a sentence of SLURP ("),
        ({"entities": [{"span": [0]}]}, ":2: no field 'type'"),
        (b"\xff\xfe", ": not UTF-8, somewhere after line 0"),
    ],
)
def test_slurp_faults_of_the_texts(slurp: Path, tmp_path: Path, capsys: Shell, line: Any, message: str) -> None:
    file = slurp / "devel.jsonl"
    if isinstance(line, dict):
        line = json.dumps(sentence(5, "wake me", ["audio-5.flac"]) | line)
    file.write_bytes(file.read_bytes() + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    text = program_error(capsys, "slurp", slurp, "--out", tmp_path / "out")
    assert f"{file}{message}" in text
    assert not (tmp_path / "out").exists()


def test_slurp_that_is_not_there(slurp: Path, tmp_path: Path, capsys: Shell) -> None:
    assert "none of these files is there" in program_error(capsys, "slurp", tmp_path / "not", "--out", tmp_path)
    (tmp_path / "empty").mkdir()
    text = program_error(capsys, "slurp", slurp, "--out", tmp_path, "--audio", tmp_path / "empty")
    assert f"neither slurp_real nor slurp_synth is in {tmp_path / 'empty'}; give --audio" in text
    (tmp_path / "empty" / "slurp_synth").mkdir()
    text = program_error(capsys, "slurp", slurp, "--out", tmp_path / "out", "--audio", tmp_path / "empty")
    assert "no file can be used: audio-1-headset.flac: no such file" in text
    assert list((tmp_path / "out").iterdir()) == []
    assert "invalid choice: 'all'" in program_error(capsys, "slurp", slurp, "--out", tmp_path, "--train", "all")


# ------------------------------------------------------------------------------------------- Fluent Speech Commands

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


# -------------------------------------------------------------------------------------------------- Speech Commands

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


# --------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("slurp", ["github.com/pswietojanski/slurp", "zenodo.org/record/4274930", "CC BY-NC 4.0", "train.jsonl"]),
        ("fluent_speech_commands", ["https://fluent.ai", "academic research", "data/train_data.csv"]),
        ("speech_commands", ["speech_commands_v0.02.tar.gz", "CC BY 4.0", "validation_list.txt", "--official-test"]),
    ],
)
def test_help_names_source_and_licence(name: str, words: list[str], capsys: Shell) -> None:
    with pytest.raises(SystemExit) as leaving:
        program(name)(["--help"])
    assert leaving.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in [*words, "licence", "missing.txt", "none when all is well"]:
        assert word in text
