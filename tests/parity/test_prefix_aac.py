"""Prefix-AAC's encoder, mappers, head, loss, gradients and beam search against numbers recorded from the original."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from mmprefix.decoders.word_level import END, WordDecoder
from mmprefix.encoders import panns
from mmprefix.encoders.panns import Cnn14
from mmprefix.generation.options import GenerateOptions
from mmprefix.importers.prefix_aac import Trained, prefix_aac
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.prefix_aac import PrefixAAC
from mmprefix.types import Features, Media, Prefix
from tiny.decoders import make_tokenizer
from tiny.recorded import draw_parameter, load_case, needs_parity, relative_error

pytestmark = needs_parity


def wave(recipe: dict[str, Any]) -> Tensor:
    """Waveform (S,) of a recorded recipe."""
    t = torch.arange(recipe["n"], dtype=torch.float64) / 16000
    x = sum((a * torch.sin(2 * math.pi * f * t + p) for a, f, p in recipe["sines"]), torch.zeros_like(t))
    x = (x * (1 + 0.5 * torch.sin(2 * math.pi * recipe["am_hz"] * t))).float()
    noise = torch.randn(recipe["n"], generator=torch.Generator().manual_seed(recipe["seed"]))
    return x + recipe["noise"] * noise


def weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of a case by the original's names, without constants and counters."""
    fill = config["fill"]
    return {
        key["key"]: draw_parameter(key["key"], key["shape"], 1000 * fill["case"] + key["i"])
        for key in fill["keys"]
        if not key["rule"].startswith("untouched")
    }


def fill_encoder(encoder: Cnn14, tensors: dict[str, Tensor]) -> None:
    """Fill the encoder from ``tensors``; its constants stay."""
    own = panns.tensors_of(encoder.net)
    filled = {name: tensors.get(name, value) for name, value in own.items()}
    assert {name for name in own if name not in tensors} == {
        name for name in own if name == "logmel_extractor.melW" or name.endswith("num_batches_tracked")
    }
    panns.fill(encoder.net, filled, "fixture")


@pytest.fixture(scope="module")
def cnn14() -> Cnn14:
    config, tensors = load_case("aac_cnn14")
    encoder = Cnn14(None, rate=16000, reading="prefix-aac")
    # the original's mel filters reach 14 kHz at a rate of 16 kHz, unlike those of PANNs: take the recorded ones
    encoder.net.mel.copy_(tensors["melW"])
    fill_encoder(encoder, weights(config))
    return encoder


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_cnn14(number: int, cnn14: Cnn14) -> None:
    config, tensors = load_case("aac_cnn14")
    case = config["inputs"][number]
    values = wave(case["wave"])
    assert float(values.double().abs().sum()) == pytest.approx(case["wave_abs_sum"], rel=1e-6)
    assert cnn14.net.log_mel(values[None]).shape == (1, case["logmel_frames"], 64)
    if number == 0:
        assert (cnn14.net.log_mel(values[None])[0] - tensors["logmel_0"]).abs().max() < 1e-2  # decibels
    features = cnn14(Media(values[None], torch.tensor([len(values)])))
    expected = tensors[f"temporal_{number}"].reshape(2048, -1, 2).permute(1, 0, 2).flatten(1)[None]
    assert features.frames.shape == expected.shape
    assert relative_error(features.frames, expected) < 5e-5
    assert (features.pooled - tensors[f"global_{number}"].reshape(1, -1)).abs().max() < 2e-4


@pytest.mark.slow
def test_the_logits_of_cnn14(cnn14: Cnn14, monkeypatch: pytest.MonkeyPatch) -> None:
    config, tensors = load_case("aac_cnn14")
    monkeypatch.setattr(torch, "sigmoid", lambda logits: logits)
    for number, case in enumerate(config["inputs"]):
        values = wave(case["wave"])
        features = cnn14(Media(values[None], torch.tensor([len(values)])))
        assert relative_error(features.pooled, tensors[f"global_logit_{number}"].reshape(1, -1)) < 5e-5


