"""Sentence similarity: the formula of sentence-transformers, on a tiny BERT and on MiniLM; models that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mmprefix.errors import InputError
from mmprefix.metrics import FenseModels, caption
from mmprefix.metrics.sentence_encoder import SentenceEncoder, sentence_similarity
from mmprefix.weights.source import resolve_sentence_encoder
from tiny.bert import save_bert
from tiny.decoders import save_decoder
from tiny.texts import save_sentence_encoder

pytestmark = pytest.mark.numeric
PREDICTIONS = ["A dog runs .", "a cat", "", "the cat sleeps " * 40]
REFERENCES = [["the dog runs", "a dog"], ["a cat sleeps ."], ["the dog"], ["the cat", "a dog . " * 50, "the cat"]]


def similarity_by_hand(folder: Path, limit: int, lower: bool = False) -> list[float]:
    """Mean pooling over all tokens and cosine, one text at a time, as the model's own card computes it."""
    tokenizer, model = hf.AutoTokenizer.from_pretrained(folder), hf.AutoModel.from_pretrained(folder).eval()

    def vector(text: str) -> Tensor:
        tokens = tokenizer(text.lower() if lower else text, truncation=True, max_length=limit, return_tensors="pt")
        mask = tokens["attention_mask"].unsqueeze(-1).float()
        return ((model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1))[0]

    with torch.no_grad():
        return [
            sum(float(cosine_similarity(vector(ours), vector(text), dim=0)) for text in texts) / len(texts)
            for ours, texts in zip(PREDICTIONS, REFERENCES, strict=True)
        ]


def test_similarity_is_the_cosine_of_means_over_tokens(tmp_path: Path) -> None:
    folder = save_sentence_encoder(tmp_path / "s")
    scores = sentence_similarity(PREDICTIONS, REFERENCES, SentenceEncoder(folder))
    assert scores == pytest.approx(similarity_by_hand(folder, 8), abs=1e-5)
    plain = save_bert(tmp_path / "plain", 2)
    scores = sentence_similarity(PREDICTIONS, REFERENCES, SentenceEncoder(plain))
    assert scores == pytest.approx(similarity_by_hand(plain, 128), abs=1e-5)


def test_small_letters_where_the_folder_asks_for_them(tmp_path: Path) -> None:
    folder = save_sentence_encoder(tmp_path / "s")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "do_lower_case": False}))
    raw = sentence_similarity(PREDICTIONS, REFERENCES, SentenceEncoder(folder))
    assert raw == pytest.approx(similarity_by_hand(folder, 8), abs=1e-5)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 8, "do_lower_case": true}')
    lower = sentence_similarity(PREDICTIONS, REFERENCES, SentenceEncoder(folder))
    assert lower == pytest.approx(similarity_by_hand(folder, 8, lower=True), abs=1e-5)
    assert abs(lower[0] - raw[0]) > 1e-4


def test_references_are_encoded_once(tmp_path: Path) -> None:
    encoder = SentenceEncoder(save_bert(tmp_path / "s", 1))
    first = encoder.embed(["a dog", "the cat", "a dog"])
    second = encoder.embed(["the cat", "a cat"])
    assert (first.keys(), second.keys()) == ({"a dog", "the cat"}, {"the cat", "a cat"})
    assert second["the cat"] is first["the cat"]


@pytest.mark.models
def test_minilm_equals_the_formula_of_sentence_transformers(
    real_model: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = resolve_sentence_encoder(real_model("all-minilm-l6-v2"))
    texts = ["two dogs run through the snow"] * 2, [["dogs are running in snow"], ["a man plays the guitar"]]
    scores = caption(*texts, per_item=True, extra=["sbert_sim"], models=FenseModels(folder))["items"]["sbert_sim"]
    assert capfd.readouterr().err == ""
    assert scores[0] > 0.8
    assert scores[1] < 0.2
    scores = sentence_similarity(PREDICTIONS, REFERENCES, SentenceEncoder(folder))
    assert scores == pytest.approx(similarity_by_hand(folder, 256), abs=1e-5)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["cls_token"], "summarises a text by cls; take one that does by the mean over its tokens"),
        (["mean_tokens", "max_tokens"], "summarises a text by mean, max"),
    ],
)
def test_another_pooling_is_refused(tmp_path: Path, modules: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SentenceEncoder(save_sentence_encoder(tmp_path / "s", modules))


def test_folders_that_are_no_sentence_encoder_are_refused(tmp_path: Path) -> None:
    folder = save_sentence_encoder(tmp_path / "s")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    with pytest.raises(InputError, match="summarises a text by lasttoken"):
        SentenceEncoder(folder)
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(InputError, match=r"by a pooling whose 1_Pooling/config.json is missing"):
        SentenceEncoder(folder)
    rows = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([rows[0], {"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(InputError, match="summarises a text by mean, Dense"):
        SentenceEncoder(folder)
    (folder / "modules.json").write_text("[")
    with pytest.raises(InputError, match=r"cannot be read: .*modules.json: "):
        SentenceEncoder(folder)
    with pytest.raises(InputError, match=r"sbert_sim is not available: .* is no model of Transformers"):
        SentenceEncoder(tmp_path)
    save_decoder(tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"is a model that writes texts \(GPT2LMHeadModel\)"):
        SentenceEncoder(tmp_path / "gpt2")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"cannot be read: [^\n]*$"):
        SentenceEncoder(tmp_path / "empty").embed(["a"])
