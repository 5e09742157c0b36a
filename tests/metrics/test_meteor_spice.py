"""METEOR, SPICE and FENSE: scores if programs and models are installed, else an error that names them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mmprefix.metrics import FenseModels, NotAvailable
from mmprefix.metrics.caption import EXTRA, caption
from mmprefix.metrics.meteor_spice import read_spice
from tiny.bert import save_bert
from tiny.caption_sets import assert_same_scores, recorded_set, scores_of


def _needs_java() -> None:
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("no java")


@pytest.mark.slow
def test_meteor_gives_the_recorded_figures() -> None:
    _needs_java()
    recorded = recorded_set()
    assert_same_scores(scores_of(recorded["items"], "none", "_tokens", ("meteor",)), recorded["ptb"], ("meteor",))


def test_without_java_the_error_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotAvailable, match="meteor is not available: no java on the PATH"):
        caption(["a dog"], [["a dog"]], extra=["meteor"])


def test_a_java_program_that_fails_gives_no_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\necho no memory >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotAvailable, match="its Java program stopped: no memory"):
        caption(["a dog"] * 50, [["a dog"]] * 50, extra=["meteor"])


@pytest.mark.parametrize("name", ["spice", "spider"])
def test_spice_without_its_archives(name: str) -> None:
    package = pytest.importorskip("pycocoevalcap")
    if Path(package.__path__[0], "spice", "lib", "stanford-corenlp-3.6.0.jar").is_file():
        pytest.skip("the archives are here")
    with pytest.raises(NotAvailable, match=r"stanford-corenlp-3.6.0.jar and stanford-corenlp-3.6.0-models.jar not in"):
        caption(["a dog"], [["a dog"]], extra=[name])


def test_spice_report_is_read_by_item() -> None:
    entry = '{"image_id": %d, "test_tuples": [], "ref_tuples": [], "scores": {"All": {"pr": 1, "re": 1, "f": %s}}}'
    assert read_spice(f"[{entry % (1, 'null')}, {entry % (0, '0.25')}]", 2) == [0.25, 0.0]


def test_fense_from_local_models(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    save_bert(tmp_path / "sentences", 1)
    save_bert(tmp_path / "backbone", 2)
    bert = AutoModel.from_pretrained(tmp_path / "backbone")
    state = {f"encoder.{key}": value for key, value in bert.state_dict().items()}
    predictions = ["a dog runs.", "the cat", "a cat sleeps the dog runs"]
    references = [["the dog runs", "a dog"], ["a cat sleeps."], ["the cat sleeps", "a dog runs", "dog"]]

    # The similarity, one text at a time and without padding.
    tokenizer, model = (
        AutoTokenizer.from_pretrained(tmp_path / "sentences"),
        AutoModel.from_pretrained(tmp_path / "sentences"),
    )

    def vector(text: str) -> torch.Tensor:
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    with torch.inference_mode():
        similar = [
            sum(float(torch.cosine_similarity(vector(ours), vector(text), dim=0)) for text in texts) / len(texts)
            for ours, texts in zip(predictions, references, strict=True)
        ]
        # A detector whose last logit says "error" for the second prediction only (its text without marks, lowered).
        tokens = AutoTokenizer.from_pretrained(tmp_path / "backbone")
        first = [
            bert(**tokens(text.replace(".", ""), return_tensors="pt")).last_hidden_state[0, 0] for text in predictions
        ]
    direction = first[1] - (first[0] + first[2]) / 2
    weight = torch.zeros(6, 16)
    weight[5] = direction * 200 / direction.norm() ** 2
    bias = torch.zeros(6)
    bias[5] = -float(weight[5] @ (first[1] + max(first[0], first[2], key=lambda one: float(weight[5] @ one))) / 2)
    state |= {"clf.weight": weight, "clf.bias": bias, "encoder.embeddings.position_ids": torch.arange(512)[None]}
    torch.save({"model_type": "tiny", "num_classes": 6, "state_dict": state}, tmp_path / "detector.ckpt")

    models = FenseModels(tmp_path / "sentences", tmp_path / "detector.ckpt", tmp_path / "backbone")
    scores = caption(predictions, references, per_item=True, extra=["sbert_sim", "fense"], models=models)
    assert scores["items"]["sbert_sim"] == pytest.approx(similar, abs=1e-5)
    assert scores["items"]["fense"] == pytest.approx([similar[0], similar[1] * 0.1, similar[2]], abs=1e-5)
    assert scores["fense"] == pytest.approx(sum(scores["items"]["fense"]) / 3)

    save_bert(tmp_path / "other", 3, width=8)
    wrong = FenseModels(tmp_path / "sentences", tmp_path / "detector.ckpt", tmp_path / "other")
    with pytest.raises(NotAvailable, match="was not built on the BERT in"):
        caption(predictions, references, extra=["fense"], models=wrong)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (None, "name the folders of its models"),
        (FenseModels("x"), "it needs a fluency detector"),
        (FenseModels("no-such-folder", "d", "b"), "no-such-folder does not exist"),
    ],
)
def test_fense_without_models(models: FenseModels | None, message: str) -> None:
    with pytest.raises(NotAvailable, match=message):
        caption(["a dog"], [["a dog"]], extra=["fense"], models=models)
    assert "fense" in EXTRA
