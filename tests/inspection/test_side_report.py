"""Parts of a prefix at no position: what ``beside_positions`` and ``mmprefix inspect`` tell of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmprefix import InputError, Predictor
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.vit import ViT
from mmprefix.inspection import beside_positions, interpolate
from mmprefix.kv_cache.side_attention import plain_attention
from mmprefix.kv_cache.side_terms import AttentionCall, GatedKeyValues, JointTerm
from mmprefix.mappers.aligner import Aligner
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.dept import DecomposedPrompt
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.llama_adapter import LlamaAdapter
from mmprefix.mappers.ntk import KernelTerm, NTKAttention
from mmprefix.mappers.parallel import Parallel
from mmprefix.mappers.prompt_gating import PromptGating
from mmprefix.mappers.unipelt import GatedPrefixTerm, UniPELTPrefix
from mmprefix.model import Branch, PrefixLM
from mmprefix.types import Features, SidePrefix
from tiny.models import random_picture
from tiny.shell import Shell

TEXT = "a red hill"
Build = Callable[[Sizes], Mapper]


def predictor(parts: dict[str, Path], build: Build) -> tuple[Predictor, Mapper]:
    """Pictures whose mapper is ``build``, all numbers moved a little, and that mapper."""
    torch.manual_seed(4)
    model = PrefixLM({"image": Branch(ViT(str(parts["image"])), build)}, CausalDecoder(str(parts["decoder"])))
    mapper = model.mapper("image")
    assert mapper is not None
    with torch.no_grad():
        for parameter in mapper.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return Predictor(model), mapper


Seen = dict[int, list[Tensor]]  # shares by layer


class Kernel(KernelTerm):
    """The term itself, whose share of the softmax is written down weight by weight."""

    seen: Seen

    def mass(self, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
        mass = super().mass(call)
        note(self.seen, mass, call)
        return mass


class Gated(GatedPrefixTerm):
    """The term itself, whose share of the softmax is written down weight by weight."""

    seen: Seen

    def mass(self, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor] | None:
        mass = super().mass(call)
        assert mass is not None
        note(self.seen, mass, call)
        return mass


class Tokens(GatedKeyValues):
    """The term itself, whose length beside the attention is written down."""

    seen: Seen

    def added(self, call: AttentionCall) -> Tensor | None:
        added = super().added(call)
        if added is not None:
            length, own = added.norm(dim=-1), plain_attention(call).transpose(1, 2).norm(dim=-1)
            self.seen.setdefault(call.layer, []).append(length / (length + own))
        return added


def note(seen: Seen, mass: tuple[Tensor, Tensor, Tensor], call: AttentionCall) -> None:
    weights = mass[1] * mass[2].exp()
    seen.setdefault(call.layer, []).append(weights / (weights + call.masked_scores().exp().sum(-1)))


@pytest.mark.parametrize(("build", "kept"), [
    (partial(NTKAttention, std=0.5), Kernel),
    (partial(UniPELTPrefix, length=3), Gated),
    (partial(LlamaAdapter, length=3, first=1), Tokens),
    (partial(Aligner, length=2, first=0), Tokens),
])  # fmt: skip
def test_the_share_is_that_of_the_formula(build: Build, kept: type, parts: dict[str, Path]) -> None:
    model, mapper = predictor(parts, build)
    (report,) = beside_positions(model, random_picture(1), text=TEXT).terms
    assert report.measure == ("the softmax" if issubclass(kept, JointTerm) else "the length of attention")
    prefix: SidePrefix = mapper(Features.empty(1))
    decoder = model.model.decoder
    with torch.no_grad():
        state = decoder.prefill(prefix)
        term, seen = kept(**vars(state.side[0])), Seen()
        vars(term)["seen"] = seen
        decoder.text_loss(replace(state, side=(term,)), [""], [[TEXT]])
    assert [layer.layer for layer in report.layers] == sorted(seen)
    for layer in report.layers:
        shares = torch.cat([part.flatten() for part in seen[layer.layer]])
        assert 0 < float(shares.mean()) < 1
        assert layer.share == pytest.approx(float(shares.mean()), rel=1e-3)


def test_gates_and_norms_are_those_of_the_layer(parts: dict[str, Path]) -> None:
    model, mapper = predictor(parts, partial(LlamaAdapter, length=3, first=1))
    assert isinstance(mapper, LlamaAdapter)
    (report,) = beside_positions(model, random_picture(1)).terms
    for row, layer in enumerate(report.layers):
        assert layer.layer == row + 1
        assert layer.gates == pytest.approx(mapper.gate[row].tanh().tolist())
        assert layer.norms == {"vectors": pytest.approx(float(mapper.vectors[row].detach().norm(dim=-1).mean()))}


def test_gates_of_positions_and_updates_of_the_text(parts: dict[str, Path]) -> None:
    model, mapper = predictor(parts, partial(PromptGating, length=3, hidden=5))
    assert isinstance(mapper, PromptGating)
    listed, gates = beside_positions(model, random_picture(1)), mapper.gates().detach()
    assert [factor for factor, _ in listed.gates] == pytest.approx(gates[:, 0].mean((0, 2)).tolist())
    assert [shift for _, shift in listed.gates] == pytest.approx(gates[:, 1].norm(dim=-1).mean(0).tolist())
    model, mapper = predictor(parts, partial(DecomposedPrompt, length=2, reach=5, rank=2))
    assert isinstance(mapper, DecomposedPrompt)
    listed = beside_positions(model, random_picture(1))
    updates = (mapper.factor * mapper.left @ mapper.right).detach()
    assert listed.text_updates == pytest.approx(updates.norm(dim=1).tolist())
    assert not beside_positions(predictor(parts, partial(Learned, length=2))[0], random_picture(1))


def test_what_stands_at_no_position_is_not_mixed(parts: dict[str, Path]) -> None:
    model, _ = predictor(parts, partial(DecomposedPrompt, length=2))
    with pytest.raises(InputError, match="stand at no position"):
        interpolate(model, random_picture(1), random_picture(2))


def test_inspect_shows_them(parts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell, file, saved = Shell(capsys), tmp_path / "a.png", tmp_path / "model"
    random_picture(1).save(file)
    several = [partial(LlamaAdapter, length=3, first=1), partial(DecomposedPrompt, length=2, reach=5, rank=2)]
    predictor(parts, partial(Parallel, mappers=several))[0].save(saved)
    code, text, err = shell("inspect", saved, file)
    assert code == 0, err
    assert "beside the cache: GatedTokens, share of the length of attention\n  layer  1  " in text
    assert "updates of the first 5 tokens' embeddings: norm " in text
    code, text, err = shell("inspect", saved, file, "--json")
    assert code == 0, err
    report = json.loads(text)
    assert len(report["positions"]) == 2
    assert len(report["beside"]["text_updates"]) == 5
    (term,) = report["beside"]["terms"]
    assert len(term["layers"][0]["gates"]) == 4
    predictor(parts, several[0])[0].save(tmp_path / "alone")  # no position at all
    code, text, err = shell("inspect", tmp_path / "alone", file)
    assert code == 0, err
    assert [line.split()[0] for line in text.splitlines()] == ["caption:", "beside", "layer"]
