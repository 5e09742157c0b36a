"""Study of sharing, from its command line to its JSON, on a tiny recipe over pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.studies import sharing
from tiny.captioning_system import build

STORED = "shared prefix, float32 store"


def data(tiny: Path, folder: Path) -> Path:
    """Write a data set of four pictures to train on and two to test on into ``folder``, and return it."""
    rows = [json.loads(line) for line in (tiny / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [{**row, "image": str(tiny / row["image"])} for row in rows if "image" in row]
    rows = [{**row, "split": "train" if number < 4 else "test"} for number, row in enumerate(rows)]
    (folder / "pictures").mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "pictures" / "manifest.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny").mkdir()
    tiny = build(tmp_path / "tiny", steps=20)
    recipe = tiny.config(["image"])
    recipe["data"]["init_args"] = {"root": "pictures", "batch_size": 2}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "pictures.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    monkeypatch.setattr(sharing, "RECIPES", tmp_path / "recipes")

    file, root = tmp_path / "sharing.json", data(tiny.folder, tmp_path / "data")
    results = sharing.main([str(root), "--sets", "pictures", "--seeds", "0", "1", "--json", str(file)])

    assert json.loads(file.read_text(encoding="utf-8")) == results
    runs = results["sets"]["pictures"]
    assert list(runs) == list(sharing.VARIANTS)
    assert all(len(figures) == 2 for figures in runs.values())
    losses = {name: [run["loss"] for run in figures] for name, figures in runs.items()}
    assert losses["shared prefix, no store"] == pytest.approx(losses[STORED], rel=1e-4)
    assert losses["shared prefix, float16 store"] == pytest.approx(losses[STORED], rel=1e-2)
    assert losses["a prefix for each caption, float32 store"] != losses[STORED]  # other batches, so another training
    assert losses[STORED][0] != losses[STORED][1]  # and another seed is another one
    printed = capsys.readouterr().out
    assert all(f"| pictures: {name} " in printed for name in sharing.VARIANTS)
