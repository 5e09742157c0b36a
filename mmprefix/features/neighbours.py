"""Captions of the inputs that are most like another one: they choose among its texts, or stand in its prompt.

Exploring Nearest Neighbor Approaches for Image Captioning (Devlin et al. 2015), https://arxiv.org/abs/1505.04467: of
several texts that one is best which agrees most with the captions of like inputs, by CIDEr.

SmallCap: Lightweight Image Captioning Prompted with Retrieval Augmentation (Ramos et al., CVPR 2023),
https://arxiv.org/abs/2209.15323, retrieves by the likeness of picture and caption in CLIP's space. Here inputs are
compared with inputs, which needs no such space: any frozen encoder's summaries will do, of sounds too. Each neighbour
gives one caption, the one that agrees most with all captions of a wider circle (chosen here).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmprefix.atomic import write_atomically
from mmprefix.data.collate import pad_media
from mmprefix.data.manifest import InputRef
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.features.store import store_description
from mmprefix.media.source import Source
from mmprefix.metrics.cider_reward import CiderReward
from mmprefix.parts import from_recipe, to_recipe
from mmprefix.types import Candidate

FORMAT = 1
WEIGHT = 3.0  # of the agreement beside the score
_TENSOR, _SETTINGS = "summaries", "neighbours"


@dataclass(frozen=True)
class Neighbours:
    """Inputs that were described, found by their likeness to others.

    Args:
        encoder: frozen; its summaries are compared.
        summaries: (N, G), of N inputs.
        captions: of each of these inputs.
        count: neighbours whose captions an input gets, one of each.
        circle: nearest inputs whose captions choose that caption; at least ``count``.
        judges: nearest inputs whose captions judge the texts of an input.
    """

    encoder: Encoder
    summaries: Tensor
    captions: Sequence[Sequence[str]]
    count: int = 5
    circle: int = 10
    judges: int = 20

    def __post_init__(self) -> None:
        if not 1 <= self.count <= self.circle:
            raise InputError(f"neighbours: count {self.count}, circle {self.circle}: give 1 <= count <= circle")
        if self.judges < 1:
            raise InputError(f"neighbours: judges {self.judges}: give a number from 1 on")
        if len(self.captions) != len(self.summaries) or not all(self.captions):
            raise InputError("neighbours: each input needs a summary and a caption")
        if not bool(self.summaries.isfinite().all()):
            raise InputError(
                "neighbours: summaries hold numbers that are not finite, also where they are too large for half "
                "precision; take another encoder, or another of its layers"
            )
        if not self.summaries.shape[1]:
            raise InputError("neighbours: this encoder gives frames and no summary, by which inputs are compared; take "
                             "another, or its option that makes one")  # fmt: skip

    def __call__(self, sources: Sequence[Source | InputRef], batch_size: int = 16) -> list[str]:
        """Context of each input: captions of its neighbours, a line each, the nearest last.

        Raises InputError for an input that cannot be read.
        """
        return self.contexts(self.embed(sources, batch_size)) if sources else []

    @torch.no_grad()
    def embed(self, sources: Sequence[Source | InputRef], batch_size: int = 16) -> Tensor:
        """Summaries (B G) of one or more inputs. Raises InputError for an input that cannot be read."""
        parts = [self._encoded(sources[at : at + batch_size]) for at in range(0, len(sources), batch_size)]
        return torch.cat(parts)

    def contexts(self, summaries: Tensor, own: Sequence[int] | None = None) -> list[str]:
        """Contexts of inputs with these ``summaries`` (B G); ``own``: number of each in this collection, left out."""
        return ["\n".join(self._chosen(row)) for row in self._nearest(summaries, self.circle, own)]

    def best_first(
        self, summaries: Tensor, candidates: Sequence[Sequence[Candidate]], weight: float = WEIGHT
    ) -> list[list[Candidate]]:
        """``candidates`` of inputs with these ``summaries`` (B G), by score + ``weight`` times agreement.

        The agreement is the CIDEr-D of a text against all captions of the nearest ``judges``, 0 to 10; words weigh as
        they are rare in this collection.
        """
        ranked: list[list[Candidate]] = []
        for nearest, texts in zip(self._nearest(summaries, self.judges), candidates, strict=True):
            captions = [text for number in nearest for text in self.captions[number]]
            values = {text: text.score + weight * self._cider(text.text, captions) for text in texts}
            ranked.append(sorted(texts, key=values.__getitem__, reverse=True))
        return ranked

    def with_encoder_of(self, encoders: Iterable[nn.Module]) -> Neighbours:
        """These neighbours with that one of ``encoders`` that gives the same summaries, where there is one."""
        own = store_description(self.encoder)
        same = [other for other in encoders if isinstance(other, Encoder) and not other.saved]
        return next((replace(self, encoder=other) for other in same if store_description(other) == own), self)

    def _nearest(self, summaries: Tensor, count: int, own: Sequence[int] | None = None) -> list[list[int]]:
        """Numbers of the ``count`` inputs that are most like each of ``summaries`` (B G), the nearest first."""
        likeness = self._unit(summaries) @ self._unit(self.summaries).T
        if own is not None:
            likeness[torch.arange(len(own)), torch.tensor(own)] = -torch.inf
        return likeness.topk(min(count, likeness.shape[1] - (own is not None))).indices.tolist()

    def _chosen(self, nearest: Sequence[int]) -> list[str]:
        """A caption of each of the first ``count``, the nearest last."""
        words = {text: _words(text) for number in nearest for text in self.captions[number]}
        circle = [words[text] for number in nearest for text in self.captions[number]]
        return [
            max(self.captions[number], key=lambda text: sum(_agreement(words[text], other) for other in circle))
            for number in reversed(nearest[: self.count])
        ]

    def _unit(self, summaries: Tensor) -> Tensor:
        """Summaries (B G), standardised by those of the collection and scaled to length 1."""
        mean, deviation = self._moments
        return normalize((summaries.float() - mean) / deviation, dim=1)

    @cached_property
    def _cider(self) -> CiderReward:
        return CiderReward(self.captions, end=False)

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        rows = self.summaries.float()
        deviation = rows.std(0, correction=0)
        return rows.mean(0), deviation.clamp(min=0.01 * float(deviation.mean()) or 1.0)

    def _encoded(self, sources: Sequence[Source | InputRef]) -> Tensor:
        media = pad_media([self.encoder.preprocess(*_span(item)) for item in sources])
        return self.encoder(media.to(next(self.encoder.parameters()).device)).pooled.float().cpu()

    def save(self, file: str | Path) -> None:
        """Write one safetensors file: summaries in half precision, captions, and the encoder's recipe and hash."""
        settings = {
            "format": FORMAT,
            "encoder": to_recipe(self.encoder),
            "sha256": self.encoder.identity.sha256,
            "count": self.count,
            "circle": self.circle,
            "judges": self.judges,
            "captions": [list(texts) for texts in self.captions],
        }
        tensors = {_TENSOR: self.summaries.half().contiguous()}
        metadata = {_SETTINGS: json.dumps(settings, ensure_ascii=False)}
        write_atomically(Path(file), lambda path: save_file(tensors, path, metadata))

    @classmethod
    def load(cls, file: str | Path) -> Neighbours:
        """Read a file that ``save`` wrote. InputError for another file, or an encoder with other weights than then."""
        try:
            with safe_open(file, "pt") as opened:
                settings: dict[str, Any] = json.loads(opened.metadata()[_SETTINGS])
                summaries = opened.get_tensor(_TENSOR).float()
            if settings["format"] != FORMAT:
                raise ValueError(f"format {settings['format']}")
            recipe, then = settings["encoder"], settings["sha256"]
            rest = [settings[name] for name in ("captions", "count", "circle", "judges")]
        except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{file}: is not what mmprefix.recipes.retrieve.neighbours writes ({error})") from error
        encoder = from_recipe(recipe, Encoder)
        now = encoder.identity.sha256
        if now and now != then:
            raise InputError(
                f"{file}: was made with an encoder of other weights ({str(then)[:12]}, and "
                f"{encoder.identity.source!r} is {now[:12]}); use the same, or make the file anew"
            )
        if summaries.ndim != 2 or summaries.shape[1] != encoder.pooled_dim:
            raise InputError(
                f"{file}: holds summaries of shape {tuple(summaries.shape)}, and its encoder's have "
                f"{encoder.pooled_dim} numbers; make the file anew"
            )
        return cls(encoder, summaries, *rest)


def _span(item: Source | InputRef) -> tuple[Source, float, float | None]:
    return (item.source, item.start, item.end) if isinstance(item, InputRef) else (item, 0.0, None)


def _words(text: str) -> set[str]:
    return set(text.lower().replace(".", " ").replace(",", " ").split())


def _agreement(first: set[str], second: set[str]) -> float:
    """Dice's coefficient of two sets of words: 1 where they are the same."""
    return 2 * len(first & second) / max(1, len(first) + len(second))
