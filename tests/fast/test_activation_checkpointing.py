"""Activation checkpointing: equal losses, gradients and texts with less memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.generation.options import GenerateOptions
from mmprefix.types import DeepPrefix, Features, MixedPrefix, Prefix
from tiny import whisper as tiny_whisper
from tiny.captioning_system import build, metric_values, quietly, run, same_tensors, training_record
from tiny.decoders import KINDS, make_tokenizer, save_decoder

pytestmark = quietly
TARGETS = [["a dog barks", "the cat."], ["rain falls loudly over a hill"], ["a", "some rain", "the old roof rings"]]
PROMPTS = ["", "the", "a green"]


@pytest.fixture(scope="module", params=[*KINDS, "whisper", "bart"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ComposedDecoder:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in KINDS:
        return CausalDecoder(save_decoder(folder, request.param))
    return CrossDecoder(getattr(tiny_whisper, f"save_{request.param}")(folder))


def loss(decoder: ComposedDecoder, kind: str) -> tuple[Tensor, list[Tensor]]:
    """Loss after a random prefix of a kind, and its gradients into that prefix."""
    random = torch.Generator().manual_seed(0)
    mask = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    shape = (decoder.layers, 3, decoder.heads, 5, decoder.head_width)
    soft = torch.randn(3, 5, decoder.width, generator=random).requires_grad_()
    keys, values = (torch.randn(shape, generator=random).requires_grad_() for _ in range(2))
    deep = DeepPrefix(keys, values, mask)
    prefix = {"soft": Prefix(soft, mask), "deep": deep, "mixed": MixedPrefix(deep, Prefix(soft, mask))}[kind]
    memory = None
    if decoder.memory_dim:
        frame_mask = torch.arange(20) < torch.tensor([20, 7, 13])[:, None]
        frames = torch.randn(3, 20, decoder.memory_dim, generator=random)
        memory = Features(frames, frame_mask, frames[:, 0])
    mean = decoder.loss(decoder.prefill(prefix, memory), PROMPTS, TARGETS)
    leaves = {"soft": [soft], "deep": [keys, values], "mixed": [keys, values, soft]}[kind]
    return mean.detach(), list(torch.autograd.grad(mean, leaves))


@pytest.mark.parametrize("kind", ["soft", "deep", "mixed"])
def test_losses_and_gradients_are_equal(decoder: ComposedDecoder, kind: str) -> None:
    if isinstance(decoder, CrossDecoder) and not decoder.reads_speech and kind != "deep":
        pytest.skip("a text model's decoder takes a deep prefix only")
    checkpointed = copy.deepcopy(decoder)
    checkpointed.recompute_layers()
    (plain, expected_gradients), (mean, gradients) = loss(decoder, kind), loss(checkpointed, kind)
    assert torch.equal(mean, plain)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(gradient, expected)


def test_generated_texts_are_equal(tmp_path: Path) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path))
    prefix = Prefix(torch.randn(2, 4, decoder.width), torch.ones(2, 4, dtype=torch.bool))
    options = GenerateOptions(max_new_tokens=8, num_beams=3)
    before = decoder.generate(decoder.prefill(prefix), ["", ""], options)
    decoder.recompute_layers()
    assert decoder.generate(decoder.prefill(prefix), ["", ""], options) == before


def test_less_memory_is_stored(tmp_path: Path) -> None:
    """Input, keys and values of a layer, where an ordinary layer stores 16 times its input or more."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=12, n_head=2)).save_pretrained(tmp_path)
    decoder, kept = CausalDecoder(str(tmp_path)), list[int]()
    weights = {parameter.untyped_storage().data_ptr() for parameter in decoder.parameters()}
    for checkpointed in (False, True):
        if checkpointed:
            decoder.recompute_layers()
        stored: dict[int, int] = {}

        def store(value: Tensor, stored: dict[int, int] = stored) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in weights:
                stored[storage.data_ptr()] = storage.nbytes()
            return value

        embeds = torch.randn(3, 40, decoder.width, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(store, lambda value: value):
            state = decoder.prefill(Prefix(embeds, torch.ones(3, 40, dtype=torch.bool)))
            mean = decoder.loss(state, PROMPTS, TARGETS)
        kept.append(sum(stored.values()))
        del mean, state
    assert kept[1] < 0.45 * kept[0]


def test_an_option_of_a_recipe_turns_it_on(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    tiny = build(tmp_path / "tiny", steps=10)
    ends: list[Any] = []
    for name, recompute in (("plain", False), ("checkpointed", True)):
        recipe = tiny.recipe(tiny.config(("audio",)), tmp_path / name)
        assert run("fit", recipe, model__recompute=recompute, trainer__max_steps=3, data__val="[]") == 0
        ends.append(training_record(tmp_path / name).after)
    assert same_tensors(*ends)
    assert metric_values(tmp_path / "checkpointed", "train/loss") == metric_values(tmp_path / "plain", "train/loss")
