"""Study of sharing: both sides get the same captions, and the table has the figures."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.studies import sharing


def test_both_sides_see_the_same_captions(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "image": "a.jpg", "captions": ["one", "two", "three"], "split": "train"},
        {"id": "b", "image": "b.jpg", "captions": ["four"], "split": "train"},
        {"id": "c", "image": "c.jpg", "captions": ["five"], "split": "val"},
    ]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mean = sharing.write_manifest(manifest, tmp_path / "single.jsonl", "train", most=2, row_per_caption=True)
    sharing.write_manifest(manifest, tmp_path / "shared.jsonl", "train", most=2)
    sharing.write_manifest(manifest, tmp_path / "held.jsonl", "val")
    single, shared, held = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("single", "shared", "held")
    )
    assert mean == 1.5
    assert [row["captions"] for row in shared] == [["one", "two"], ["four"]]
    assert [(row["id"], row["captions"]) for row in single] == [("a-0", ["one"]), ("a-1", ["two"]), ("b-0", ["four"])]
    assert [row["id"] for row in held] == ["c"]
    assert all(row["image"] == str(tmp_path / f"{row['id'][0]}.jpg") for row in (*single, *shared, *held))


def test_the_table() -> None:
    runs = [{"cider_d": value, "cider_d_shuffled": 0.1, "loss": 2.0} for value in (1.0, 2.0, 3.0)]
    text = sharing.report({"sets": {"esc10": {"shared": runs}}})
    assert "| esc10: shared | 2.000 ± 1.000 |     0.100 ± 0.000 | 2.000 ± 0.000 |" in text
