"""Program that prepares any folder and its table: sounds, pictures, and every fault."""

from __future__ import annotations

from pathlib import Path

from tiny.datasets import (
    Shell,
    missing_rows,
    program_error,
    read_json_lines,
    run_program,
    write_picture,
    write_sound,
    write_table,
)


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
