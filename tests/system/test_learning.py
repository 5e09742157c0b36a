"""Every mapper learns at once between pretrained parts: after a few steps its captions fit their own sounds best.

Behind SmolLM2 that is all mappers, behind Whisper base's decoder and a small GPT-2 one of each kind. No package brings
weights of GPT-2: the test trains a model of its class for some seconds, on captions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from mmprefix.decoders.base import Decoder
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.encoders.whisper import Whisper
from mmprefix.kv_cache.state import State
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.calibrated import Calibrated
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.prefix_aac import PrefixAAC
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.mappers.query_guided import QueryGuided
from mmprefix.mappers.resampler import Resampler
from mmprefix.mappers.transformer import Transformer
from mmprefix.recipes.pretrain.decoder import DecoderPlan, train_decoder
from mmprefix.types import Features, Media, Prefix

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SOUNDS, PHOTOGRAPHS = DATA / "esc10", DATA / "flickr8k_mini"
Row = tuple[Features, list[str]]
MAPPERS: dict[str, Callable[[Sizes], Mapper]] = {
    "Linear": partial(Linear, stack=50),
    "MLP": partial(MLP, length=4, hidden=128),
    "Transformer": partial(Transformer, length=4, clip_length=4, layers=2),
    "Resampler": partial(Resampler, length=4, layers=2),
    "PrefixAAC": partial(PrefixAAC, reads="summary", length=4, layers=1),
    "QueryGuided": partial(QueryGuided, length=4, layers=2),
}
EACH_KIND = ("MLP", "Transformer", "Resampler", "Deep")
RATES = {"PrefixAAC": 2e-3}  # its tokens are mixed by layers of attention, which learn more slowly

pytestmark = [
    pytest.mark.models,
    pytest.mark.slow,
    pytest.mark.skipif(not SOUNDS.is_dir(), reason="../shared/data/esc10 is not there"),
]


def manifest(folder: Path) -> list[dict[str, Any]]:
    """Rows of the manifest of a data set."""
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def rows(real_model: Callable[[str], str]) -> dict[str, list[Row]]:
    """Features and captions by split: of each of ten classes four sounds to train on and two to validate."""
    encoder = Whisper(real_model("whisper-base"), layer=3, silence=0.0)
    split: dict[str, list[Row]] = {"train": [], "val": []}
    taken: dict[tuple[str, str], int] = {}
    for row in manifest(SOUNDS):
        key = row["split"], row["label"]
        taken[key] = taken.get(key, 0) + 1
        if row["split"] in split and taken[key] <= (4 if row["split"] == "train" else 2):
            clip = encoder.preprocess(str(SOUNDS / row["audio"]), 0.0, None)
            features = encoder(Media(clip[None], torch.tensor([len(clip)])))
            split[row["split"]].append((features, row["captions"]))
    return split


@pytest.fixture(scope="module")
def short_rows(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Rows with their two shortest captions alone, which say the class in fewer steps and tokens.

    QueryGuided behind SmolLM2 has not learned to read its input from these after forty steps.
    """
    return {split: [(own, sorted(texts, key=len)[:2]) for own, texts in part] for split, part in rows.items()}


@pytest.fixture(scope="module")
def decoder(real_model: Callable[[str], str]) -> CausalDecoder:
    return CausalDecoder(real_model("smollm2-135m-instruct"))


def _stacked(rows: list[Row]) -> Features:
    """Features of some clips as one batch; all clips of the data are five seconds long, but for a frame."""
    count = min(features.frames.shape[1] for features, _ in rows)
    frames = torch.cat([features.frames[:, :count] for features, _ in rows])
    mask = torch.cat([features.mask[:, :count] for features, _ in rows])
    return Features(frames, mask, torch.cat([features.pooled for features, _ in rows]))


@dataclass(frozen=True)
class Learned:
    """Mapper after its steps: the loss of each, and on validation behind a sound's own prefix and behind another's."""

    losses: list[float]
    own: float
    shuffled: float


@pytest.fixture(scope="module")
def learned(rows: dict[str, list[Row]], decoder: CausalDecoder) -> dict[str, Learned]:
    """Every mapper after sixty steps of its own; the frozen model runs once a step, with the rows of all of them."""
    return _after_steps(60, decoder, rows, [*MAPPERS, "Deep"], partial(_losses, decoder))


