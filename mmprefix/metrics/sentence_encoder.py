"""Sentence similarity of Sentence-BERT (https://arxiv.org/abs/1908.10084): cosines between mean-pooled embeddings.

The embedding of a text is the mean of a BERT's last layer over its tokens, as written, without COCO's tokens. A folder
in the form of sentence-transformers may bring the longest input and small letters. Another pooling than the mean,
trained layers behind it, and models that write texts are refused. Models are read from local folders only; torch is
imported with the first text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprefix.metrics.meteor_spice import NotAvailable

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 64
_MAX_TOKENS = 128  # of a folder that does not say it
_WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


class SentenceEncoder:
    """Sentence encoder in a local ``folder``; ``metric`` is the one that errors name.

    Raises ``NotAvailable`` where the folder is missing, holds no Transformers model or one that writes texts, or
    describes another summary than the mean over all tokens.
    """

    def __init__(self, folder: str | Path, metric: str = "sbert_sim") -> None:
        self.folder = Path(folder)
        if reason := _unfit(self.folder):
            raise NotAvailable(f"{metric} is not available: the sentence encoder {folder} {reason}")
        settings = _settings(self.folder / "sentence_bert_config.json")
        self._limit, self._lower = int(settings.get("max_seq_length") or _MAX_TOKENS), settings.get("do_lower_case")
        self._loaded: tuple[Any, Any] | None = None
        self._vectors: dict[str, Tensor] = {}

    def embed(self, texts: Iterable[str]) -> dict[str, Tensor]:
        """Unit-length embedding (D,) of each text. Those of the last call are kept: references come back."""
        wanted = list(dict.fromkeys(texts))
        new = [text for text in wanted if text not in self._vectors]
        vectors = self._vectors | dict(zip(new, self._encode(new), strict=True))
        self._vectors = {text: vectors[text] for text in wanted}
        return self._vectors

    def _encode(self, texts: Sequence[str]) -> list[Tensor]:
        if not texts:
            return []
        import torch

        tokenizer, model = self._loaded = self._loaded or _load(self.folder)
        rows: list[Tensor] = []
        for start in range(0, len(texts), _BATCH):
            batch = [text.lower() if self._lower else text for text in texts[start : start + _BATCH]]
            tokens = tokenizer(batch, padding=True, truncation=True, max_length=self._limit, return_tensors="pt")
            with torch.inference_mode():
                frames = model(**tokens).last_hidden_state  # (b N D)
                mask = tokens["attention_mask"].unsqueeze(-1).to(frames.dtype)  # (b N 1)
                means = (frames * mask).sum(1) / mask.sum(1).clamp(min=1e-9)  # (b D)
                rows += torch.nn.functional.normalize(means, dim=-1).unbind()
        return rows


def mean_cosines(
    predictions: Sequence[str], references: Sequence[Sequence[str]], vectors: Mapping[str, Tensor]
) -> list[float]:
    """Cosine of the ``vectors`` of prediction and reference, averaged over each item's references; one per item."""
    return [
        sum(float(vectors[text] @ vectors[prediction]) for text in item) / len(item)
        for prediction, item in zip(predictions, references, strict=True)
    ]


def sentence_similarity(
    predictions: Sequence[str], references: Sequence[Sequence[str]], encoder: SentenceEncoder
) -> list[float]:
    """Similarity of each prediction to its references, between -1 and 1: ``mean_cosines`` of their embeddings."""
    vectors = encoder.embed([*predictions, *(text for item in references for text in item)])
    return mean_cosines(predictions, references, vectors)


def _load(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and network, without the bar and the report that Transformers writes."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        return AutoTokenizer.from_pretrained(folder, **options), AutoModel.from_pretrained(folder, **options).eval()
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":")
        raise NotAvailable(f"the sentence encoder {folder} cannot be read: {reason}") from error
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _unfit(folder: Path) -> str:
    """Reason why the model in ``folder`` is no sentence encoder; "" for one that is."""
    if not folder.is_dir():
        return "does not exist"
    config = _settings(folder / "config.json")
    if "model_type" not in config:
        return "is no model of Transformers: its config.json names no model_type"
    writers = [name for name in config.get("architectures") or () if str(name).endswith(_WRITERS)]
    if writers and not (folder / "modules.json").is_file():
        return (
            f"is a model that writes texts ({writers[0]}); take one of sentence-transformers, such as all-MiniLM-L6-v2"
        )
    pooling = _pooling(folder)
    if pooling != ["mean"]:
        return f"summarises a text by {', '.join(pooling)}; take one that does by the mean over its tokens"
    return ""


def _pooling(folder: Path) -> list[str]:
    """Pooling that the files of sentence-transformers describe, with other trained modules; the mean without them."""
    modules = _settings(folder / "modules.json") or []
    kinds = {str(row.get("type")).rpartition(".")[2]: str(row.get("path")) for row in modules}
    others = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize", "Dropout")]
    options = _settings(folder / kinds["Pooling"] / "config.json") if "Pooling" in kinds else {}
    if "Pooling" in kinds and not options:
        return [f"a pooling whose {kinds['Pooling']}/config.json is missing", *others]
    modes = [key for key, value in options.items() if key.startswith("pooling_mode_") and value is True]
    names = [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for key in modes]
    newer = options.get("pooling_mode")
    return ([newer] if isinstance(newer, str) else names or ["mean"]) + others


def _settings(file: Path) -> Any:
    """Content of a JSON file; an empty object where there is none."""
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NotAvailable(f"the sentence encoder cannot be read: {file}: {error}") from error
