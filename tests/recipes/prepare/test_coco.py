"""Program that prepares COCO: a small folder in its layout, whole and with every fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiny.datasets import (
    Shell,
    missing_rows,
    program_error,
    read_json_lines,
    run_program,
    truncate_to_half,
    write_picture,
)


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
