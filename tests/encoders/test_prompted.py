"""Deep prompts in an encoder: each layer by hand, features of unchanged shapes, what is trained and what is saved."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.ast import AST
from mmprefix.encoders.base import Encoder, EncoderMode
from mmprefix.encoders.prompted import Prompted
from mmprefix.encoders.text import Text
from mmprefix.encoders.user_id import UserId
from mmprefix.encoders.vit import ViT
from mmprefix.encoders.whisper import Whisper
from mmprefix.errors import InputError
from mmprefix.mappers.mlp import MLP
from mmprefix.model import Branch, PrefixLM
from mmprefix.saved_model import ModelSettings, load, save
from mmprefix.types import Batch, Media
from tiny import decoders as tiny_decoders
from tiny import encoders as tiny
from tiny.texts import save_text

P = 3


def pictures() -> Media:
    return Media(torch.randn(3, 3, 32, 32), torch.ones(3, dtype=torch.long))


def sounds() -> Media:
    lengths = torch.tensor([16000, 9000, 30000])
    values = torch.randn(3, 30000) * (torch.arange(30000) < lengths[:, None])
    return Media(values, lengths)


def words() -> Media:
    return Media(torch.tensor([[2, 5, 6, 8, 3], [2, 7, 3, 0, 0], [2, 5, 7, 3, 0]]), torch.tensor([5, 3, 4]))


KINDS: dict[str, tuple[Callable[[Path], Encoder], Callable[[], Media]]] = {
    "vit": (lambda p: ViT(str(p if p.exists() else tiny.save_vision(p, "vit"))), pictures),
    "dinov2": (lambda p: ViT(str(p if p.exists() else tiny.save_vision(p, "dinov2"))), pictures),
    "ast": (lambda p: AST(str(p if p.exists() else tiny.save_ast(p))), sounds),
    "whisper": (lambda p: Whisper(str(p if p.exists() else tiny.save_whisper(p))), sounds),
    "bert": (lambda p: Text(str(p if p.exists() else save_text(p, "bert"))), words),
    "roberta": (lambda p: Text(str(p if p.exists() else save_text(p, "roberta"))), words),
}


def prompted(kind: str, folder: Path, seed: int = 0) -> tuple[Prompted, Encoder, Media]:
    """A prompted encoder whose vectors are far from zero, the encoder alone, and inputs of three sizes."""
    make, media = KINDS[kind]
    torch.manual_seed(seed)
    encoder = Prompted(make(folder / kind), length=P, std=1.0)
    return encoder, make(folder / kind), media()


def layers_of(encoder: Any) -> list[Any]:
    """The two layers of a tiny network."""
    return list(next(m for m in encoder.network.modules() if isinstance(m, nn.ModuleList) and len(m) == 2))


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_reads_its_own_vectors_and_what_it_makes_of_them_is_dropped(kind: str, tmp_path: Path) -> None:
    encoder, alone, media = prompted(kind, tmp_path)
    seen: dict[str, Tensor] = {}
    inner, bare = layers_of(encoder.encoder), layers_of(alone)

    def first(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen["first"] = args[0] if args else kwargs["hidden_states"]

    def last(module: nn.Module, args: Any, output: Any) -> None:
        seen["last"] = output[0] if isinstance(output, tuple) else output

    handle = bare[0].register_forward_pre_hook(first, with_kwargs=True)
    plain = alone(media)
    handle.remove()
    inner[-1].register_forward_hook(last)
    features = encoder(media)
    hidden, mask = seen["first"], None
    if kind in ("bert", "roberta"):
        real = torch.arange(5) < media.lengths[:, None]
        both = torch.cat([real, torch.ones(3, P, dtype=torch.bool)], 1)
        mask = torch.zeros(3, 1, 1, 5 + P).masked_fill(~both[:, None, None], torch.finfo(torch.float32).min)
    for layer, own in zip(bare, encoder.prompts.detach(), strict=True):
        longer = torch.cat([hidden, own.expand(len(hidden), P, -1)], 1)
        output = layer(longer, mask) if mask is not None or kind == "whisper" else layer(longer)
        hidden = (output[0] if isinstance(output, tuple) else output)[:, :-P]
    real = features.mask[..., None] if kind in ("bert", "roberta") else torch.ones(1, dtype=torch.bool)
    assert_close(seen["last"] * real, hidden * real, atol=1e-4, rtol=1e-4)
    assert features.frames.shape == plain.frames.shape
    assert features.pooled.shape == plain.pooled.shape
    assert torch.equal(features.mask, plain.mask)
    assert (features.pooled - plain.pooled).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_items(kind: str, tmp_path: Path) -> None:
    encoder, _, media = prompted(kind, tmp_path)
    whole = encoder(media)
    for b in range(3):
        size = int(media.lengths[b]) if media.values.dim() == 2 else media.values.shape[1]
        row = encoder(Media(media.values[b : b + 1, :size], media.lengths[b : b + 1]))
        count = row.frames.shape[1]
        assert_close(row.pooled[0], whole.pooled[b], atol=1e-4, rtol=1e-4)
        own = row.mask[0, :, None]
        assert_close(row.frames[0] * own, whole.frames[b, :count] * own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "ast", "bert"])
def test_training_moves_the_vectors_alone(kind: str, tmp_path: Path) -> None:
    encoder, _, media = prompted(kind, tmp_path)
    assert encoder.mode is EncoderMode.TUNED
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    encoder.tune().train()
    assert [name for name, parameter in encoder.named_parameters() if parameter.requires_grad] == ["prompts"]
    assert not any(module.training for module in encoder.encoder.modules())
    before = deepcopy(encoder.encoder.state_dict())
    optimizer = torch.optim.Adam([encoder.prompts], lr=0.1)
    aim = torch.randn(3, encoder.pooled_dim)
    losses: list[float] = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(encoder(media).pooled, aim)
        loss.backward()
        assert encoder.prompts.grad is not None
        assert encoder.prompts.grad.abs().amax((1, 2)).min() > 0  # of every layer
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.95
    assert all(torch.equal(before[name], value) for name, value in encoder.encoder.state_dict().items())


def test_a_saved_model_has_the_vectors_and_not_the_encoder(tmp_path: Path) -> None:
    encoder, _, media = prompted("vit", tmp_path)
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path / "decoder"))
    model = PrefixLM({"image": Branch(encoder, partial(MLP, length=2, hidden=8))}, decoder)
    kept = {name for name in model.trained if not name.startswith("mappers.")}
    assert kept == {"encoders.image.prompts"}
    save(model, tmp_path / "model", ModelSettings(), "card")
    again, _ = load(tmp_path / "model")
    assert model.recipe()["branches"]["image"]["tuned"]
    assert torch.equal(cast(Prompted, again.encoder("image")).prompts, encoder.prompts)
    batch = Batch({"image": media}, [""] * 3, [["a dog"]] * 3, [""] * 3, ["0", "1", "2"])
    assert torch.equal(again.text_loss(batch).nll, model.text_loss(batch).nll)


@pytest.mark.parametrize(("make", "message"), [
    (lambda p: Prompted(ViT(str(tiny.save_vision(p / "r", "resnet")))), "has no list of layers with attention"),
    (lambda p: Prompted(UserId()), "UserId of .* has no list of layers"),
    (lambda p: Prompted(KINDS["vit"][0](p / "v"), length=0), "length 0: give a number from 1 on"),
    (lambda p: Prompted(Whisper(str(tiny.save_whisper(p / "w")), window="filled")), "window 'filled'"),
])  # fmt: skip
def test_what_takes_no_prompts_is_refused_by_name(
    make: Callable[[Path], Encoder], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        make(tmp_path)