@pytest.fixture(scope="module")
def learned_by_gpt2(short_rows: dict[str, list[Row]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Learned]:
    """One mapper of each kind behind a GPT-2 of two layers that has read captions of sounds and of photographs."""
    folders = [folder for folder in (SOUNDS, PHOTOGRAPHS) if folder.is_dir()]
    texts = [row["captions"] for folder in folders for row in manifest(folder) if row["split"] == "train"]
    size: dict[str, Any] = {"layers": 2, "heads": 4, "width": 128, "vocab_size": 1024, "positions": 64}
    folder = tmp_path_factory.mktemp("gpt2")
    train_decoder(texts, folder, DecoderPlan(**size, batch_tokens=1024, steps=150))
    gpt2 = CausalDecoder(str(folder))
    return _after_steps(40, gpt2, short_rows, EACH_KIND, partial(_losses_alone, gpt2, None))


@pytest.fixture(scope="module")
def learned_by_whisper(short_rows: dict[str, list[Row]], real_model: Callable[[str], str]) -> dict[str, Learned]:
    """One mapper of each kind behind Whisper's decoder.

    Its cross-attention hears a second of silence for every sound, so that what it knows of one is in the prefix.
    """
    name = real_model("whisper-base")
    silence = Whisper(name, silence=0.0)(Media(torch.zeros(1, 16000), torch.tensor([16000])))
    whisper = CrossDecoder(name)
    return _after_steps(40, whisper, short_rows, EACH_KIND, partial(_losses_alone, whisper, silence))


def _after_steps(
    count: int, decoder: Decoder, rows: dict[str, list[Row]], names: Sequence[str], losses: LossesOf
) -> dict[str, Learned]:
    """Mappers by name after ``count`` steps, ten of them warm-up.

    They are validated by some captions of each sound and as many of another, three rows on, behind the sound's own
    prefix.
    """
    mappers = {name: _mapper(name, rows["train"], decoder) for name in names}
    optimizers = {
        name: torch.optim.AdamW(mapper.parameters(), lr=RATES.get(name, 1e-3), fused=True)
        for name, mapper in mappers.items()
    }
    warm = [torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10) for optimizer in optimizers.values()]
    steps: dict[str, list[float]] = {name: [] for name in mappers}
    for step in range(count):
        batch = [rows["train"][(4 * step + 11 * number) % len(rows["train"])] for number in range(4)]
        texts = [[captions[step % len(captions)]] for _, captions in batch]
        means = {name: loss.mean() for name, loss in losses(mappers, batch, texts).items()}
        torch.stack(list(means.values())).sum().backward()  # no mapper's loss depends on another mapper
        for (name, mapper), optimizer, schedule in zip(mappers.items(), optimizers.values(), warm, strict=True):
            torch.nn.utils.clip_grad_norm_(mapper.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            steps[name].append(means[name].item())
    for mapper in mappers.values():
        mapper.eval()
    val = rows["val"]
    half = min(len(captions) for _, captions in val) // 2
    texts = [[*own[:half], *foreign[:half]] for (_, own), (_, foreign) in zip(val, [*val[-3:], *val[:-3]], strict=True)]
    with torch.no_grad():
        validated = losses(mappers, val, texts)
    return {
        name: Learned(steps[name], loss.of(slice(half)).item(), loss.of(slice(half, None)).item())
        for name, loss in validated.items()
    }


@dataclass(frozen=True)
class Losses:
    """Negative log-likelihood and tokens of N captions of each of B sounds, (B N) both."""

    nll: Tensor
    tokens: Tensor

    def of(self, captions: slice) -> Tensor:
        """Mean over all tokens of these captions of every sound."""
        return self.nll[:, captions].sum() / self.tokens[:, captions].sum()

    def mean(self) -> Tensor:
        """Mean over all tokens."""
        return self.nll.sum() / self.tokens.sum()


LossesOf = Callable[[dict[str, Mapper], list[Row], list[list[str]]], dict[str, Losses]]


def _mapper(name: str, rows: list[Row], decoder: Decoder) -> Mapper:
    torch.manual_seed(0)
    width = rows[0][0].frames.shape[2]
    sizes = Sizes(width, width, decoder.width, decoder.layers, decoder.heads, decoder.head_width)
    calibrated = partial(Calibrated, mapper=MAPPERS.get(name, MAPPERS["MLP"]))
    mapper: Mapper = Deep(sizes, mapper=calibrated) if name == "Deep" else calibrated(sizes)
    for part in mapper.modules():
        if isinstance(part, Calibrated):
            part.observe(_stacked(rows))
            part.begin(decoder)
    return mapper


def _losses(
    decoder: CausalDecoder, mappers: dict[str, Mapper], rows: list[Row], texts: list[list[str]]
) -> dict[str, Losses]:
    """Losses of the captions ``texts`` of each sound behind each mapper's prefix of it."""
    features = _stacked(rows)
    prefixes = {name: mapper(features) for name, mapper in mappers.items()}
    soft = [prefix for prefix in prefixes.values() if isinstance(prefix, Prefix)]
    length = max(prefix.mask.shape[1] for prefix in soft)
    padded = [
        (pad(p.embeds, (0, 0, 0, length - p.mask.shape[1])), pad(p.mask, (0, length - p.mask.shape[1]))) for p in soft
    ]
    states = [decoder.prefill(Prefix(*(torch.cat(parts) for parts in zip(*padded, strict=True))))]
    states += [decoder.prefill(prefix) for prefix in prefixes.values() if not isinstance(prefix, Prefix)]
    result: dict[str, Losses] = {}
    names = [name for kind in (True, False) for name in prefixes if isinstance(prefixes[name], Prefix) == kind]
    loss = decoder.text_loss(_joined(states), [""] * len(rows) * len(names), texts * len(names))
    count = len(texts[0])
    for name, nll, tokens in zip(names, loss.nll.view(len(names), -1), loss.tokens.view(len(names), -1), strict=True):
        result[name] = Losses(nll.view(-1, count), tokens.view(-1, count))
    return result


def _losses_alone(
    decoder: Decoder, memory: Features | None, mappers: dict[str, Mapper], rows: list[Row], texts: list[list[str]]
) -> dict[str, Losses]:
    """Losses as of ``_losses``, mapper by mapper; ``memory`` is what the decoder's cross-attention hears of all."""
    features, result = _stacked(rows), dict[str, Losses]()
    memories = memory and Features(
        *(part.expand(len(rows), *part.shape[1:]) for part in (memory.frames, memory.mask, memory.pooled))
    )
    for name, mapper in mappers.items():
        loss = decoder.text_loss(decoder.prefill(mapper(features), memories), [""] * len(rows), texts)
        result[name] = Losses(*(part.view(len(rows), -1) for part in (loss.nll, loss.tokens)))
    return result


def _joined(states: list[State]) -> State:
    """States of several batches as that of one; a deep prefix has run no token, so its last hidden state is zero."""
    length = max(state.mask.shape[1] for state in states)
    hidden = next(state.last_hidden for state in states if state.last_hidden is not None)
    padded = [
        [tuple(pad(part, (0, 0, 0, length - part.shape[2])) for part in layer) for layer in state.cache]
        for state in states
    ]
    cache = tuple(
        (torch.cat([keys for keys, _ in layers]), torch.cat([values for _, values in layers]))
        for layers in zip(*padded, strict=True)
    )
    last = [hidden.new_zeros(len(s.mask), hidden.shape[1]) if s.last_hidden is None else s.last_hidden for s in states]
    mask = torch.cat([pad(state.mask, (0, length - state.mask.shape[1])) for state in states])
    return State(cache, mask, torch.cat(last))


@pytest.mark.parametrize("name", [*MAPPERS, "Deep"])
def test_a_mapper_learns_at_once(learned: dict[str, Learned], name: str) -> None:
    require_learned(learned[name])


@pytest.mark.parametrize("name", EACH_KIND)
def test_a_mapper_learns_at_once_behind_a_small_gpt2(learned_by_gpt2: dict[str, Learned], name: str) -> None:
    require_learned(learned_by_gpt2[name])


@pytest.mark.parametrize("name", EACH_KIND)
def test_a_mapper_learns_at_once_behind_whisper(learned_by_whisper: dict[str, Learned], name: str) -> None:
    require_learned(learned_by_whisper[name])


def require_learned(mapper: Learned) -> None:
    """Fail for a loss that climbed on the way, or that is hardly lower behind a sound's own prefix."""
    assert max(mapper.losses[10:]) < mapper.losses[0] + 1
    messages = f"the loss is {mapper.own:.3f} behind a sound's own prefix, {mapper.shuffled:.3f} behind another's"
    assert mapper.own < mapper.shuffled - 0.05, messages


def test_mappers_that_share_a_run_have_the_loss_of_their_own(
    rows: dict[str, list[Row]], decoder: CausalDecoder
) -> None:
    """Loss and gradients, for each alone by the decoder's own way: with its batch, or the deep one's, beside it."""
    batch = rows["train"][:2]
    texts = [[captions[0]] for _, captions in batch]
    mappers = {name: _mapper(name, batch, decoder) for name in ("Linear", "MLP", "Deep")}
    together = _losses(decoder, mappers, batch, texts)
    torch.stack([loss.mean() for loss in together.values()]).sum().backward()
    for name, mapper in mappers.items():
        gradients = [parameter.grad for parameter in mapper.parameters()]
        mapper.zero_grad()
        loss = decoder.text_loss(decoder.prefill(mapper(_stacked(batch))), ["", ""], texts).mean()
        loss.backward()
        assert together[name].mean().item() == pytest.approx(loss.item(), rel=1e-5)
        for shared, parameter in zip(gradients, mapper.parameters(), strict=True):
            assert (shared is None) == (parameter.grad is None)
            if shared is not None and parameter.grad is not None:
                assert torch.allclose(shared, parameter.grad, atol=1e-6 + 1e-3 * float(parameter.grad.abs().max()))
