"""``mmprefix transcribe``: printed lines, written manifests, and error messages."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mmprefix.data.collate import pad_media
from mmprefix.data.manifest import read_manifest
from mmprefix.data.model_inputs import ModelInputs
from mmprefix.data.pairs import PairData
from mmprefix.encoders.signals import Signals
from mmprefix.transcriber import Transcriber, Transcript
from mmprefix.types import Candidate, Media
from tiny import slu_system as tiny_slu_system
from tiny import whisper as tiny_whisper
from tiny.shell import Shell
from tiny.slu_system import SluSystem, expected_transcript, write_manifest
from tiny.speech_system import RATE

TOLERANCE = 1e-4
OPTIONS = ("--num-beams", "2", "--max-new-tokens", "8", "--device", "cpu")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> SluSystem:
    return tiny_slu_system.build(tmp_path_factory.mktemp("system"), trained=True)


@pytest.fixture(scope="module")
def transcripts(system: SluSystem) -> list[Transcript]:
    """Transcript of each sound by the library, one at a time."""
    model = Transcriber(system.path("whisper"), num_beams=2, max_new_tokens=8)
    values = [model.preprocess(file, 0.0, None)[None] for file in system.sounds]
    return [model(Media(value, torch.tensor([value.shape[1]])))[0] for value in values]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_a_file(system: SluSystem, transcripts: list[Transcript], shell: Shell) -> None:
    files = system.sounds
    code, out, err = shell("transcribe", system.path("whisper"), *files, *OPTIONS, "--batch-size", "5")
    assert code == 0, err
    assert out == "".join(f"{file}: {expected_transcript(row)}\n" for file, row in zip(files, system.rows, strict=True))
    code, out, _ = shell("transcribe", system.path("whisper"), *files, *OPTIONS, "--json")
    for line, file, transcript in zip(rows_of(out), files, transcripts, strict=True):
        assert (line["file"], line["text"]) == (file, transcript.text)
        assert line["signals"] == pytest.approx(transcript.signals, abs=TOLERANCE)
        tiny_whisper.assert_same_hypotheses(
            [Candidate(**nbest) for nbest in line["nbest"]], transcript.nbest, TOLERANCE
        )


def test_a_manifest_keeps_its_rows(
    system: SluSystem, transcripts: list[Transcript], shell: Shell, tmp_path: Path
) -> None:
    """In another folder its paths still lead to the sounds, and it is a valid manifest."""
    out = tmp_path / "deep" / "er" / "asr.jsonl"
    manifest = system.path("manifest.jsonl")
    code, message, err = shell("transcribe", system.path("whisper"), "--manifest", manifest, "--out", out, *OPTIONS)
    assert (code, message) == (0, f"wrote 12 lines: {out}\n"), err
    assert {file.name for file in out.parent.iterdir()} == {"asr.jsonl", ".asr.jsonl.options.json"}
    lines = rows_of(out.read_text())
    for line, row, transcript in zip(lines, system.rows, transcripts, strict=True):
        assert {**line, "audio": 0, "asr": 0, "signals": 0} == {**row, "audio": 0, "asr": 0, "signals": 0}
        assert line["audio"].startswith("..")
        assert (out.parent / line["audio"]).samefile(system.path(row["audio"]))
        assert line["asr"] == transcript.text == expected_transcript(row)
        assert line["signals"] == pytest.approx(transcript.signals, abs=TOLERANCE)
    examples, faults = read_manifest(out)
    assert (len(examples), faults) == (12, [])
    encoder = Signals()
    data = PairData(train=str(out), target="wake", context="asr", batch_size=12)
    data.inputs = ModelInputs({"signals": encoder.preprocess}, reads_text=True)
    data.setup("fit")
    (batch,) = list(data.train_dataloader())
    assert dict(zip(batch.ids, batch.contexts, strict=True)) == {
        row["id"]: expected_transcript(row) for row in system.rows
    }


def test_long_recordings_and_detected_languages(shell: Shell, tmp_path: Path) -> None:
    """A window has two seconds; the file has five, and a row names three of them."""
    folder = tiny_whisper.save_timed_whisper(tmp_path / "whisper", 3)
    noise = np.random.default_rng(0).normal(0, 0.2, 5 * RATE).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", noise, RATE, subtype="FLOAT")
    write_manifest(tmp_path / "m.jsonl", [{"audio": "long.wav", "start": 1.0, "end": 4.0}])
    model = Transcriber(folder, num_beams=1, language="auto")
    parts = [(0.0, None), (1.0, 4.0)]
    whole, part = (model(pad_media([model.preprocess(str(tmp_path / "long.wav"), *part)]))[0] for part in parts)
    words = ("--num-beams", "1", "--language", "auto", "--device", "cpu")
    code, out, err = shell("transcribe", folder, tmp_path / "long.wav", "--json", *words)
    assert code == 0, err
    assert (rows_of(out)[0]["text"], rows_of(out)[0]["language"]) == (whole.text, whole.language)
    code, out, err = shell("transcribe", folder, "--manifest", tmp_path / "m.jsonl", *words)
    assert (rows_of(out)[0]["asr"], rows_of(out)[0]["language"]) == (part.text, part.language)
    assert whole.text != part.text
    code, _, err = shell("transcribe", folder, tmp_path / "long.wav", "--out", tmp_path / "t.csv", *words)
    (row,) = csv.DictReader((tmp_path / "t.csv").read_text().splitlines())
    assert row["language"] == whole.language


def test_a_manifest_without_an_output_file_is_printed(
    system: SluSystem, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(system.folder)
    words = ("transcribe", "whisper", "--manifest", "manifest.jsonl", "--split", "val", *OPTIONS)
    code, out, err = shell(*words)
    assert code == 0, err
    assert [(line["id"], line["audio"]) for line in rows_of(out)] == [(f"o{n}", f"{n}.wav") for n in range(8, 12)]
    assert shell(*words, "--json")[1] == out


def test_parts_of_files_and_tables(system: SluSystem, shell: Shell, tmp_path: Path) -> None:
    """A row's start and end cut the file, and stay in the row; the id of a row without one is its line number."""
    clip, rate = soundfile.read(system.sounds[10])
    soundfile.write(tmp_path / "long.wav", np.concatenate([0.0 * clip, clip]), rate)
    begin = len(clip) / RATE
    write_manifest(tmp_path / "m.jsonl", [{"audio": "long.wav", "start": begin}, {"audio": "long.wav", "end": begin}])
    (tmp_path / "m.csv").write_text(f"audio,start,speaker\n{tmp_path / 'long.wav'},{begin},anna\n")
    whisper = system.path("whisper")
    code, out, err = shell("transcribe", whisper, "--manifest", tmp_path / "m.jsonl", "--out", tmp_path / "o", *OPTIONS)
    assert code == 0, err
    first, second = rows_of((tmp_path / "o").read_text())
    assert (first["id"], first["audio"], first["start"], first["asr"]) == ("1", "long.wav", begin, "cat runs")
    assert second["asr"] == "hill runs"  # silence
    code, out, err = shell("transcribe", whisper, "--manifest", tmp_path / "m.csv", *OPTIONS)
    (row,) = rows_of(out)
    assert row["audio"] == str(tmp_path / "long.wav")  # an absolute path stays
    assert (row["speaker"], row["asr"], row["signals"]) == (
        "anna",
        "cat runs",
        pytest.approx(first["signals"], abs=1e-4),
    )


