"""Every mapper learns at once between pretrained parts: sixty steps, and its captions fit their own sounds best."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.whisper import Whisper
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.calibrated import Calibrated
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.prefix_aac import PrefixAAC
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.mappers.resampler import Resampler
from mmprefix.mappers.transformer import Transformer
from mmprefix.types import Features, Media

SOUNDS = Path(__file__).resolve().parents[3] / "shared" / "data" / "esc10"
Row = tuple[Features, list[str]]
MAPPERS: dict[str, Callable[[Sizes], Mapper]] = {
    "Linear": partial(Linear, stack=50),
    "MLP": partial(MLP, length=4, hidden=128),
    "Transformer": partial(Transformer, length=4, clip_length=4, layers=2),
    "Resampler": partial(Resampler, length=4, layers=2),
    "PrefixAAC": partial(PrefixAAC, reads="summary", length=4, layers=1),
}
RATES = {"PrefixAAC": 2e-3}  # its tokens are mixed by layers of attention, which learn more slowly

pytestmark = [
    pytest.mark.models,
    pytest.mark.slow,
    pytest.mark.skipif(not SOUNDS.is_dir(), reason="../shared/data/esc10 is not there"),
]


@pytest.fixture(scope="module")
def rows(real_model: Callable[[str], str]) -> dict[str, list[Row]]:
    """Features and captions by split: of each of ten classes four sounds to train on and two to validate."""
    encoder = Whisper(real_model("whisper-base"), layer=3, silence=0.0)
    split: dict[str, list[Row]] = {"train": [], "val": []}
    taken: dict[tuple[str, str], int] = {}
    with (SOUNDS / "manifest.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            key = row["split"], row["label"]
            taken[key] = taken.get(key, 0) + 1
            if row["split"] in split and taken[key] <= (4 if row["split"] == "train" else 2):
                clip = encoder.preprocess(str(SOUNDS / row["audio"]), 0.0, None)
                features = encoder(Media(clip[None], torch.tensor([len(clip)])))
                split[row["split"]].append((features, row["captions"]))
    return split


@pytest.fixture(scope="module")
def decoder(real_model: Callable[[str], str]) -> CausalDecoder:
    return CausalDecoder(real_model("smollm2-135m-instruct"))


def _stacked(rows: list[Row]) -> Features:
    """Features of some clips as one batch; all clips of the data are five seconds long, but for a frame."""
    count = min(features.frames.shape[1] for features, _ in rows)
    frames = torch.cat([features.frames[:, :count] for features, _ in rows])
    mask = torch.cat([features.mask[:, :count] for features, _ in rows])
    return Features(frames, mask, torch.cat([features.pooled for features, _ in rows]))


@pytest.mark.parametrize("name", [*MAPPERS, "Deep"])
def test_a_mapper_learns_at_once(rows: dict[str, list[Row]], decoder: CausalDecoder, name: str) -> None:
    torch.manual_seed(0)
    width = rows["train"][0][0].frames.shape[2]
    sizes = Sizes(width, width, decoder.width, decoder.layers, decoder.heads, decoder.head_width)
    calibrated = partial(Calibrated, mapper=MAPPERS.get(name, MAPPERS["MLP"]))
    mapper: Mapper = Deep(sizes, mapper=calibrated) if name == "Deep" else calibrated(sizes)
    for part in mapper.modules():
        if isinstance(part, Calibrated):
            part.observe(_stacked(rows["train"]))
            part.begin(decoder.word_vectors)
    optimizer = torch.optim.AdamW(mapper.parameters(), lr=RATES.get(name, 1e-3))
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10)
    losses: list[float] = []
    for step in range(60):
        batch = [rows["train"][(4 * step + 11 * number) % len(rows["train"])] for number in range(4)]
        loss = _loss(decoder, mapper, batch, caption=step % 5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(mapper.parameters(), 1.0)
        optimizer.step()
        warm.step()
        losses.append(loss.item())
    assert max(losses[10:]) < losses[0] + 1  # no climb on the way
    mapper.eval()
    with torch.no_grad():
        val = rows["val"]
        others = [(features, own) for (features, _), (_, own) in zip([*val[3:], *val[:3]], val, strict=True)]
        own, shuffled = (
            sum(_loss(decoder, mapper, pairs, caption).item() for caption in (0, 1)) / 2 for pairs in (val, others)
        )
    assert own < shuffled - 0.05, f"the loss is {own:.3f} behind a sound's own prefix, {shuffled:.3f} behind another's"


def _loss(decoder: CausalDecoder, mapper: Any, rows: list[Row], caption: int) -> torch.Tensor:
    texts = [[captions[caption]] for _, captions in rows]
    return decoder.text_loss(decoder.prefill(mapper(_stacked(rows))), [""] * len(rows), texts).mean()