@pytest.mark.slow
def test_each_stage_of_cnn14(cnn14: Cnn14) -> None:
    config, _ = load_case("aac_cnn14")
    sums: dict[str, float] = {}
    net = cnn14.net
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: sums.update({name: float(out.double().abs().sum())}))
        for name, module in {
            "bn0": net.bn0, "fc1": net.fc1, **{f"conv_block{i + 1}": block for i, block in enumerate(net.blocks)}
        }.items()
    ]  # fmt: skip
    for case in config["inputs"]:
        values = wave(case["wave"])
        cnn14(Media(values[None], torch.tensor([len(values)])))
        recorded = {name: stage["abs_sum"] for name, stage in case["stage_outputs"].items()}
        assert sums == pytest.approx(recorded, rel=1e-5)
    for hook in hooks:
        hook.remove()


def mapper_of(config: dict[str, Any], state: dict[str, Tensor]) -> PrefixAAC:
    """Recorded mapper with its weights and sizes."""
    c = config["config"]
    built = PrefixAAC(
        Sizes(4096, 527, c["width"]),
        reads="frames" if c["kind"] == "temporal" else "summary",
        length=c["prefix_length"], layers=c["layers"], relu=c["relu"], pieces=11,
    )  # fmt: skip
    translated = translate(state)
    assert {k for k in built.state_dict() if k != "norm.num_batches_tracked"} == translated.keys()
    built.load_state_dict(translated, strict=False)
    return built.eval()