def test_each_error_is_one_line(system: SluSystem, shell: Shell, tmp_path: Path) -> None:
    whisper, file, manifest = system.path("whisper"), system.sounds[0], system.path("manifest.jsonl")
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty.wav").touch()
    cases: list[tuple[str, tuple[Any, ...], str]] = [
        (whisper, (), "no input given; give files, or --manifest FILE"),
        (whisper, (file, "--manifest", manifest), "cannot be combined with a file; give one of them"),
        (whisper, (file, "--split", "val"), "--split applies to --manifest FILE"),
        (whisper, ("none.wav",), "none.wav: no such file"),
        (whisper, (tmp_path / "empty.wav",), "empty.wav: is empty, without a single byte"),
        (whisper, (tmp_path / "text.wav",), "text.wav: "),
        (whisper, ("--manifest", system.path("texts.jsonl")), "row 'o0' has no audio"),
        (whisper, (file, "--batch-size", 0), "--batch-size 0: give a number from 1 on"),
        (whisper, (file, "--num-beams", 0), "num_beams=0: must be at least 1"),
        (whisper, (file, "--language", "xx"), "its tokenizer has no <|xx|>"),
        (whisper, (file, "--out", tmp_path), "is a folder; give a file"),
        (system.path("decoder"), (file,), "holds a 'gpt2' model, which Whisper cannot read"),
        (str(tmp_path / "nothing"), (file,), "nothing': no such folder"),
    ]
    for model, words, message in cases:
        assert message in shell.refuses("transcribe", model, *words, "--device", "cpu")
    assert not (tmp_path / "asr.jsonl").exists()


def test_bad_sounds_do_not_end_the_others(
    system: SluSystem, transcripts: list[Transcript], shell: Shell, tmp_path: Path
) -> None:
    whisper, files = system.path("whisper"), system.sounds[:3]
    (tmp_path / "text.wav").write_text("no sound")
    out = tmp_path / "t.csv"
    words = ("transcribe", whisper, files[0], tmp_path / "text.wav", *files[1:], "--out", out, *OPTIONS)
    code, message, err = shell(*words, "--batch-size", "2")
    assert (code, message) == (3, f"wrote 3 lines: {out}\n")
    assert "text.wav: " in err
    assert err.splitlines()[-1] == "mmprefix: 1 of 4 inputs could not be read; the others are done"
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["file"], row["text"]) for row in rows] == [
        (file, transcript.text) for file, transcript in zip(files, transcripts, strict=False)
    ]
    (tmp_path / "text.wav").unlink()
    code, message, _ = shell(*words[:3], *words[4:])
    assert (code, message) == (0, f"wrote 0 lines beside 3 that were there: {out}\n")
    assert "was begun with --num-beams 2, now 1" in shell.refuses(*words[:3], *words[4:], "--num-beams", "1")
