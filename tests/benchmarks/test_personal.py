"""Study of what a model makes of its user, from its command line to its table, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.studies.users import personal
from tiny.models import frozen_parts
from tiny.users import picture, save_personal


def test_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_personal(tmp_path / "model", frozen_parts(tmp_path / "parts"), "deep", "ann", "bo")
    rows: list[dict[str, object]] = []
    for number, user in enumerate(("ann", "bo", "cy", "ann")):
        picture(number).save(tmp_path / f"{number}.png")
        seen = user != "cy"
        rows.append({"image": f"{number}.png", "user": user, "user_seen": seen, "captions": [f"a dog {number}"]})
    histories = {user: [f"{user} runs in the rain", "the old roof"] for user in ("ann", "bo", "cy")}
    lines = [json.dumps({"user": user, "history": texts}) for user, texts in histories.items()]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "users.jsonl").write_text("\n".join(lines), encoding="utf-8")
    figures = personal.main(
        [str(model), "--data", str(tmp_path), "--positions", "3", "--out", str(tmp_path / "f.json")]
    )
    assert json.loads((tmp_path / "f.json").read_text(encoding="utf-8")) == figures
    own, nobody = figures["the user"], figures["nobody"]
    assert own["seen"] != pytest.approx(nobody["seen"], abs=1e-3)
    assert own["unseen"] == pytest.approx(nobody["unseen"], abs=1e-4)  # cy has no row
    texts = [figures[f"the user's texts as a prefix: {start}"] for start in ("text", "compact")]
    assert all(way["unseen"] != pytest.approx(nobody["unseen"], abs=1e-3) for way in texts)  # but has texts
    assert texts[0]["seen"] != pytest.approx(texts[1]["seen"], abs=1e-5)
    printed = capsys.readouterr().out
    assert "seen users, 3 texts" in printed
    assert all(f"| {way} " in printed for way in figures)
    monkeypatch.delattr(personal, "distil_users")  # prefixes that nobody asked for are not made
    assert list(personal.main([str(model), "--data", str(tmp_path), "--only", "nobody"])) == ["nobody"]
