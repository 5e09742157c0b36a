"""Output in an encoding that lacks a character: nothing is lost, and JSON lines stay JSON."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmprefix.cli.main import main
from tiny import models as tiny_models
from tiny.media import scene

NAMES = ("猫.png", "Ünïcode.png", "😀.png", "a\udcff.png")  # the last is a file name that is no text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model directory of a captioner of pictures."""
    folder = tmp_path_factory.mktemp("encoding")
    return tiny_models.save_model(folder / "model", tiny_models.frozen_parts(folder / "parts"), "image")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    files = [tmp_path / name for name in NAMES]
    for file in files:
        scene().save(file)
    return files


def run(words: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command line with an output of ``encoding``."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n") for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        code = main(words)
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer for stream in streams)
    assert isinstance(out, io.BytesIO)
    assert isinstance(err, io.BytesIO)
    return code, out.getvalue().decode(encoding), err.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8", "shift_jis"])
def test_captions_are_written_in_every_encoding(
    model: Path, pictures: list[Path], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(file) for file in pictures]
    code, out, _ = run(["caption", str(model), *files, "--json"], encoding, monkeypatch)
    assert code == 0
    assert [json.loads(line)["file"] for line in out.splitlines()] == files
    code, out, _ = run(["caption", str(model), *files], encoding, monkeypatch)
    assert code == 0
    assert len(out.splitlines()) == len(files)
    assert ("\\u732b.png: " in out) == (encoding in ("cp1252", "ascii"))
    assert "\\ud83d\\ude00.png: " in out or encoding == "utf-8"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_other_verbs_and_error_lines(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tmp_path / "猫.csv"
    manifest.write_text("id,image,caption\n1,猫.png,猫\n", encoding="utf-8")
    code, out, err = run(["check-data", str(manifest)], encoding, monkeypatch)
    assert code in (1, 2)
    assert "\\u732b.png" in out + err
    code, _, err = run(["caption", str(tmp_path / "猫"), "x.png"], encoding, monkeypatch)
    assert code == 2
    assert "\\u732b" in err


def test_a_process_of_its_own(tmp_path: Path) -> None:
    """``PYTHONIOENCODING`` as on Windows where output is sent to a file."""
    (tmp_path / "p.jsonl").write_text('{"id": "1", "prediction": 3}\n', encoding="utf-8")
    (tmp_path / "猫.jsonl").write_bytes((tmp_path / "p.jsonl").read_bytes())
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-m", "mmprefix", "evaluate", str(tmp_path / "猫.jsonl")]
    done = subprocess.run(words, env=environment, capture_output=True, check=False, timeout=300)
    assert done.returncode == 2
    assert b"\\u732b.jsonl:1: " in done.stderr
    assert b"Traceback" not in done.stderr
