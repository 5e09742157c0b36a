"""All programs that prepare data sets: repeated and failed runs, paths, help, and how they are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmprefix.recipes.prepare import writing
from tiny.datasets import (
    Shell,
    program,
    program_error,
    read_json_lines,
    run_program,
    truncate_to_half,
    write_sound,
    write_table,
)


def test_a_second_run_writes_the_same_bytes(clotho: Path, tmp_path: Path) -> None:
    contents = []
    for threads in ("1", "5"):
        run_program("clotho", clotho, "--out", tmp_path / "out", "--threads", threads)
        contents.append({file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == ["missing.txt", "test.jsonl", "train.jsonl", "val.jsonl"]


def test_a_failed_run_leaves_earlier_files_unchanged(clotho: Path, tmp_path: Path, capsys: Shell) -> None:
    out = tmp_path / "out"
    run_program("clotho", clotho, "--out", out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    for file in clotho.rglob("*.wav"):
        truncate_to_half(file)
    assert "no file can be used:  rain &amp; wind.wav: the sound is cut off" in program_error(
        capsys, "clotho", clotho, "--out", out
    )
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_full_disk_is_reported_and_leaves_earlier_files_unchanged(
    clotho: Path, tmp_path: Path, capsys: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run_program("clotho", clotho, "--out", tmp_path / "out")
    before = (tmp_path / "out" / "train.jsonl").read_bytes()
    monkeypatch.setattr(writing, "_lines", full)
    assert f"--out {tmp_path / 'out'}: no space left" in program_error(
        capsys, "clotho", clotho, "--out", tmp_path / "out"
    )
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == before


def test_relative_paths_are_right_through_symbolic_links(clotho: Path, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    (tmp_path / "data").symlink_to(clotho)
    run_program("clotho", tmp_path / "data", "--out", tmp_path / "link" / "out")
    assert read_json_lines(tmp_path / "link" / "out" / "test.jsonl")[0]["audio"].startswith("../../../clotho/")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clotho", ["zenodo.3490684", "zenodo.4783391", "non-commercial", "clotho_captions_SPLIT.csv"]),
        ("audiocaps", ["github.com/cdjkim/audiocaps", "academic", "train.csv"]),
        ("coco", ["caption_datasets.zip", "images.cocodataset.org", "CC BY 4.0", "Flickr", "dataset_coco.json"]),
        (
            "conceptual_captions",
            ["ai.google.com/research/ConceptualCaptions", "free for any", "Train_GCC-training.tsv"],
        ),
        ("slurp", ["github.com/pswietojanski/slurp", "zenodo.org/record/4274930", "CC BY-NC 4.0", "train.jsonl"]),
        ("fluent_speech_commands", ["https://fluent.ai", "academic research", "data/train_data.csv"]),
        ("speech_commands", ["speech_commands_v0.02.tar.gz", "CC BY 4.0", "validation_list.txt", "--official-test"]),
        ("folder", ["source", "licence", "TABLE", "--val-share"]),
    ],
)
def test_help_names_source_and_licence(name: str, words: list[str], capsys: Shell) -> None:
    with pytest.raises(SystemExit) as leaving:
        program(name)(["--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    for word in [*words, "licence", "missing.txt", "none when all is well"]:
        assert word in " ".join(text.split())


def test_programs_run_as_files_and_as_modules(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    write_sound(tmp_path / "a.wav")
    write_table(tmp_path / "t.csv", ["file", "caption"], [["a.wav", "x"]])
    words = [str(tmp_path / "t.csv"), "--out"]
    for number, start in enumerate((["recipes/prepare/folder.py"], ["-m", "mmprefix.recipes.prepare.folder"])):
        command = [sys.executable, *start, *words]
        run = {"cwd": root, "capture_output": True, "text": True, "check": False, "env": dict(os.environ)}
        process = subprocess.run([*command, str(tmp_path / str(number))], **run)
        assert process.returncode == 0, process.stderr
        assert "1 written" in process.stdout
        process = subprocess.run([*command, str(tmp_path / "t.csv")], **run)
        assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
