"""``mmprefix evaluate --html`` of detections and of intents and slots: curve, confusion, worst and best inputs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmprefix.cli.main import main


def page_of(folder: Path, task: str, lines: list[dict[str, object]], capsys: pytest.CaptureFixture[str]) -> str:
    """Page of ``lines``, whose inputs are a tone in the folder of the file; standard output is as without a page."""
    soundfile.write(folder / "tone.wav", np.sin(np.arange(4000) / 5).astype(np.float32), 8000)
    file, out = folder / "p.jsonl", folder / "page.html"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    printed = []
    for more in ([], ["--html", str(out)]):
        assert main(["evaluate", str(file), "--task", task, *more]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    return re.sub(r"data:[^\"]*", "", out.read_text(encoding="utf-8"))


def test_detections_have_a_curve_and_the_trials_furthest_on_either_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"loud": (2.5, True), "soft": (0.5, True), "missed": (-3.0, True), "noise": (-1.0, False)}
    lines: list[dict[str, object]] = [
        {"id": name, "score": score, "label": label, "file": "tone.wav"} for name, (score, label) in scores.items()
    ]
    text = page_of(tmp_path, "detection", lines, capsys)
    assert 'aria-label="DET curve"' in text
    assert "3 targets, 1 others" in text
    assert text.count("<audio") == 4
    worst = text[text.index("<h3>Worst</h3>") : text.index("<h3>Best</h3>")]
    assert "missed" in worst
    assert "loud" not in worst


def test_frames_have_a_confusion_of_intents_and_the_wrong_ones_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = {"intent": "light_on", "slots": {"room": "kitchen"}}
    wrong = {"intent": "music", "slots": {}}
    lines: list[dict[str, object]] = [
        {"id": f"row {number}", **own, "reference": right, "audio": "tone.wav"}
        for number, own in enumerate([right, wrong, right, {**right, "slots": {"room": "hall"}}])
    ]
    text = page_of(tmp_path, "slu", lines, capsys)
    assert "intent: 3 of 4 right" in text
    worst = text[text.index("<h3>Worst</h3>") : text.index("<h3>Best</h3>")]
    assert "row 1" in worst
    assert "row 3" in worst
    assert "row 0" not in worst
    assert "light_on(room=hall)" in worst
    assert text.count("<audio") == 4
    frames = re.search(r"<th[^>]*>frame_accuracy</th>", text)
    assert frames is not None
    assert "0.5000" in text[frames.start() :]
