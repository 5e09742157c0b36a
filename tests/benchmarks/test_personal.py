"""Study of what a model makes of its user, from its command line to its table, on tiny models."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.studies.users import personal
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.model import PrefixLM
from mmprefix.prompt_template import PromptTemplate
from mmprefix.saved_model import ModelSettings
from tiny.models import OPTIONS, frozen_parts
from tiny.users import picture, save_personal


def write_data(folder: Path) -> None:
    """Four test rows of two seen users and an unseen one, and all users' earlier texts."""
    rows: list[dict[str, object]] = []
    for number, user in enumerate(("ann", "bo", "cy", "ann")):
        picture(number).save(folder / f"{number}.png")
        seen = user != "cy"
        row = {"image": f"{number}.png", "context": "a plan", "user": user, "user_seen": seen}
        rows.append({"id": str(number), **row, "captions": [f"a dog {number}"]})
    histories = {user: [f"{user} runs in the rain", "the old roof"] for user in ("ann", "bo", "cy")}
    lines = [{"user": user, "history": texts} for user, texts in histories.items()]
    train = [{"user": user, "captions": [f"{user} likes a dog"]} for user in ("ann", "bo")]
    for name, content in (("test", rows), ("users", lines), ("train", train)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")


def test_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_personal(tmp_path / "model", frozen_parts(tmp_path / "parts"), "deep", "ann", "bo")
    write_data(tmp_path)
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


def test_a_model_that_learned_to_read_texts_in_its_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts of the user, of another, none; and what it writes is scored beside what the users wrote."""
    write_data(tmp_path)
    torch.manual_seed(3)
    wording = PromptTemplate(context="{context}\n", history="{history}\n")
    decoder = CausalDecoder(str(frozen_parts(tmp_path / "parts")["decoder"]))
    model = PrefixLM({}, decoder, partial(DeepTable, length=2), wording=wording)
    Predictor(model, ModelSettings(OPTIONS)).save(tmp_path / "model")
    options = ["--data", str(tmp_path), "--write", "--texts-out", str(tmp_path / "texts.jsonl")]
    figures = personal.main([str(tmp_path / "model"), *options])
    assert list(figures) == [personal.CEILING, "the user", "nobody", "another user"]
    likelihoods = [figures[name]["seen"] for name in list(figures)[1:]]
    assert len({round(value, 4) for value in likelihoods}) == 3
    ceiling = figures[personal.CEILING]
    assert (ceiling["seen rouge_l"], ceiling["unseen rouge_l"]) == (1.0, 1.0)
    assert 0 <= figures["the user"]["seen style"] <= 1
    assert "unseen style" not in ceiling  # one user cannot be told from others
    texts = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in texts] == ["0", "1", "2", "3"]
    assert texts[0].keys() == {"id", "the user", "nobody", "another user"}
    assert "| style |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        personal.main([str(tmp_path / "model"), "--data", str(tmp_path), "--texts-out", "x"])
