"""FENSE of Zhou et al. 2022 (https://arxiv.org/abs/2110.04684): sentence similarity, a tenth of it if not fluent.

The similarity is that of ``mmprefix.metrics.sentence_encoder``. The fluency detector is a BERT with six logits at its
first position, the last of which means "error"; a caption whose error probability exceeds 0.9 loses nine tenths of its
score. Both models read the text as written, not the tokens of ``tokenize``, and are read from local files only. torch
is imported when a score is computed, not before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprefix.metrics.meteor_spice import NotAvailable
from mmprefix.metrics.sentence_encoder import SentenceEncoder, sentence_similarity

_THRESHOLD = 0.9
_PENALTY = 0.9
_DETECTOR_TOKENS = 64
_BATCH = 64


@dataclass(frozen=True)
class FenseModels:
    """Paths of FENSE's models.

    ``sentences``: a folder with the sentence encoder and its tokenizer (the paper's: paraphrase-TinyBERT-L6-v2).
    ``detector``: the fluency detector's checkpoint (the paper's: echecker_clotho_audiocaps_base.ckpt).
    ``backbone``: a folder with configuration and tokenizer of the BERT under the detector (bert-base-uncased).
    """

    sentences: str | Path
    detector: str | Path | None = None
    backbone: str | Path | None = None


def _existing(path: str | Path, option: str) -> Path:
    if not Path(path).exists():
        raise NotAvailable(f"fense is not available: {option} {path} does not exist")
    return Path(path)


def _load_detector(checkpoint: Path, backbone: Path) -> tuple[Any, Any]:
    """BERT and output layer of the detector, from the authors' checkpoint (keys ``encoder.*`` and ``clf.*``)."""
    import torch
    from transformers import AutoConfig, AutoModel

    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    encoder = AutoModel.from_config(AutoConfig.from_pretrained(backbone, local_files_only=True))
    weights = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    weights.pop("embeddings.position_ids", None)  # a buffer of older releases, not a weight
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise NotAvailable(f"fense is not available: {checkpoint} was not built on the BERT in {backbone}") from error
    output = torch.nn.Linear(state["clf.weight"].shape[1], state["clf.weight"].shape[0])
    output.load_state_dict({"weight": state["clf.weight"], "bias": state["clf.bias"]})
    return encoder.eval(), output.eval()


def error_probability(predictions: Sequence[str], detector: str | Path, backbone: str | Path) -> list[float]:
    """Probability that each caption is not fluent (cut off, repeated, without a verb or a conjunction)."""
    import torch
    from transformers import AutoTokenizer

    folder = _existing(backbone, "the detector's backbone")
    encoder, output = _load_detector(_existing(detector, "the detector"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    probabilities: list[float] = []
    for start in range(0, len(predictions), _BATCH):
        batch = [re.sub(r"[^\w\s]", "", text).lower() for text in predictions[start : start + _BATCH]]
        tokens = tokenizer(batch, padding=True, truncation=True, max_length=_DETECTOR_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            logits = output(encoder(**tokens).last_hidden_state[:, 0])  # (b 6)
        probabilities += logits[:, -1].sigmoid().tolist()
    return probabilities


def fense(predictions: Sequence[str], references: Sequence[Sequence[str]], models: FenseModels) -> list[float]:
    """FENSE of each item; the corpus score is the mean. Raises ``NotAvailable`` without a detector."""
    if models.detector is None or models.backbone is None:
        raise NotAvailable(
            "fense is not available: it needs a fluency detector (detector, backbone); ask for sbert_sim"
        )
    similarities = sentence_similarity(predictions, references, SentenceEncoder(models.sentences, "fense"))
    errors = error_probability(predictions, models.detector, models.backbone)
    return [
        similarity * (1 - _PENALTY) if error > _THRESHOLD else similarity
        for similarity, error in zip(similarities, errors, strict=True)
    ]
