"""``mmprefix transcribe``: lines for files, manifests for other models, and one plain line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mmprefix.data.manifest import read_manifest
from mmprefix.data.model_inputs import ModelInputs
from mmprefix.data.pairs import PairData
from mmprefix.encoders.signals import Signals
from mmprefix.transcriber import Transcriber, Transcript
from mmprefix.types import Candidate, Media
from tiny import slu_system as tiny_slu_system
from tiny import whisper as tiny_whisper
from tiny.shell import Shell
from tiny.slu_system import Orders, spoken, write
from tiny.speech_system import RATE

TOLERANCE = 1e-4
OPTIONS = ("--num-beams", "2", "--max-new-tokens", "8", "--device", "cpu")


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Orders:
    return tiny_slu_system.build(tmp_path_factory.mktemp("orders"), taught=True)


@pytest.fixture(scope="module")
def heard(orders: Orders) -> list[Transcript]:
    """What the library hears in each sound, one at a time."""
    model = Transcriber(orders.place("whisper"), num_beams=2, max_new_tokens=8)
    values = [model.preprocess(file, 0.0, None)[None] for file in orders.sounds]
    return [model(Media(value, torch.tensor([value.shape[1]])))[0] for value in values]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_a_file(orders: Orders, heard: list[Transcript], shell: Shell) -> None:
    files = orders.sounds
    code, out, err = shell("transcribe", orders.place("whisper"), *files, *OPTIONS, "--batch-size", "5")
    assert code == 0, err
    assert out == "".join(f"{file}: {spoken(row)}\n" for file, row in zip(files, orders.rows, strict=True))
    code, out, _ = shell("transcribe", orders.place("whisper"), *files, *OPTIONS, "--json")
    for line, file, one in zip(rows_of(out), files, heard, strict=True):
        assert (line["file"], line["text"]) == (file, one.text)
        assert line["signals"] == pytest.approx(one.signals, abs=TOLERANCE)
        tiny_whisper.assert_same_hypotheses([Candidate(**nbest) for nbest in line["nbest"]], one.nbest, TOLERANCE)


def test_a_manifest_keeps_its_rows(orders: Orders, heard: list[Transcript], shell: Shell, tmp_path: Path) -> None:
    """Written elsewhere its paths still lead to the sounds; it is read by what reads manifests."""
    out = tmp_path / "deep" / "er" / "asr.jsonl"
    manifest = orders.place("manifest.jsonl")
    code, said, err = shell("transcribe", orders.place("whisper"), "--manifest", manifest, "--out", out, *OPTIONS)
    assert (code, said) == (0, f"wrote 12 lines: {out}\n"), err
    assert [file.name for file in out.parent.iterdir()] == ["asr.jsonl"]
    lines = rows_of(out.read_text())
    for line, row, one in zip(lines, orders.rows, heard, strict=True):
        assert {**line, "audio": 0, "asr": 0, "signals": 0} == {**row, "audio": 0, "asr": 0, "signals": 0}
        assert line["audio"].startswith("..")
        assert (out.parent / line["audio"]).samefile(orders.place(row["audio"]))
        assert line["asr"] == one.text == spoken(row)
        assert line["signals"] == pytest.approx(one.signals, abs=TOLERANCE)
    examples, faults = read_manifest(out)
    assert (len(examples), faults) == (12, [])
    encoder = Signals()
    data = PairData(train=str(out), target="wake", context="asr", batch_size=12)
    data.inputs = ModelInputs({"signals": encoder.preprocess}, reads_text=True)
    data.setup("fit")
    (batch,) = list(data.train_dataloader())
    assert dict(zip(batch.ids, batch.contexts, strict=True)) == {row["id"]: spoken(row) for row in orders.rows}


def test_a_manifest_without_a_place_is_printed(orders: Orders, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(orders.folder)
    words = ("transcribe", "whisper", "--manifest", "manifest.jsonl", "--split", "val", *OPTIONS)
    code, out, err = shell(*words)
    assert code == 0, err
    assert [(line["id"], line["audio"]) for line in rows_of(out)] == [(f"o{n}", f"{n}.wav") for n in range(8, 12)]
    assert shell(*words, "--json")[1] == out


def test_parts_of_files_and_tables(orders: Orders, shell: Shell, tmp_path: Path) -> None:
    """A row's start and end are heeded, and stay in the row; a row without id is called by its line."""
    clip, rate = soundfile.read(orders.sounds[10])
    soundfile.write(tmp_path / "long.wav", np.concatenate([0.0 * clip, clip]), rate)
    begin = len(clip) / RATE
    write(tmp_path / "m.jsonl", [{"audio": "long.wav", "start": begin}, {"audio": "long.wav", "end": begin}])
    (tmp_path / "m.csv").write_text(f"audio,start,speaker\n{tmp_path / 'long.wav'},{begin},anna\n")
    whisper = orders.place("whisper")
    code, out, err = shell("transcribe", whisper, "--manifest", tmp_path / "m.jsonl", "--out", tmp_path / "o", *OPTIONS)
    assert code == 0, err
    first, second = rows_of((tmp_path / "o").read_text())
    assert (first["id"], first["audio"], first["start"], first["asr"]) == ("1", "long.wav", begin, "cat runs")
    assert second["asr"] == "hill runs"  # silence
    code, out, err = shell("transcribe", whisper, "--manifest", tmp_path / "m.csv", *OPTIONS)
    (row,) = rows_of(out)
    assert row["audio"] == str(tmp_path / "long.wav")  # a place that leads there from anywhere stays
    assert (row["speaker"], row["asr"], row["signals"]) == (
        "anna",
        "cat runs",
        pytest.approx(first["signals"], abs=1e-4),
    )


def test_what_is_wrong_is_said_in_one_line(orders: Orders, shell: Shell, tmp_path: Path) -> None:
    whisper, file, manifest = orders.place("whisper"), orders.sounds[0], orders.place("manifest.jsonl")
    (tmp_path / "text.wav").write_text("no sound")
    cases: list[tuple[str, tuple[Any, ...], str]] = [
        (whisper, (), "no input given; give files, or --manifest FILE"),
        (whisper, (file, "--manifest", manifest), "cannot be combined with a file; give one of them"),
        (whisper, (file, "--split", "val"), "--split applies to --manifest FILE"),
        (whisper, ("none.wav",), "none.wav: no such file"),
        (whisper, (tmp_path / "text.wav",), "text.wav: "),
        (whisper, ("--manifest", orders.place("texts.jsonl")), "row 'o0' has no audio"),
        (whisper, (file, "--batch-size", 0), "--batch-size 0: give a number from 1 on"),
        (whisper, (file, "--num-beams", 0), "num_beams=0: must be at least 1"),
        (whisper, (file, "--language", "xx"), "its tokenizer has no <|xx|>"),
        (whisper, (file, "--out", tmp_path), "is a folder; give a file"),
        (orders.place("decoder"), (file,), "holds a 'gpt2' model, which Whisper cannot read"),
        (str(tmp_path / "nothing"), (file,), "nothing': no such folder"),
    ]
    for place, words, message in cases:
        assert message in shell.refuses("transcribe", place, *words, "--device", "cpu")
    assert not (tmp_path / "asr.jsonl").exists()
