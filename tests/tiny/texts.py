"""Tiny random encoders of texts with a tokenizer of twelve words, some with the files of sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tiny.bert import WORDS, save_bert
from tiny.encoders import randomized

_SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_TEXT: dict[str, Any] = {**_SIZES, "hidden_size": 16, "vocab_size": len(WORDS), "pad_token_id": 0}
_VISION: dict[str, Any] = {**_SIZES, "hidden_size": 16, "image_size": 16, "patch_size": 8}
KINDS = ("bert", "distilbert", "roberta", "clip", "clip_text_model", "siglip")


def save_text(folder: Path, kind: str, positions: int = 12) -> Path:
    """A text encoder of Transformers with its tokenizer: one of ``KINDS``, which reads ``positions`` tokens."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    hf.BertTokenizer(str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    torch.manual_seed(4)
    randomized(_model(kind, positions)).save_pretrained(folder)
    return folder


def _model(kind: str, positions: int) -> Any:
    """A Transformers model with random weights."""
    ends: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": positions}
    clip = {**_TEXT, **ends, "projection_dim": 20}
    siglip = {**_TEXT, **ends, "projection_size": 16}
    distil: dict[str, Any] = {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 32,
        "vocab_size": len(WORDS),
        "pad_token_id": 0,
    }
    models = {
        "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**_TEXT, max_position_embeddings=positions)),
        "distilbert": lambda: hf.DistilBertModel(hf.DistilBertConfig(**distil, max_position_embeddings=positions)),
        "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**_TEXT, max_position_embeddings=positions + 1)),
        "clip": lambda: hf.CLIPModel(hf.CLIPConfig(text_config=clip, vision_config=_VISION, projection_dim=20)),
        "clip_text_model": lambda: hf.CLIPTextModelWithProjection(hf.CLIPTextConfig(**clip)),
        "siglip": lambda: hf.SiglipModel(hf.SiglipConfig(text_config=siglip, vision_config=_VISION)),
    }
    return models[kind]()


def save_sentence_encoder(folder: Path, modes: Sequence[str] = ("mean_tokens",), unit: bool = True) -> Path:
    """A BERT as sentence-transformers publishes it, with ``modes`` of pooling (``cls_token``, ``mean_tokens`` ...)."""
    save_bert(folder, seed=5)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if unit else [])]
    places = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    rows = [
        {"idx": n, "path": places[kind], "type": f"sentence_transformers.models.{kind}"} for n, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, **{f"pooling_mode_{mode}": True for mode in modes}}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8, "do_lower_case": False}))
    return folder