def translate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Original mapper tensors under our names; a convolution over bands is one layer on channels and bands."""
    return {
        key.replace("bn_conv.", "norm.").replace("conv.", "project."): value.flatten(1)
        if key == "conv.weight"
        else value
        for key, value in state.items()
    }


@pytest.mark.parametrize(
    "name", [f"aac_{kind}_{data}" for kind in ("temporal", "global") for data in ("audiocaps", "clotho")]
)
def test_mapper(name: str) -> None:
    config, tensors = load_case(name)
    built = mapper_of(config, weights(config))
    values = tensors.get("input")
    c, case = config["config"], config["fill"]["case"]
    if values is None:
        shape = (c["batch"], 2048, c["T"], 2) if c["kind"] == "temporal" else (c["batch"], 527)
        values = torch.randn(shape, generator=torch.Generator().manual_seed(1000 * case + 900))
        values = values.clamp(min=0) if c["kind"] == "temporal" else torch.sigmoid(2 * values)
    assert float(values.double().sum()) == pytest.approx(config["inputs"]["sum"], rel=1e-6)
    b = len(values)
    if c["kind"] == "temporal":
        frames = values.permute(0, 2, 1, 3).flatten(2)
        features = Features(frames, torch.ones(frames.shape[:2], dtype=torch.bool), torch.zeros(b, 527))
    else:
        features = Features(torch.zeros(b, 0, 4096), torch.zeros(b, 0, dtype=torch.bool), values)
    assert relative_error(built(features).embeds, tensors["output"]) < 1e-5


class Whole:
    """Recorded model from sound to words, built by the importer from the original's names."""

    def __init__(self, folder: Path) -> None:
        self.config, self.tensors = load_case("aac_full")
        c, state = self.config["config"], weights(self.config)
        lm = GPT2LMHeadModel(GPT2Config(**c["gpt2"]))
        lm.transformer.load_state_dict({k.removeprefix("gpt."): v for k, v in state.items() if k.startswith("gpt.")})
        lm.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        counters = [key["key"] for key in self.config["fill"]["keys"] if key["key"].endswith("num_batches_tracked")]
        checkpoint = state | {name: torch.tensor(0) for name in counters}
        checkpoint["audio_encoder.logmel_extractor.melW"] = load_case("aac_cnn14")[1]["melW"]
        words = [END if i == 13 else f"w{i}" for i in range(c["vocab"])]
        self.model = prefix_aac(
            checkpoint, "fixture", Trained(c["seconds"], "cut", True), decoder=str(folder), words=words
        ).eval()
        self.mapper, decoder = self.model.mappers["audio"], self.model.decoder
        assert isinstance(decoder, WordDecoder)
        assert decoder.frozen  # the language model in the file is the one in the folder
        self.decoder = decoder

    def prefix(self) -> Prefix:
        values = torch.stack([wave(i["wave"]) for i in self.config["inputs"]])
        media = Media(values, torch.tensor([values.shape[1]] * len(values)))
        return cast(Prefix, self.model.build_prefix({"audio": media}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_from_sound_to_gradients(whole: Whole) -> None:
    prefix, tensors, config = whole.prefix(), whole.tensors, whole.config
    assert relative_error(prefix.embeds, tensors["prefix"]) < 1e-4
    assert relative_error(prefix.embeds[:, :15], tensors["temporal_prefix"]) < 1e-4
    assert relative_error(prefix.embeds[:, 15:], tensors["global_prefix"]) < 1e-4
    state = whole.decoder.prefill(prefix)
    assert state.last_hidden is not None
    first = whole.decoder.logits(state.last_hidden)
    assert relative_error(first[:, :64], tensors["logits_slice"][:, 0]) < 1e-4
    assert relative_error(first.log_softmax(-1), tensors["first_step_log_probs"]) < 1e-4
    lengths = config["config"]["lengths"]
    tokens = [row[:n].tolist() for row, n in zip(tensors["tokens"], lengths, strict=True)]
    assert all(0 not in row for row in tokens)
    losses = whole.decoder.token_loss(state, [[row] for row in tokens])
    assert float(losses.mean().detach()) == pytest.approx(config["loss"], rel=1e-5)
    assert relative_error(losses.nll, tensors["per_token_nll"].sum(1)) < 1e-5
    losses.mean().backward()
    temporal, overall = cast(Any, whole.mapper).mappers
    for name, recorded in config["grads"].items():
        part, _, key = name.partition(".")
        holder = {"temporal_mappingnetwork": temporal, "global_mappingnetwork": overall}.get(part)
        ours = key.replace("bn_conv.", "norm.").replace("conv.", "project.")
        gradient = (whole.decoder.own_head if holder is None else holder).get_parameter(ours).grad  # type: ignore[union-attr]
        assert gradient is not None
        assert float(gradient.norm()) == pytest.approx(recorded["norm"], rel=1e-3)


@pytest.mark.slow
def test_beam_search(whole: Whole) -> None:
    beam = whole.config["beam"]
    head = whole.decoder.own_head
    assert head is not None
    before = head.weight.detach().clone()
    with torch.no_grad():
        head.weight.mul_(beam["gain"])
        head.weight[beam["swap_rows"]] = head.weight[beam["swap_rows"][::-1]]
    prefix = Prefix(whole.tensors["prefix"], torch.ones(2, 26, dtype=torch.bool))
    options = GenerateOptions(max_new_tokens=67, num_beams=5, num_return=5, ranking="clipcap")
    groups = whole.decoder.search_tokens(whole.decoder.prefill(prefix), options, whole.decoder.stop_ids())
    greedy = whole.decoder.search_tokens(
        whole.decoder.prefill(prefix), GenerateOptions(max_new_tokens=67), whole.decoder.stop_ids()
    )
    for run in beam["runs"]:
        item = run["item"]
        assert [ids for ids, _ in groups[item]] == run["sequences"]
        assert [score for _, score in groups[item]] == pytest.approx(run["scores"], rel=1e-4)
        assert greedy[item][0][0] == run["generate_top_p_0.8"]
    with torch.no_grad():
        head.weight.copy_(before)
