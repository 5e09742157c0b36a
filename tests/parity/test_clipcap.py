"""ClipCap's mappers, loss, gradients and beam search against numbers recorded from the original code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.clip import Clip
from mmprefix.generation.options import GenerateOptions
from mmprefix.importers.clipcap import clipcap
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.transformer import Transformer
from mmprefix.types import Features, Prefix
from tiny import encoders as tiny_encoders
from tiny.decoders import make_tokenizer
from tiny.recorded import draw_weights, load_case, needs_parity, relative_error

pytestmark = needs_parity


def summary(pooled: Tensor) -> Features:
    """Features without frames."""
    return Features(pooled.new_zeros(len(pooled), 0, 0), torch.zeros(len(pooled), 0, dtype=torch.bool), pooled)


def gpt2(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> CausalDecoder:
    """Decoder over the recorded language model, saved to ``folder`` and loaded from there."""
    model = GPT2LMHeadModel(GPT2Config(**config["config"]["gpt2"]))
    tensors = {k.removeprefix("gpt."): v for k, v in state.items() if k.startswith("gpt.")}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]  # tied: the later key wins
    assert not model.load_state_dict(tensors, strict=False).unexpected_keys
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return CausalDecoder(str(folder))


def mapper(config: dict[str, Any], state: dict[str, Tensor], width: int) -> Mapper:
    """Recorded mapper, its weights under their original names."""
    c = config["config"]
    if c.get("mapping", "mlp").startswith("mlp"):
        built: Mapper = MLP(Sizes(0, c["D"], width), length=c["prefix_length"])
    else:
        built = Transformer(
            Sizes(0, c["D"], width), length=c["prefix_length"], clip_length=c["clip_length"], layers=c["mapper_layers"]
        )
    built.load_state_dict(
        {k.removeprefix("clip_project."): v for k, v in state.items() if k.startswith("clip_project.")}
    )
    return built


@pytest.mark.parametrize("name", ["clipcap_mlp", "clipcap_transformer_rn50x4", "clipcap_transformer_small"])
def test_mapper(name: str) -> None:
    config, tensors = load_case(name)
    c = config["config"]
    if name == "clipcap_mlp":
        built: Mapper = MLP(Sizes(0, c["D"], c["width"]), length=c["K"])
    else:
        sizes = {
            "length": c["prefix_length"],
            "clip_length": c["clip_length"],
            "layers": c["layers"],
            "heads": c["heads"],
        }
        built = Transformer(Sizes(0, c["D"], c["width"]), **sizes)
    state = draw_weights(config)
    total = sum(float(t.double().sum()) for t in state.values())
    size = sum(float(t.double().abs().sum()) for t in state.values())
    rounding = 1e-7 * size  # a processor's logarithm and cosine may differ in the last digit of float32
    assert total == pytest.approx(config["fill"]["filled_total"]["sum"], rel=0, abs=rounding)  # weights as recorded
    built.load_state_dict(state)
    prefix = built(summary(tensors["input"]))
    assert prefix.mask.all()
    assert relative_error(prefix.embeds, tensors["output"]) < 1e-5


@pytest.mark.parametrize("name", ["clipcap_loss_mlp", "clipcap_loss_transformer"])
def test_loss_and_gradients(name: str, tmp_path: Path) -> None:
    config, tensors = load_case(name)
    state = draw_weights(config)
    decoder = gpt2(tmp_path, config, state)
    built = mapper(config, state, decoder.width)
    prefix = built(summary(tensors["prefix"]))
    assert relative_error(prefix.embeds, tensors["prefix_projection"]) < 1e-5

    lengths = config["config"]["lengths"]
    tokens = [row[:n].tolist() for row, n in zip(tensors["tokens"], lengths, strict=True)]
    prefilled = decoder.prefill(prefix)
    assert prefilled.last_hidden is not None
    assert relative_error(decoder.logits(prefilled.last_hidden)[:, :64], tensors["logits_slice"][:, 0]) < 1e-5

    losses = decoder.token_loss(prefilled, [[row] for row in tokens])
    total = losses.nll.sum()
    scored = sum(lengths)
    for b, row in enumerate(tokens):
        for position, token in enumerate(row):
            if token == 0:  # the original never scores token 0, even inside a text: subtract its part
                texts: list[list[list[int]]] = [[] for _ in tokens]
                texts[b] = [row[: position + 1], row[:position]]
                cut = decoder.token_loss(prefilled, texts)
                total = total - (cut.nll[0] - cut.nll[1])
                scored -= 1
    assert scored == config["n_scored_tokens"]
    loss = total / scored
    assert float(loss) == pytest.approx(config["loss"], rel=1e-5)
    loss.backward()
    for key, recorded in config["mapper_grads"].items():
        gradient = built.get_parameter(key).grad
        assert gradient is not None
        assert float(gradient.norm()) == pytest.approx(recorded["norm"], rel=1e-4)
        assert float(gradient.abs().sum()) == pytest.approx(recorded["abs_sum"], rel=1e-4)
    nll = tensors["per_token_nll"].sum(1)
    plain = [b for b, row in enumerate(tokens) if 0 not in row]
    assert relative_error(losses.nll[plain], nll[plain]) < 1e-5


@pytest.mark.parametrize("run", range(4))
def test_beam_search(run: int, tmp_path: Path) -> None:
    config, tensors = load_case("clipcap_beam")
    state = draw_weights(config)
    decoder = gpt2(tmp_path, config, state)
    recorded = config["runs"][run]
    prefix = mapper(config, state, decoder.width)(summary(tensors[f"clip_prefix_{recorded['prefix']}"]))
    assert relative_error(prefix.embeds, tensors[f"embed_{recorded['prefix']}"]) < 1e-5
    options = GenerateOptions(
        max_new_tokens=recorded["entry_length"],
        num_beams=recorded["beam_size"],
        num_return=recorded["beam_size"],
        temperature=recorded["temperature"],
        ranking="clipcap",
    )
    stop = torch.tensor([recorded["stop_token_id"]])
    hypotheses = decoder.search_tokens(decoder.prefill(prefix), options, stop)[0]
    assert [ids for ids, _ in hypotheses] == recorded["sequences"]
    assert [score for _, score in hypotheses] == pytest.approx(recorded["scores"], rel=1e-4)
    greedy = decoder.search_tokens(
        decoder.prefill(prefix), GenerateOptions(max_new_tokens=recorded["entry_length"]), stop
    )[0][0][0]
    assert greedy == recorded["generate2_top_p_0.8"]


def test_beam_search_in_one_batch(tmp_path: Path) -> None:
    """Recorded prefixes with equal settings, searched in one batch, give the hypotheses recorded for each alone."""
    config, tensors = load_case("clipcap_beam")
    decoder = gpt2(tmp_path, config, draw_weights(config))
    embeds = torch.cat([tensors[f"embed_{i}"] for i in range(4)])
    options = GenerateOptions(max_new_tokens=20, num_beams=5, num_return=5, ranking="clipcap")
    runs = [r for r in config["runs"] if r["temperature"] == 1]
    assert {r["stop_token_id"] for r in runs} == {13, 553}
    for recorded in runs:
        prefix = Prefix(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool))
        groups = decoder.search_tokens(decoder.prefill(prefix), options, torch.tensor([recorded["stop_token_id"]]))
        assert [ids for ids, _ in groups[recorded["prefix"]]] == recorded["sequences"]


@pytest.mark.parametrize("name", ["clipcap_beam", "clipcap_loss_mlp", "clipcap_loss_transformer"])
def test_the_importer_builds_the_recorded_model(name: str, tmp_path: Path) -> None:
    """From the original's names, with sizes read off the tensors: prefix and hypotheses are the recorded ones."""
    config, tensors = load_case(name)
    state, c = draw_weights(config), config["config"]
    state["gpt.lm_head.weight"] = state["gpt.transformer.wte.weight"]
    gpt2(tmp_path / "gpt2", config, state)
    encoder = Clip(str(tiny_encoders.save_clip(tmp_path / "clip", {**tiny_encoders.CLIP, "embed_dim": c["D"]})))
    model = clipcap(state, "fixture", encoder, decoder=str(tmp_path / "gpt2")).eval()
    assert model.decoder.frozen
    source, target = ("clip_prefix_0", "embed_0") if name == "clipcap_beam" else ("prefix", "prefix_projection")
    prefix = model.build_prefix({"image": summary(tensors[source])})
    assert isinstance(prefix, Prefix)
    assert relative_error(prefix.embeds, tensors[target]) < 1e-5
    if name == "clipcap_beam":
        run = config["runs"][0]
        options = GenerateOptions(max_new_tokens=run["entry_length"], num_beams=5, num_return=5, ranking="clipcap")
        decoder = model.decoder
        assert isinstance(decoder, CausalDecoder)
        hypotheses = decoder.search_tokens(decoder.prefill(prefix), options, torch.tensor([run["stop_token_id"]]))[0]
        assert [ids for ids, _ in hypotheses] == run["sequences"]
