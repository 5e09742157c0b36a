"""Prefill whose last layer runs at the last position only, against a full run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.fast import last_layer
from mmprefix.kv_cache.state import State
from mmprefix.types import Prefix
from tiny.decoders import KINDS, ragged_prefix, save_decoder


@pytest.fixture(scope="module", params=KINDS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(save_decoder(tmp_path_factory.mktemp(request.param), request.param, sharp=2.0))


def gradients(decoder: CausalDecoder, narrows: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[State, torch.Tensor]:
    """State after prompts and questions, and the gradient of a weighted sum of it into the prefix."""
    monkeypatch.setattr(decoder.language_model, "narrows_last_layer", narrows)
    prefix = ragged_prefix(decoder, [5, 1, 0, 4])
    embeds = prefix.embeds.clone().requires_grad_()
    state = decoder.append(
        decoder.prefill(Prefix(embeds, prefix.mask)), ["the", "", "", "a green hill"], ["", "a", "", ""]
    )
    assert state.last_hidden is not None
    parts = [state.last_hidden, *(part for layer in state.cache for part in layer)]
    sum((part * torch.linspace(0, 1, part.numel()).view(part.shape)).sum() for part in parts).backward()  # pyright: ignore
    assert embeds.grad is not None
    return state, embeds.grad


def test_states_and_gradients_equal_a_full_run(decoder: CausalDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    (full, full_gradient), (narrowed, gradient) = (
        gradients(decoder, narrows, monkeypatch) for narrows in (False, True)
    )
    assert narrowed.last_hidden is not None
    assert full.last_hidden is not None
    real = full.mask.any(1)
    assert torch.allclose(narrowed.last_hidden[real], full.last_hidden[real], rtol=1e-5, atol=1e-5)
    for layer, full_layer in zip(narrowed.cache, full.cache, strict=True):
        for part, other in zip(layer, full_layer, strict=True):
            assert torch.allclose(part, other, rtol=1e-5, atol=1e-5)
    assert (gradient - full_gradient).norm() <= 5e-6 * full_gradient.norm()


def test_fewer_operations_are_computed(decoder: CausalDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for narrows in (False, True):
        monkeypatch.setattr(decoder.language_model, "narrows_last_layer", narrows)
        with FlopCounterMode(display=False) as counter:
            decoder.prefill(ragged_prefix(decoder, [40, 40]))
        counts.append(counter.get_total_flops())
    assert counts[1] < 0.8 * counts[0]  # most operations of one of two layers are saved


def test_a_model_without_a_list_of_layers_is_not_hooked() -> None:
    assert not last_layer.install(nn.Sequential(nn.Linear(2, 2)), 2)


def test_the_hooks_do_nothing_outside_of_a_prefill(tmp_path: Path) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path))
    plain = decoder.lm(inputs_embeds=torch.ones(1, 6, decoder.width)).logits
    decoder.prefill(ragged_prefix(decoder, [3]))
    assert torch.equal(plain, decoder.lm(inputs_embeds=torch.ones(1, 6, decoder.width)).logits)
