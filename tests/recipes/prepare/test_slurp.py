"""Program that prepares SLURP: a small copy of its repository with recordings, whole and with every fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmprefix.data.manifest import read_manifest
from mmprefix.metrics.slurp_records import read_frame
from mmprefix.recipes.prepare import slurp as prepare_slurp
from tiny.datasets import (
    Shell,
    missing_rows,
    program_error,
    read_json_lines,
    run_program,
    truncate_to_half,
    write_sound,
)
from tiny.recorded import PARITY, needs_parity


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
