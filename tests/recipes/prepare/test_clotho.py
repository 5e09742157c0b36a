"""Program that prepares Clotho: a small folder in its layout, whole and with every fault."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmprefix.recipes.prepare import clotho as prepare_clotho
from tiny.datasets import (
    CLOTHO_COLUMNS,
    CLOTHO_TEXTS,
    Shell,
    missing_rows,
    program_error,
    read_json_lines,
    run_program,
    truncate_to_half,
    write_sound,
    write_table,
)


def test_clotho(clotho: Path, tmp_path: Path, capsys: Shell) -> None:
    out = tmp_path / "out"
    run_program("clotho", clotho, "--out", out)
    row = read_json_lines(out / "train.jsonl")[1]
    assert list(row) == ["id", "audio", "captions", "split", "duration"]
    assert row["audio"] == "../clotho/development/a,b.wav"
    assert (row["id"], row["split"], row["duration"]) == ("a,b.wav", "train", 16.0)
    tidied = ["A dog barks, twice.", "a dog , barking", "Dogs, two of them", 'He says "go", it goes', "Line break."]
    assert row["captions"] == tidied
    assert read_json_lines(out / "val.jsonl")[0]["audio"] == "../clotho/clotho_audio_validation/validation/v.wav"
    assert missing_rows(out) == []
    text = capsys.readouterr().out
    assert "train: 3 in clotho_captions_development.csv (published: 3839)\n  3 written, 0 missing, 0 unread" in text
    assert "  15 captions, 5 a row\n  16.00 to 16.00 s, mean 16.00 s (published: 15 to 30 s)\n" in text
    assert "test: 1 in clotho_captions_evaluation.csv (published: 1045)" in text
    assert "not as published" not in text


def test_clotho_captions_in_the_form_of_prefix_aac(clotho: Path, tmp_path: Path) -> None:
    run_program("clotho", clotho, "--out", tmp_path, "--captions", "prefix-aac")
    expected = ["a dog barks, twice.", "a dog, barking.", "dogs, two of them.", 'he says "go", it goes.', "line break."]
    assert read_json_lines(tmp_path / "test.jsonl")[0]["captions"] == expected


def test_clotho_version_1_has_no_validation_split_and_a_missing_split_is_skipped(
    clotho: Path, tmp_path: Path, capsys: Shell
) -> None:
    (clotho / "clotho_captions_evaluation.csv").unlink()
    run_program("clotho", clotho, "--out", tmp_path, "--version", "v1")
    text = capsys.readouterr().out
    assert "evaluation: skipped, for " in text
    assert "(published: 2893)" in text
    assert not (tmp_path / "val.jsonl").exists()


@pytest.mark.parametrize("pyav", [True, False], ids=["with PyAV", "without PyAV"])
def test_clotho_files_that_are_missing_or_broken(
    pyav: bool, clotho: Path, tmp_path: Path, capsys: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pyav:
        pytest.importorskip("av", reason="PyAV (mmprefix[av]) is not installed")
    else:
        monkeypatch.setitem(sys.modules, "av", None)  # to Python, a package that is not installed
    folder, file = clotho / "development", clotho / "clotho_captions_development.csv"
    names = ["good.wav", "gone.wav", "cut.wav", "text.wav", "none.wav", "cut.flac", "short.wav", "long.wav"]
    write_table(file, ["file_name", *CLOTHO_COLUMNS], [[name, *CLOTHO_TEXTS] for name in names])
    for name, seconds in {"good.wav": 15.01, "cut.wav": 20, "cut.flac": 20, "short.wav": 14, "long.wav": 31}.items():
        write_sound(folder / name, seconds)
    write_sound(folder / "none.wav", 0)
    (folder / "text.wav").write_text("no sound")
    truncate_to_half(folder / "cut.wav")
    truncate_to_half(folder / "cut.flac")
    prepare_clotho.main([str(clotho), "--out", str(tmp_path)])  # headers only: the flac looks well
    assert [row["id"] for row in read_json_lines(tmp_path / "train.jsonl")] == [
        "good.wav",
        "cut.flac",
        "short.wav",
        "long.wav",
    ]
    text = capsys.readouterr().out
    assert "train: 8 in clotho" in text
    assert "  4 written, 1 missing, 3 unreadable" in text
    assert "  2 not as published: short.wav (14.00 s), long.wav (31.00 s)" in text
    run_program("clotho", clotho, "--out", tmp_path, "--decode", "--threads", "3")
    assert [row["id"] for row in read_json_lines(tmp_path / "train.jsonl")] == ["good.wav", "short.wav", "long.wav"]
    faults = missing_rows(tmp_path)
    assert [fault[:3] for fault in faults[:2]] == [
        ["train", "missing", "gone.wav"],
        ["train", "unreadable", "cut.wav"],
    ]
    for (*_, reason), words in zip(
        faults, ["no such file", "cut off", "not a sound", "length zero", "cut off"], strict=True
    ):
        assert words in reason
        assert str(tmp_path) not in reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("caption_5", "other"),
            "no column 'caption_5'; the header says file_name, caption_1",
        ),
        (lambda text: text.replace("caption_5", "caption_4"), "two columns 'caption_4'"),
        (lambda text: text.replace("a,b.wav", "Bücher.wav"), ".csv:6: 'Bücher.wav' stands in the table twice"),
        (lambda text: text.replace('"Line\nbreak."', " ", 1), ".csv:2: caption_5: an empty caption"),
        (lambda text: text.replace(',"Line\nbreak."', "", 1), ".csv:2: the row has not the 6 cells of the header"),
        (lambda text: text + "x.wav,1,2,3,4,5,6\n", ".csv:8: the row has not the 6 cells of the header"),
        (lambda text: text + 'x.wav,"1,2,3,4,5\n', ".csv:8: not a table that can be read"),
        (lambda text: text.split("\n")[0], "no rows"),
        (lambda text: "", "no column 'file_name'; the header says nothing"),
    ],
)
def test_faults_in_clothos_table_are_refused(
    clotho: Path, tmp_path: Path, capsys: Shell, change: Callable[[str], str], message: str
) -> None:
    file = clotho / "clotho_captions_development.csv"
    file.write_text(change(file.read_text(encoding="utf-8-sig").replace("\r\n", "\n")), encoding="utf-8")
    text = program_error(capsys, "clotho", clotho, "--out", tmp_path / "out")
    assert str(file) in text
    assert message in text
    assert not (tmp_path / "out").exists()


def test_clotho_that_is_not_utf_8_or_missing_is_refused(clotho: Path, tmp_path: Path, capsys: Shell) -> None:
    file = clotho / "clotho_captions_development.csv"
    file.write_bytes(file.read_text(encoding="utf-8-sig").encode("latin-1"))
    assert f"{file}: not UTF-8" in program_error(capsys, "clotho", clotho, "--out", tmp_path)
    file.unlink()
    (clotho / "clotho_audio_validation").rename(clotho / "elsewhere")
    assert "no folder with the sounds of validation" in program_error(capsys, "clotho", clotho, "--out", tmp_path)
    text = program_error(capsys, "clotho", tmp_path / "nowhere", "--out", tmp_path)
    assert "none of these files is there" in text
    assert "clotho_captions_evaluation.csv" in text
