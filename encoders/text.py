"""Encoders of texts: BERT and its like, sentence encoders, the text towers of CLIP and SigLIP; from Transformers.

Sentence-BERT, https://arxiv.org/abs/1908.10084; CLIP, https://arxiv.org/abs/2103.00020; SigLIP,
https://arxiv.org/abs/2303.15343. The files beside a sentence encoder's weights are those of sentence-transformers.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as to_unit_length
from torch.nn.functional import pad
from transformers import AutoModel, CLIPTextModelWithProjection
from transformers.models.auto import modeling_auto as auto

from mmprefix.encoders.audio_input import length_mask
from mmprefix.encoders.base import Encoder
from mmprefix.encoders.text_pooling import pooled, sentence_modules
from mmprefix.errors import InputError
from mmprefix.media.source import Source, Texts, read_text
from mmprefix.types import Features, Media
from mmprefix.weights import source as sources
from mmprefix.weights import transformers
from mmprefix.weights.dry_run import sizes_only
from mmprefix.weights.model_kinds import advice, described, kind_and_class

LongLists = Literal["newest", "oldest"]
_TOWERS = ("clip", "clip_text_model", "siglip", "siglip2")


@dataclass(frozen=True)
class ReadText:
    """Preprocessing of ``Text``: one text, or several joined by ". ", as at most ``limit`` token ids.

    ``long_lists`` is no part of its description: features of another choice are those of another part of the texts.
    """

    tokenizer: Any = field(repr=False)
    limit: int
    lower: bool
    prompt: str
    vocabulary: str  # hash of the tokenizer: features of another one are others
    long_lists: LongLists = field(default="newest", repr=False)

    def __call__(self, source: Source, start: float = 0.0, end: float | None = None) -> Tensor:
        """Text → token ids (N,), int64; the rest of a long text is left out. InputError as in ``read_text``."""
        read_text(source)  # refuses what no tokenizer reads, before ``part_read`` counts its tokens
        text = self._written(read_text(self.part_read(source)))
        ids = self.tokenizer(text, truncation=True, max_length=self.limit)["input_ids"]
        return torch.tensor(ids, dtype=torch.long)

    def part_read(self, source: Source) -> Source:
        """``source`` without the first of several texts, where all do not fit; the last one is always there."""
        if self.long_lists == "oldest" or not isinstance(source, Texts):
            return source
        texts = tuple(text for text in source.texts if text.strip())
        few = texts[-self.limit - 1 :]  # each takes a token or more: of a history of thousands no more are looked at
        if len(few) == len(texts) and self._fits(texts):
            return source
        first = bisect_left(range(len(few) - 1), True, key=lambda first: self._fits(few[first:]))
        return Texts(few[first:]) if len(few) - first < len(texts) else source

    def _fits(self, texts: Sequence[str]) -> bool:
        text = self._written(Texts(tuple(texts)).joined)
        return len(self.tokenizer(text, verbose=False)["input_ids"]) <= self.limit

    def _written(self, text: str) -> str:
        return (self.prompt + text).lower() if self.lower else self.prompt + text


class Text(Encoder):
    """Sentence encoder, BERT-like model, or text tower of a CLIP or SigLIP, by hub name or folder.

    It reads the text, or the list of texts joined by ". ", in the manifest's column of its branch's name. Frames are
    the last hidden state of each token. The summary of a CLIP or SigLIP is its embedding in the space of pictures, not
    scaled; of another model what ``modules.json`` and the folder of its pooling say, as sentence-transformers writes
    them (cls, max, mean, mean_sqrt_len, weightedmean, lasttoken; scaled to length 1 where it has Normalize), and the
    mean over all tokens where there is no such file. A text is cut to the model's longest (77 tokens for CLIP, 256 or
    512 for most sentence encoders); of a list that is longer the last texts are read, a user's newest.

    Args:
        model: a folder, ``mmprefix:NAME``, ``models:NAME``, or a hub name.
        revision: the hub's branch, tag or commit.
        dtype: precision of the weights: float32, float16 or bfloat16. Features are always float32.
        long_lists: what is read of several texts that do not fit together: "newest", the last ones, each whole (the
            beginning of the last where that one is too long); "oldest", the beginning of all, as models read that
            were saved before there was a choice.

    Raises InputError for another ``long_lists``, and for weights that are no encoder of texts.
    """

    input_kind = "text"

    def __init__(
        self, model: str, revision: str | None = None, dtype: str = "float32", long_lists: LongLists = "newest"
    ) -> None:
        super().__init__()
        if long_lists not in get_args(LongLists):
            raise InputError(f"Text.long_lists {long_lists!r}: give one of {', '.join(get_args(LongLists))}")
        path = sources.resolve_folder(model, revision, weights=not sizes_only())
        kind = _require_text_encoder(model, path)
        self.tower, self.sentence = kind in _TOWERS, sentence_modules(model, path)
        identity = sources.provenance_of(model, path)
        if self.sentence.settings and identity.sha256:  # another pooling is another encoder
            digest = sources.fingerprint([*sources.weight_files(path), self.sentence.settings])
            identity = replace(identity, sha256=digest)
        self.identity = identity
        self.network, self.projection = _load(model, path, kind, dtype)
        tokenizer: Any = transformers.load_tokenizer(self.network, model, path, part="encoder")
        limit = _longest(self.network, tokenizer, self.sentence.limit)
        self.padding, self.window = int(tokenizer.pad_token_id or 0), limit if kind.startswith("siglip") else 0
        self.preprocess = ReadText(
            tokenizer, limit, self.sentence.lower, self.sentence.prompt, _hash(tokenizer), long_lists
        )
        self.freeze()
        self.dim, self.pooled_dim = self._widths(model)

    def encode(self, media: Media) -> Features:
        """Token ids (B N) → frames (B T D), mask (B T), T = N, and the summary (B G)."""
        lengths = media.lengths.clamp(max=media.values.shape[1])
        mask = length_mask(lengths, int(lengths.max()))
        ids = media.values[:, : mask.shape[1]].long().masked_fill(~mask, self.padding)
        if self.window:  # SigLIP was trained on texts of one length, and reads its padding
            output = self.network(input_ids=pad(ids, (0, self.window - mask.shape[1]), value=self.padding))
        else:
            output = self.network(input_ids=ids, attention_mask=mask.long())
        frames = output.last_hidden_state[:, : mask.shape[1]].float().masked_fill(~mask.unsqueeze(2), 0.0)
        return Features(frames, mask, self._summary(output, frames, mask))

    def _summary(self, output: Any, frames: Tensor, mask: Tensor) -> Tensor:
        if self.tower:
            embedding = output.pooler_output
            return (embedding if self.projection is None else self.projection(embedding)).float()
        summary = pooled(frames, mask, self.sentence.modes)
        return to_unit_length(summary, dim=1) if self.sentence.unit else summary

    def _widths(self, name: str) -> tuple[int, int]:
        if sizes_only() and not self.tower:
            return self.network.config.hidden_size, self.network.config.hidden_size * len(self.sentence.modes)
        # Taken from the features of two tokens: configurations name these widths in several ways.
        ids = torch.full((1, 2), self.padding, dtype=torch.long)
        try:
            features = self.forward(Media(ids, torch.tensor([2])))
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{name!r}: {type(self.network).__name__} did not encode a text: {error}") from error
        return features.frames.shape[2], features.pooled.shape[1]


def _require_text_encoder(name: str, path: Path) -> str:
    """Type of the model in ``path``; InputError if it is no encoder of texts."""
    kind = transformers.model_type(name, path)
    sentences = (path / "modules.json").is_file() and kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind not in _TOWERS and kind_and_class(kind)[0] != "an encoder of text" and not sentences:
        raise InputError(
            f"{name!r}: the folder {path} holds {described(kind)}, which Text cannot read; it reads sentence encoders, "
            f"BERT and its like, {', '.join(_TOWERS)}{advice(kind)}"
        )
    return kind


def _load(name: str, path: Path, kind: str, dtype: str) -> tuple[Any, Any]:
    """Network that reads token ids, and the projection of a CLIP's text tower (None for any other)."""
    if sizes_only() and kind not in _TOWERS:
        return transformers.empty_model(AutoModel, name, path), None
    if kind in _TOWERS:
        known = transformers.config(name, path)
        alone = "CLIPTextModelWithProjection" in (getattr(known, "architectures", None) or ())
        network, _ = transformers.load_model(CLIPTextModelWithProjection if alone else AutoModel, name, path, dtype)
        tower = getattr(network, "text_model", network)
        return tower, getattr(network, "text_projection", None)
    network, missing = transformers.load_model(AutoModel, name, path, dtype, optional=("pooler.",))
    if missing:
        network.pooler = None
    return network, None


def _longest(network: Any, tokenizer: Any, own: int | None) -> int:
    """Longest input in tokens: ``own``, as far as the network has positions for it and the tokenizer allows it."""
    positions = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in network.named_modules()
        if isinstance(module, nn.Embedding) and name.endswith(("position_embeddings", "position_embedding"))
    ]
    known = getattr(network.config, "max_position_embeddings", None)
    limits = [own, tokenizer.model_max_length, *(positions or [known])]
    return min(int(limit) for limit in limits if limit)


def _hash(tokenizer: Any) -> str:
    described = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(tokenizer.get_vocab())
    return hashlib.sha256(described.encode()).hexdigest()[:16]
