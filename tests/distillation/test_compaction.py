"""Closed-form compaction: the paper's formula on small tensors, the whole text restored, decoders of several kinds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmprefix.decoders import CausalDecoder
from mmprefix.distillation import compact
from mmprefix.distillation.compaction import Mass, compact_heads, fit_values
from mmprefix.errors import InputError
from mmprefix.kv_cache.recorded_attention import recorded_attention
from mmprefix.types import Prefix
from tiny import decoders as tiny_decoders

pytestmark = pytest.mark.numeric
TEXT = "the cat runs over a green hill; some rain falls on the old roof, and a bell rings twice."
TARGETS = [["a dog barks", "loudly."]]


def random_heads(count: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries (2 20 4), keys and values (2 N 4)."""
    torch.manual_seed(0)
    return torch.randn(2, 20, 4) * 2, torch.randn(2, count, 4) * 2, torch.randn(2, count, 4)


@pytest.mark.parametrize("mass", ["mean", "max", "rms"])
def test_kept_keys_and_values_are_those_of_the_formula(mass: Mass) -> None:
    queries, keys, values = random_heads()
    kept, fitted = compact_heads(queries @ keys.transpose(1, 2) / 2, keys, values, 4, mass=mass)
    for h in range(2):
        q, k, v = (part[h].double().numpy() for part in (queries, keys, values))
        weights = np.exp(q @ k.T / math.sqrt(4))
        weights /= weights.sum(1, keepdims=True)
        total = {"mean": weights.mean(0), "max": weights.max(0), "rms": np.sqrt((weights**2).mean(0))}[mass]
        chosen = sorted([0, *sorted(range(1, 9), key=lambda i: -total[i])[:3]])
        assert np.allclose(kept[h].numpy(), k[chosen])
        few = np.exp(q @ k[chosen].T / math.sqrt(4))
        few /= few.sum(1, keepdims=True)
        expected = np.linalg.lstsq(few, weights @ v, rcond=None)[0]
        assert np.allclose(fitted[h].numpy(), expected, atol=1e-3)


def test_with_all_positions_the_attention_output_is_restored() -> None:
    queries, keys, values = random_heads()
    scores = queries @ keys.transpose(1, 2) / 2
    kept, fitted = compact_heads(scores, keys, values, 9)
    assert torch.equal(kept, keys)
    assert torch.allclose(scores.softmax(-1) @ fitted, scores.softmax(-1) @ values, atol=1e-4)
    assert torch.allclose(fitted, values, atol=1e-3)


def test_a_ridge_takes_over_where_least_squares_are_wild() -> None:
    torch.manual_seed(0)
    weights = torch.rand(2, 20, 3)
    weights[1, :, 2] = weights[1, :, 1] + 1e-5 * torch.randn(20)  # two columns that are almost the same
    target = torch.randn(2, 20, 4)
    fitted = fit_values(weights, target, torch.tensor([10.0, 10.0]))
    assert torch.allclose(fitted[0], torch.linalg.lstsq(weights[0], target[0]).solution, atol=1e-4)
    assert torch.linalg.lstsq(weights[1].double(), target[1].double()).solution.abs().max() > 1000
    assert fitted[1].abs().max() < 10
    error = (weights[1] @ fitted[1] - target[1]).square().mean()
    without = (weights[1, :, :2] @ torch.linalg.lstsq(weights[1, :, :2], target[1]).solution - target[1]).square()
    assert float(error) == pytest.approx(float(without.mean()), rel=0.01)


@pytest.mark.parametrize("kind", tiny_decoders.KINDS)
@pytest.mark.parametrize("read_twice", [False, True])
def test_all_positions_are_the_text_in_the_prompt(kind: str, read_twice: bool, tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, kind, sharp=2.0))
    count = len(decoder.codec.marked_ids(TEXT))
    prefix = compact(decoder, TEXT, count, read_twice=read_twice)
    whole = decoder.key_values(TEXT, count)
    assert torch.allclose(prefix.keys, whole.keys, atol=1e-3)
    by_prompt = decoder.score(decoder.prefill(Prefix.empty(1, decoder.width)), [f"{TEXT} and"], TARGETS)[0]
    by_prefix = decoder.score(decoder.prefill(prefix), [" and"], TARGETS)[0]
    assert by_prefix == pytest.approx(by_prompt, abs=2e-2)


@pytest.mark.parametrize("kind", ["llama", "qwen"])  # with learned positions what follows moves nearer
def test_few_positions_are_nearer_to_the_text_than_its_first_ones(kind: str, tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, kind, sharp=2.0))
    with torch.no_grad():
        whole = decoder.append_prompts(decoder.prefill(Prefix.empty(1, decoder.width)), [f"{TEXT} and"])
        expected = decoder.logits(decoder.language_model.last_hidden(whole)).softmax(-1)
        errors: list[float] = []
        for prefix in (compact(decoder, TEXT, 6), decoder.key_values(TEXT, 6)):
            state = decoder.append_prompts(decoder.prefill(prefix), [" and"])
            logits = decoder.logits(decoder.language_model.last_hidden(state))
            errors.append(float((expected * (expected.log() - logits.log_softmax(-1))).sum()))
    assert errors[0] < errors[1] / 2


def test_the_recorded_run_is_the_usual_one_and_leaves_no_trace(tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, "gemma2"))
    model, ids = decoder.language_model, decoder.codec.marked_ids(TEXT)
    before = model.lm.config._attn_implementation
    usual = model.key_values(ids)
    with recorded_attention(model.stack) as calls:
        recorded = model.key_values(ids)
    assert [call.softcap for call in calls] == [50.0, 50.0]
    assert torch.allclose(recorded.keys, usual.keys, atol=1e-4)
    assert torch.allclose(torch.stack([call.keys for call in calls]), usual.keys, atol=1e-4)
    assert model.lm.config._attn_implementation == before
    model.key_values(ids)
    assert len(calls) == 2


def test_numbers_and_decoders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, "gpt2"))
    for positions in (0, 3):
        with pytest.raises(InputError, match=rf"positions {positions}: the context has 2 tokens"):
            compact(decoder, "a dog", positions)
    with pytest.raises(InputError, match="128 positions"):
        compact(decoder, " ".join([TEXT] * 6), 3)


def test_what_stands_before_it_takes_its_part_of_the_attention() -> None:
    queries, keys, values = random_heads()
    scores = queries @ keys.transpose(1, 2) / 2
    kept, fitted = compact_heads(scores, keys, values, 3, front=2)
    for h in range(2):
        logits, k, v = (part[h].double().numpy() for part in (scores, keys, values))
        weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        chosen = sorted(sorted(range(2, 9), key=lambda i: -weights.mean(0)[i])[:3])
        assert np.allclose(kept[h].numpy(), k[chosen])
        few = np.exp(logits[:, [0, 1, *chosen]])
        few /= few.sum(1, keepdims=True)
        expected = np.linalg.lstsq(few[:, 2:], weights @ v - few[:, :2] @ v[:2], rcond=None)[0]
        assert np.allclose(fitted[h].numpy(), expected, atol=1e-3)
    everything, restored = compact_heads(scores, keys, values, 8, front=1)
    assert torch.equal(everything, keys[:, 1:])
    assert torch.allclose(restored, values[:, 1:], atol=1e-3)
