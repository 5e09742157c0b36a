"""Training sounds at other speeds: the sounds against torchaudio's, and manifests that training reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import speed as torchaudio_speed

from mmprefix.data.manifest import read_manifest
from mmprefix.errors import InputError
from mmprefix.media.audio import read_samples
from mmprefix.recipes.augment import speeds
from tiny.media import tone

RATE = 16000


def data(folder: Path, **changes: Any) -> Path:
    """Folder of three sounds, one a split; the one of train has everything that a row may have."""
    (folder / "wav").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for number, split in enumerate(("train", "val", "test")):
        soundfile.write(folder / "wav" / f"{split}.wav", tone(1.0, RATE, 300.0 + 100 * number), RATE)
        rows.append({"id": f"é{number}", "audio": f"wav/{split}.wav", "captions": ["a tone"], "split": split})
    rows[0] |= {"intent": "play", "slots": [["what", "a tone"]], "duration": 1.0, **changes}
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "manifest.jsonl").write_text(text, encoding="utf-8")
    return folder


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def loudest_hertz(samples: np.ndarray, rate: int) -> float:
    return float(np.fft.rfftfreq(len(samples), 1 / rate)[np.abs(np.fft.rfft(samples)).argmax()])


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_a_sound_is_that_of_torchaudio(speed: float) -> None:
    noise = np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32)
    smooth = np.convolve(noise, np.hanning(33) / 200, mode="same").astype(np.float32)  # nothing near the highest tones
    ours = speeds.at_speed(smooth, RATE, speed)
    theirs = torchaudio_speed(torch.from_numpy(smooth)[None], RATE, speed)[0][0].numpy()
    assert abs(len(ours) - len(smooth) / speed) <= 1
    middle = slice(1000, min(len(ours), len(theirs)) - 1000)
    assert np.abs(ours[middle] - theirs[middle]).max() < 0.01 * np.abs(smooth).max()


def test_training_rows_are_there_at_each_speed_and_others_as_they_were(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert speeds.main([str(data(tmp_path / "data")), "--out", str(out)]) == 0
    train = rows(out / "train.jsonl")
    assert [row["id"] for row in train] == ["é0", "é0_0.9", "é0_1.1"]
    assert [row["duration"] for row in train] == [1.0, 1.111, 0.909]
    assert all(row["intent"] == "play" and row["slots"] == [["what", "a tone"]] for row in train)
    examples, faults = read_manifest(str(out / "train.jsonl"))
    assert not faults
    sounds = [read_samples(example.inputs["audio"].source) for example in examples]
    assert [loudest_hertz(*sound) for sound in sounds] == pytest.approx([300, 270, 330], abs=2)
    for split in ("val", "test"):
        (row,) = rows(out / f"{split}.jsonl")
        assert (out / row["audio"]).resolve() == (tmp_path / "data" / "wav" / f"{split}.wav").resolve()


def test_a_part_of_a_file_becomes_a_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    speeds.write_speeds(data(tmp_path / "data", start=0.25, end=0.75), out, [2.0])
    first, faster = rows(out / "train.jsonl")
    assert (first["start"], first["end"]) == (0.25, 0.75)
    assert "start" not in faster
    assert "end" not in faster
    samples, rate = read_samples(str(out / faster["audio"]))
    assert len(samples) / rate == pytest.approx(0.25, abs=0.001)


@pytest.mark.parametrize("bad", ["1", "0", "-1", "nan", "inf", "0.9 0.9"])
def test_speeds_that_are_none_are_refused(tmp_path: Path, bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(data(tmp_path / "data")), "--out", str(tmp_path / "out"), "--speeds", *bad.split()]
    assert speeds.main(words) == 2
    assert "give numbers from 0.1 to 10, each once, and not 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    folder = data(tmp_path / "data")
    with pytest.raises(InputError, match="is not empty; give a new folder"):
        speeds.write_speeds(folder, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.jsonl", "wav"]


@pytest.mark.parametrize("audio", [None, ["a.wav", "b.wav"], "gone.wav"])
def test_a_row_without_one_sound_is_named(tmp_path: Path, audio: Any) -> None:
    with pytest.raises(InputError, match=r"manifest\.jsonl:1: .*(give the name of one file|no such file)"):
        speeds.write_speeds(data(tmp_path / "data", audio=audio), tmp_path / "out")


def test_data_without_training_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no rows of train"):
        speeds.write_speeds(data(tmp_path / "data", split="val"), tmp_path / "out")
