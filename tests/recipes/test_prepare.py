"""Programs that prepare data sets: small folders in each set's own layout, whole and with every fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmprefix.recipes.prepare import clotho as prepare_clotho
from mmprefix.recipes.prepare import conceptual_captions as prepare_conceptual_captions
from mmprefix.recipes.prepare import writing
from tiny.datasets import (
    Shell,
    missing_rows,
    program,
    program_error,
    read_json_lines,
    run_program,
    truncate_to_half,
    write_picture,
    write_sound,
    write_table,
)

FIVE = [f"caption_{number}" for number in range(1, 6)]
TEXTS = ["A dog barks,  twice.", "a dog , barking", "Dogs, two of them", 'He says "go", it goes', "Line\nbreak."]
CLIPS = ["audiocap_id", "youtube_id", "start_time", "caption"]


# ----------------------------------------------------------------------------------------------------------- Clotho


@pytest.fixture
def clotho(tmp_path: Path) -> Path:
    root = tmp_path / "clotho"
    names = {
        "development": [" rain &amp; wind.wav", "a,b.wav", "Bücher.wav"],
        "validation": ["v.wav"],
        "evaluation": ["e.wav"],
    }
    folders = {"development": "development", "validation": "clotho_audio_validation/validation"}
    for split, files in names.items():
        for file in files:
            write_sound(root / folders.get(split, f"clotho_audio_{split}") / file, 16)
        encoding = "utf-8-sig" if split == "development" else "utf-8"
        rows = [[file, *TEXTS] for file in files]
        write_table(root / f"clotho_captions_{split}.csv", ["file_name", *FIVE], rows, encoding)
    return root


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
    write_table(file, ["file_name", *FIVE], [[name, *TEXTS] for name in names])
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


# -------------------------------------------------------------------------------------------------------- AudioCaps


@pytest.fixture
def audiocaps(tmp_path: Path) -> Path:
    root = tmp_path / "audiocaps"
    train = [
        [1, "-aaaaaaaaaa", 30, "A, b"],
        [2, "bbbbbbbbbbb", 0, "c"],
        [3, "ccccccccccc", 5, "d"],
        [4, "gone", 5, "e"],
    ]
    write_table(root / "train.csv", CLIPS, train)
    val = [[10 + i, ("vvvvvvvvvvv", "wwwwwwwwwww")[i % 2], 7, f"caption {i}"] for i in range(10)]
    write_table(root / "val.csv", CLIPS, val)
    for name in (
        "train/-aaaaaaaaaa.wav",
        "train/Ybbbbbbbbbbb.flac",
        "train/3.ogg",
        "val/vvvvvvvvvvv_7.WAV",
        "val/13.wav",
    ):
        write_sound(root / "clips" / name, 10.5 if "bbb" in name else 4)
    return root


def test_audiocaps(audiocaps: Path, tmp_path: Path, capsys: Shell) -> None:
    run_program("audiocaps", audiocaps, "--out", tmp_path)
    rows = read_json_lines(tmp_path / "train.jsonl")
    assert [row["id"] for row in rows] == ["-aaaaaaaaaa_30", "bbbbbbbbbbb_0", "ccccccccccc_5"]
    assert [row["captions"] for row in rows] == [["A, b"], ["c"], ["d"]]
    assert [row.get("end") for row in rows] == [None, 10.0, None]
    assert rows[1]["duration"] == 10.5
    assert rows[1]["audio"] == "audiocaps/clips/train/Ybbbbbbbbbbb.flac"
    val = read_json_lines(tmp_path / "val.jsonl")
    assert [row["captions"] for row in val] == [[f"caption {i}" for i in range(k, 10, 2)] for k in (0, 1)]
    assert [row["audio"][-9:] for row in val] == ["vvv_7.WAV", "al/13.wav"]
    assert missing_rows(tmp_path) == [["train", "missing", "gone_5", "no such file"]]
    text = capsys.readouterr().out
    assert "test: skipped, for " in text
    assert "train: 4 in train.csv (published: 49838)\n  3 written, 1 missing, 0 unreadable" in text
    assert "  1 longer than 10 s: to be read up to it\n  1 not as published: bbbbbbbbbbb_0 (10.50 s)" in text


def test_audiocaps_in_one_folder_elsewhere(audiocaps: Path, tmp_path: Path, capsys: Shell) -> None:
    rows = [[20, "vvvvvvvvvvv", 7, "one"], [21, "vvvvvvvvvvv", 7, "Two. "]]
    write_table(audiocaps / "test.csv", CLIPS, rows)
    (audiocaps / "clips" / "val").rename(tmp_path / "flat")
    run_program(
        "audiocaps", audiocaps, "--clips", tmp_path / "flat", "--out", tmp_path / "flat", "--captions", "prefix-aac"
    )
    (row,) = read_json_lines(tmp_path / "flat" / "test.jsonl")
    assert (row["audio"], row["captions"]) == ("vvvvvvvvvvv_7.WAV", ["one.", "two."])
    text = capsys.readouterr().out
    assert "  1 not as published: vvvvvvvvvvv_7 (2 captions, not 5)" in text
    assert "train: 4 in train.csv (published: 49838)\n  0 written, 4 missing, 0 unreadable\n  no manifest" in text
    assert not (tmp_path / "flat" / "train.jsonl").exists()


def test_audiocaps_without_clips(audiocaps: Path, tmp_path: Path, capsys: Shell) -> None:
    (tmp_path / "empty").mkdir()
    words = ["audiocaps", audiocaps, "--out", tmp_path / "out", "--clips"]
    assert "no file can be used: -aaaaaaaaaa_30: no such file" in program_error(capsys, *words, tmp_path / "empty")
    assert list((tmp_path / "out").iterdir()) == []
    assert f"{tmp_path / 'not'}: no such file or directory" in program_error(capsys, *words, tmp_path / "not")


# ------------------------------------------------------------------------------------------------------------- COCO


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    images = []
    for number, split in enumerate(["test", "restval", "val", "train", "train", "val"]):
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{number:012d}.jpg"
        write_picture(root / folder / name)
        sentences = [
            {"tokens": ["a", "b"], "raw": f"A b {i}. ", "imgid": 0, "sentid": i} for i in range(5 + number % 2)
        ]
        image = {"filepath": folder, "filename": name, "imgid": number, "split": split, "sentences": sentences}
        images.append({**image, "sentids": [0, 1], "cocoid": 100 + number})
    (root / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return root


def test_coco(coco: Path, tmp_path: Path, capsys: Shell) -> None:
    (coco / "val2014" / "COCO_val2014_000000000005.jpg").unlink()
    truncate_to_half(coco / "train2014" / "COCO_train2014_000000000003.jpg")
    run_program("coco", coco, "--out", tmp_path / "all", "--decode")
    rows = read_json_lines(tmp_path / "all" / "train.jsonl")
    assert [row["id"] for row in rows] == ["101", "104"]
    image = "../coco/val2014/COCO_val2014_000000000001.jpg"
    assert rows[0] == {"id": "101", "image": image, "captions": [f"A b {i}." for i in range(6)], "split": "train"}
    assert [fault[:3] for fault in missing_rows(tmp_path / "all")] == [
        ["train", "unreadable", "train2014/COCO_train2014_000000000003.jpg"],
        ["val", "missing", "val2014/COCO_val2014_000000000005.jpg"],
    ]
    text = capsys.readouterr().out
    assert "train: 3 in dataset_coco.json (published: 113287)\n  2 written, 0 missing, 1 unreadable" in text
    assert "  11 captions, 5 to 6 a row" in text
    assert "val: 2 in dataset_coco.json (published: 5000)" in text
    run_program("coco", coco, "--out", tmp_path / "less", "--decode", "--no-restval")
    assert [row["id"] for row in read_json_lines(tmp_path / "less" / "train.jsonl")] == ["104"]
    assert "(published: 82783)" in capsys.readouterr().out


def test_faults_in_cocos_list_are_refused(coco: Path, tmp_path: Path, capsys: Shell) -> None:
    file = coco / "dataset_coco.json"
    text = file.read_text()
    for change, message in {
        ("test", "best"): "no split 'best'",
        ('"cocoid": 101', '"cocoid": 100'): "",
        ('"cocoid": 104', '"cocoid": 103'): "cocoid 103: listed twice",
        ('"filename"', '"file"'): "picture 0 of the list has no filename",
        ('"images"', '"pictures"'): "not the file of splits",
        ("}]", "}"): "not the file of splits",
        ('"raw"', '"text"'): "picture 0 of the list has a sentence without its text (raw)",
        (text, '{"images": null}'): "not the file of splits",
    }.items():
        file.write_text(text.replace(*change))
        if message:
            error = program_error(capsys, "coco", coco, "--out", tmp_path)
            assert f"{file}: " in error
            assert message in error
    file.write_text(text)
    assert "neither train2014 nor val2014" in program_error(
        capsys, "coco", coco, "--pictures", tmp_path, "--out", tmp_path
    )
    assert "dataset_coco.json: no such file" in program_error(capsys, "coco", tmp_path, "--out", tmp_path)


# ----------------------------------------------------------------------------------------------- Conceptual Captions


@pytest.fixture
def conceptual(tmp_path: Path) -> Path:
    root = tmp_path / "cc"
    root.mkdir()
    rows = [f'a "quoted" thing , number {number}\thttp://x.org/{number}.jpg?a=1\n' for number in range(6)]
    (root / "Train_GCC-training.tsv").write_text("".join(rows))
    (root / "Validation_GCC-1.1.0-Validation.tsv").write_text("".join(rows[:2]))
    return root


def test_conceptual_captions_by_number(conceptual: Path, tmp_path: Path, capsys: Shell) -> None:
    for name in ("train/0.jpg", "train/00000001.png", "train/some/000002.jpeg", "train/x.jpg", "val/1.jpg"):
        write_picture(conceptual / name)
    (conceptual / "train" / "3.jpg").write_text("gone")
    run_program("conceptual_captions", conceptual, "--out", tmp_path)
    rows = read_json_lines(tmp_path / "train.jsonl")
    assert [row["image"] for row in rows] == [
        f"cc/train/{name}" for name in ("0.jpg", "00000001.png", "some/000002.jpeg")
    ]
    assert rows[1]["captions"] == ['a "quoted" thing , number 1']
    assert missing_rows(tmp_path)[0][:3] == ["train", "unreadable", "3 http://x.org/3.jpg?a=1"]
    assert missing_rows(tmp_path)[3] == ["val", "missing", "0 http://x.org/0.jpg?a=1", "no such file"]
    text = capsys.readouterr().out
    assert "train: 6 in Train_GCC-training.tsv (published: 3318333)\n  3 written, 2 missing, 1 unreadable" in text
    assert "(published: 15840)" in text
    words = [str(conceptual), "--out", str(tmp_path), "--names-only"]
    assert prepare_conceptual_captions.main(words) == 0
    assert len(read_json_lines(tmp_path / "train.jsonl")) == 4
    assert "give one of them" in program_error(capsys, "conceptual_captions", *words, "--decode")
    run_program("conceptual_captions", conceptual, "--out", tmp_path, "--first-number", "1")
    assert [row["id"] for row in read_json_lines(tmp_path / "train.jsonl")] == ["0", "1"]


def test_conceptual_captions_from_img2dataset(conceptual: Path, tmp_path: Path, capsys: Shell) -> None:
    for key, number, status in ((0, 4, "success"), (10001, 2, "success"), (10002, 3, "failed_to_download")):
        file = tmp_path / "shards" / f"{key // 10000:05d}" / f"{key:09d}.jpg"
        write_picture(file)
        record = {"caption": "x", "url": f"http://x.org/{number}.jpg?a=1", "key": f"{key:09d}", "status": status}
        file.with_suffix(".json").write_text(json.dumps(record))
        file.with_suffix(".txt").write_text("x")
    write_picture(tmp_path / "shards" / "00000" / "000000007.jpg")
    (tmp_path / "shards" / "00001" / "000010001.json").with_name("00001_stats.json").write_text("{}")
    file = conceptual / "Train_GCC-training.tsv"
    file.write_text("caption\turl\n" + file.read_text())  # as img2dataset wants it
    (conceptual / "Validation_GCC-1.1.0-Validation.tsv").unlink()
    run_program("conceptual_captions", conceptual, "--train-pictures", tmp_path / "shards", "--out", tmp_path)
    rows = read_json_lines(tmp_path / "train.jsonl")
    assert [row["id"] for row in rows] == ["2", "4"]
    assert [row["image"] for row in rows] == ["shards/00001/000010001.jpg", "shards/00000/000000000.jpg"]
    assert "train: 6 in Train_GCC" in capsys.readouterr().out


def test_faults_in_conceptual_captions_are_refused(conceptual: Path, tmp_path: Path, capsys: Shell) -> None:
    for name in ("train/0.jpg", "val/0.jpg"):
        write_picture(conceptual / name)
    out = tmp_path / "out"
    run_program("conceptual_captions", conceptual, "--out", out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    file = conceptual / "Validation_GCC-1.1.0-Validation.tsv"
    for line, message in {
        b"no tab\n": ":3: not a caption, a tab and an address",
        b" \thttp://x\n": ":3: an empty caption",
        b"\xff\xfe\thttp://x\n": ": not UTF-8",
    }.items():
        content = file.read_bytes()
        file.write_bytes(content + line)
        assert f"{file}{message}" in program_error(capsys, "conceptual_captions", conceptual, "--out", out)
        file.write_bytes(content)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    words = (conceptual, "--train-pictures", tmp_path / "not", "--out", out)
    assert f"{tmp_path / 'not'}: no such file" in program_error(capsys, "conceptual_captions", *words)


# ----------------------------------------------------------------------------------------------------------- a folder


def test_folder_of_sounds(tmp_path: Path, capsys: Shell) -> None:
    for number in range(10):
        write_sound(tmp_path / "s" / f"{number}.ogg")
    rows = [[f"s/{number}.ogg", "x", "One, two.", "" if number else "more"] for number in range(10)]
    write_table(tmp_path / "t.csv", ["Audio", "other", "Caption_a", "caption_b"], rows)
    words = (tmp_path / "t.csv", "--out", tmp_path / "out", "--captions", "prefix-aac", "--val-share", "0.3")
    run_program("folder", *words)
    train, val = read_json_lines(tmp_path / "out" / "train.jsonl"), read_json_lines(tmp_path / "out" / "val.jsonl")
    assert (len(train), len(val)) == (7, 3)
    assert sorted(row["id"] for row in train + val) == [f"s/{number}.ogg" for number in range(10)]
    first = next(row for row in train + val if row["id"] == "s/0.ogg")
    assert (first["audio"], first["captions"], first["duration"]) == ("../s/0.ogg", ["one, two.", "more."], 0.5)
    write_table(tmp_path / "t.csv", ["Audio", "other", "Caption_a", "caption_b"], rows[::-1])
    run_program("folder", *words)
    assert {row["id"] for row in read_json_lines(tmp_path / "out" / "val.jsonl")} == {row["id"] for row in val}
    run_program("folder", *words, "--seed", "1")
    assert {row["id"] for row in read_json_lines(tmp_path / "out" / "val.jsonl")} != {row["id"] for row in val}
    capsys.readouterr()
    run_program("folder", *words[:3])
    assert "val.jsonl: of an earlier run, left as it is" in capsys.readouterr().out
    assert len(read_json_lines(tmp_path / "out" / "train.jsonl")) == 10


def test_folder_of_pictures_with_several_rows_a_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.JPG"):
        write_picture(tmp_path / "pictures" / name)
    file = tmp_path / "t.tsv"
    file.write_text("photo\ttext\na.png\tone\nb.JPG\ttwo\na.png\tthree\ngone.png\tfour\n")
    words = ("--folder", tmp_path / "pictures", "--file-column", "photo", "--caption-columns", "text")
    run_program("folder", file, "--out", tmp_path, *words)
    rows = read_json_lines(tmp_path / "train.jsonl")
    assert [(row["image"], row["captions"]) for row in rows] == [
        ("pictures/a.png", ["one", "three"]),
        ("pictures/b.JPG", ["two"]),
    ]
    assert missing_rows(tmp_path) == [["train", "missing", "gone.png", "no such file"]]


def test_faults_in_a_folders_table_are_refused(tmp_path: Path, capsys: Shell) -> None:
    write_sound(tmp_path / "a.wav")
    write_picture(tmp_path / "b.png")
    file = tmp_path / "t.csv"

    def refusal(text: str, *words: str) -> str:
        file.write_text(text)
        return program_error(capsys, "folder", file, "--out", tmp_path / "out", *words)

    good = "file,caption\na.wav,x\n"
    assert "--file-column: no column has a name that is known; there are name, caption" in refusal(
        "name,caption\na,b\n"
    )
    assert "--file-column: no column 'x'; there are file, caption" in refusal(good, "--file-column", "x")
    assert "--caption-columns: no column has a name" in refusal("file,text\na,b\n")
    assert f"{file}:3: no caption" in refusal(good + "b.wav,  \n")
    assert f"{file}:3: no file is named" in refusal(good + ",x\n")
    assert "give --media audio or image" in refusal(good + "b.png,x\n")
    assert "--val-share 1.5" in refusal(good, "--val-share", "1.5")
    assert "--val-share 0.1: of 1 files, 0 would be for val" in refusal(good, "--val-share", "0.1")
    assert "--threads: 0: give a number from 1 on" in refusal(good, "--threads", "0")
    assert "--threads: x: give a number from 1 on" in refusal(good, "--threads", "x")
    assert "no file can be used: gone.wav: no such file" in refusal("file,caption\ngone.wav,x\n")
    assert "invalid choice: 'video'" in refusal(good, "--media", "video")
    assert "nowhere.csv: no such file" in program_error(capsys, "folder", tmp_path / "nowhere.csv", "--out", tmp_path)
    assert "--out" in program_error(capsys, "folder", file)
    assert f"--out {file}" in program_error(capsys, "folder", file, "--out", file)


# --------------------------------------------------------------------------------------------------- all of them


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
    root = Path(__file__).resolve().parents[2]
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
