"""On a CUDA device: the same losses, gradients and texts as on the CPU, lower precision, training, the command line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmprefix
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.generation.options import GenerateOptions
from mmprefix.types import DeepPrefix, Features, MixedPrefix, Prefix
from tiny import models as tiny_models
from tiny import whisper as tiny_whisper
from tiny.captioning_system import build, metric_values, quietly, run
from tiny.decoders import KINDS, save_decoder

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"), *quietly]
PROMPTS = ["", "the", "a green"]
TARGETS = [["a dog barks", "the cat."], ["rain falls loudly over a hill"], ["a", "some rain", "the old roof rings"]]


def prefixes(decoder: ComposedDecoder) -> dict[str, Any]:
    random = torch.Generator().manual_seed(0)
    mask = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    soft = Prefix(torch.randn(3, 5, decoder.width, generator=random), mask)
    shape = (decoder.layers, 3, decoder.heads, 5, decoder.head_width)
    deep = DeepPrefix(torch.randn(shape, generator=random), torch.randn(shape, generator=random), mask)
    return {"soft": soft, "deep": deep, "mixed": MixedPrefix(deep, soft)}


def on(device: str, prefix: Any, leaves: list[Tensor]) -> Any:
    """Copy of ``prefix`` on ``device``; its trainable tensors are appended to ``leaves``."""
    if isinstance(prefix, MixedPrefix):
        return MixedPrefix(on(device, prefix.deep, leaves), on(device, prefix.soft, leaves))

    def leaf(value: Tensor) -> Tensor:
        leaves.append(value.clone().to(device).requires_grad_())
        return leaves[-1]

    if isinstance(prefix, DeepPrefix):
        return DeepPrefix(leaf(prefix.keys), leaf(prefix.values), prefix.mask.to(device))
    return Prefix(leaf(prefix.embeds), prefix.mask.to(device))


@pytest.fixture(scope="module", params=[*KINDS, "whisper"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ComposedDecoder]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "whisper":
        decoder: ComposedDecoder = CrossDecoder(tiny_whisper.save_whisper(folder))
    else:
        decoder = CausalDecoder(save_decoder(folder, request.param))
    return {"cpu": decoder, "cuda": copy.deepcopy(decoder).to("cuda")}


def memory(decoder: ComposedDecoder, device: str) -> Features | None:
    if decoder.memory_dim is None:
        return None
    mask = torch.arange(20) < torch.tensor([20, 7, 13])[:, None]
    frames = torch.randn(3, 20, decoder.memory_dim, generator=torch.Generator().manual_seed(1))
    return Features(frames.to(device), mask.to(device), frames[:, 0].to(device))


@pytest.mark.parametrize("kind", ["soft", "deep", "mixed"])
def test_losses_gradients_and_texts_equal_those_of_the_cpu(both: dict[str, ComposedDecoder], kind: str) -> None:
    losses, gradients, texts, scores = [], [], [], []
    for device, decoder in both.items():
        leaves: list[Tensor] = []
        prefix = on(device, prefixes(decoder)[kind], leaves)
        loss = decoder.loss(decoder.prefill(prefix, memory(decoder, device)), PROMPTS, TARGETS)
        loss.backward()
        losses.append(loss.item())
        gradients.append([leaf.grad.cpu() for leaf in leaves if leaf.grad is not None])
        assert len(gradients[-1]) == len(leaves)
        with torch.inference_mode():
            state = decoder.prefill(prefix, memory(decoder, device))
            for options in (GenerateOptions(max_new_tokens=10), GenerateOptions(max_new_tokens=10, num_beams=4)):
                candidates = decoder.generate(state, PROMPTS, options)
                texts.append([row[0].text for row in candidates])
            scores.append([s for row in decoder.score(state, PROMPTS, TARGETS) for s in row])
    assert losses[1] == pytest.approx(losses[0], rel=2e-5)
    for expected, gradient in zip(*gradients, strict=True):
        assert float((expected - gradient).norm()) <= 1e-4 * float(expected.norm())
    assert texts[:2] == texts[2:]
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)


def test_autocast_gives_nearly_the_same_loss(both: dict[str, ComposedDecoder]) -> None:
    """A float32 model in autocast: the loss is a float32 number, equal to the precision of bfloat16."""
    decoder = both["cuda"]
    prefix = on("cuda", prefixes(decoder)["soft"], [])
    plain = decoder.loss(decoder.prefill(prefix, memory(decoder, "cuda")), PROMPTS, TARGETS)
    with torch.autocast("cuda", torch.bfloat16):
        loss = decoder.loss(decoder.prefill(prefix, memory(decoder, "cuda")), PROMPTS, TARGETS)
        candidates = decoder.generate(decoder.prefill(prefix, memory(decoder, "cuda")), PROMPTS, GenerateOptions())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=2e-2)
    assert len(candidates) == 3


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training(precision: str, tmp_path: Path) -> None:
    """Training by the command line with a feature store filled on the GPU: the loss falls as on the CPU."""
    (tmp_path / "tiny").mkdir()
    tiny = build(tmp_path / "tiny")
    ends = {}
    for device in ("cpu", "gpu"):
        config = tiny.config()
        config["trainer"] |= {"accelerator": device, "max_epochs": 8}
        if device == "gpu":
            config["trainer"]["precision"] = precision
        recipe = tiny.recipe(config, tmp_path / device)
        assert run("fit", recipe, cache=str(tmp_path / device / "cache")) == 0
        losses = metric_values(tmp_path / device, "train/loss")
        assert losses[-1] < losses[0]
        ends[device] = metric_values(tmp_path / device, "val/loss")
    tolerance = 1e-3 if precision == "32-true" else 0.05
    assert ends["gpu"][0] == pytest.approx(ends["cpu"][0], rel=tolerance)  # later ones drift apart


def test_captions_equal_those_of_the_cpu(tmp_path: Path) -> None:
    saved = tiny_models.save_model(tmp_path / "saved", tiny_models.frozen_parts(tmp_path / "parts"), "image", "audio")
    files = tiny_models.media_files(tmp_path / "media")
    cpu, gpu = (mmprefix.load(saved, device=device, dtype="float32") for device in ("cpu", "cuda"))
    searches: list[dict[str, Any]] = [{}, {"num_beams": 3, "num_return": 3}]
    for options in searches:
        texts = [model(files, **options) for model in (cpu, gpu)]
        assert texts[0] == texts[1]
    assert mmprefix.load(saved).device.type == "cuda"
    assert len(mmprefix.load(saved)(files)) == len(files)  # in bfloat16


@pytest.mark.parametrize(("quantize", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_quantised_decoder_is_trained_behind(quantize: Any, package: str, tmp_path: Path) -> None:
    """Gradients are those of the weights that it stands for, rounded; a few steps lower the loss; texts come."""
    pytest.importorskip(package, reason="needs mmprefix[quantized]")
    folder = save_decoder(tmp_path, "llama", sharp=3.0)
    decoder, plain = CausalDecoder(folder, quantize=quantize).to("cuda"), CausalDecoder(folder).to("cuda")
    soft = prefixes(decoder)["soft"]
    gradients, losses = [], []
    for each in (decoder, plain):
        leaves: list[Tensor] = []
        each.loss(each.prefill(on("cuda", soft, leaves)), PROMPTS, TARGETS).backward()
        gradients.append(leaves[0].grad)
    assert torch.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0) > 0.9
    leaves = []
    prefix = on("cuda", soft, leaves)
    optimizer = torch.optim.Adam(leaves, 0.05)
    for _ in range(10):
        optimizer.zero_grad()
        loss = decoder.loss(decoder.prefill(prefix), PROMPTS, TARGETS)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    with torch.no_grad():
        texts = decoder.generate(decoder.prefill(prefix), PROMPTS, GenerateOptions(max_new_tokens=6, num_beams=2))
    assert len(texts) == 3
