"""Fused layers against the layers of Transformers: outputs, caches, what is left alone, changed weights, copying."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GemmaConfig,
    Glm4MoeConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OlmoConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from mmprefix.fast import fused_layer, prepare
from mmprefix.fast.fused_layer import FusedLayer
from mmprefix.fast.small_batch_linear import MAX_ROWS

SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
FUSED: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "a head for each query": LlamaConfig(**{**SIZES, "num_key_value_heads": 4}),
    "wide heads": LlamaConfig(**SIZES, head_dim=12, rms_norm_eps=0.1),
    "biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "qwen": Qwen2Config(**SIZES),
    "mistral": MistralConfig(**SIZES),
}
PLAIN: dict[str, PreTrainedConfig] = {
    "scaled residual sums": GraniteConfig(**SIZES, residual_multiplier=0.5),
    "clipped queries": OlmoConfig(**SIZES, clip_qkv=0.1),
    "norm with one added": GemmaConfig(**SIZES, head_dim=8),
    "another activation": LlamaConfig(**SIZES, hidden_act="gelu"),
    "normed queries": Qwen3Config(**SIZES, head_dim=8),
}


def model(config: PreTrainedConfig, seed: int = 0) -> Any:
    """Frozen random model; each weight counts, those of norms and biases too."""
    torch.manual_seed(seed)
    lm = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in lm.parameters():
        parameter.normal_(0, 2 / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 1)
    return lm


def patched(lm: Any) -> Any:
    """Copy of ``lm`` with all fast patches."""
    fast = deepcopy(lm)
    prepare.prepare(fast, fast.model, len(fast.model.layers), frozen=True)
    return fast


def fused(lm: Any) -> list[bool]:
    """Which layers are fused."""
    return [isinstance(layer.__dict__.get("forward"), FusedLayer) for layer in lm.model.layers]


def used(lm: Any) -> bool:
    """True once the first layer was run fused."""
    return lm.model.layers[0].forward.packed[0].copy is not None


def run(lm: Any, counts: tuple[int, ...], inputs: int = 2) -> list[Tensor]:
    """Hidden states of random embeddings, ``counts`` positions one after the other, and the keys and values."""
    random, cache, past = torch.Generator().manual_seed(1), DynamicCache(), 0
    outputs: list[Tensor] = []
    for count in counts:
        past += count
        visible = torch.rand(inputs, 1, count, past, generator=random) < 0.7
        visible[..., 0] = True
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        embeds = torch.randn(inputs, count, lm.config.hidden_size, generator=random).to(lm.dtype)
        positions = torch.arange(past - count, past).expand(inputs, -1)
        options = {"attention_mask": mask.to(lm.dtype), "position_ids": positions, "past_key_values": cache}
        outputs.append(lm.model(inputs_embeds=embeds, use_cache=True, **options).last_hidden_state)
    layers: list[Any] = cache.layers
    for layer in layers:
        assert layer.keys is not None
        assert layer.values is not None
        outputs += [layer.keys, layer.values]
    return outputs


def assert_close(outputs: list[Tensor], expected: list[Tensor]) -> None:
    for output, other in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, other, rtol=1e-4, atol=1e-4)


@pytest.mark.numeric
@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("counts", [(1,), (4, 1, 3), (MAX_ROWS // 2, 2)])
def test_outputs_and_caches_equal_those_of_plain_layers(kind: str, counts: tuple[int, ...]) -> None:
    plain = model(FUSED[kind])
    fast = patched(plain)
    assert all(fused(fast))
    with torch.inference_mode():
        assert_close(run(fast, counts), run(plain, counts))
    assert used(fast)


def test_heads_that_are_rotated_in_part_run_the_plain_layer() -> None:
    """Only the angles of a call tell that half of each head is rotated."""
    part: dict[str, Any] = {"head_dim": 8, "partial_rotary_factor": 0.5, "first_k_dense_replace": 3}
    config = Glm4MoeConfig(**SIZES, **part, use_qk_norm=False, attention_bias=True)
    lm = model(config)
    fast = patched(lm)
    assert_close(run(fast, (4, 1, 3)), run(lm, (4, 1, 3)))


@pytest.mark.parametrize("kind", PLAIN)
def test_layers_that_compute_something_else_are_left_alone(kind: str) -> None:
    assert not any(fused(patched(model(PLAIN[kind]))))


def test_layers_of_a_model_are_proved_by_their_switches() -> None:
    """Some layers of SmolLM3 have no rotary embeddings."""
    assert fused(patched(model(SmolLM3Config(**SIZES, no_rope_layers=[1, 0, 1])))) == [True, False, True]


def test_a_hooked_layer_and_a_switched_off_path_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model(FUSED["llama"])
    lm.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert fused(patched(lm)) == [True, False, True]
    monkeypatch.setattr(prepare.switches, "ENABLED", prepare.switches.ENABLED - {"fused_layer"})
    assert not any(fused(patched(lm)))


@pytest.mark.numeric
@pytest.mark.parametrize("case", ["many rows", "gradients", "training", "half precision"])
def test_other_calls_run_the_plain_layer(case: str) -> None:
    plain = model(FUSED["llama"])
    fast = patched(plain)
    for lm in (plain, fast):
        lm.train(case == "training")
        lm.to(torch.bfloat16 if case == "half precision" else torch.float32)
    counts = (MAX_ROWS // 2 + 1,) if case == "many rows" else (2, 1)
    with torch.set_grad_enabled(case == "gradients"):
        assert_close(run(fast, counts), run(plain, counts))
    assert not used(fast)


@pytest.mark.numeric
def test_changed_weights_are_read_again() -> None:
    plain = model(FUSED["biases"])
    fast = patched(plain)
    with torch.no_grad():
        run(fast, (2,))
        for name, parameter in plain.named_parameters():
            parameter.mul_(0.5)
            fast.get_parameter(name).mul_(0.5)
        assert_close(run(fast, (2, 1)), run(plain, (2, 1)))
        fast.load_state_dict(model(FUSED["biases"], seed=1).state_dict())
        assert_close(run(fast, (2, 1)), run(model(FUSED["biases"], seed=1), (2, 1)))


def test_pickled_and_copied_layers_have_the_same_bits_and_their_own_weights() -> None:
    fast = patched(model(FUSED["qwen"]))
    with torch.no_grad():
        first = run(fast, (3, 1))
        copies = [deepcopy(fast), pickle.loads(pickle.dumps(fast))]
        for copied in copies:
            assert all(fused(copied))
            assert all(torch.equal(a, b) for a, b in zip(run(copied, (3, 1)), first, strict=True))
        for parameter in copies[0].parameters():
            parameter.zero_()
        assert not run(copies[0], (2,))[0].any()
        assert all(torch.equal(a, b) for a, b in zip(run(fast, (3, 1)), first, strict=True))


def test_the_proof_leaves_the_random_state_as_it_is() -> None:
    lm = model(FUSED["llama"])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    patched(lm)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("_rotated", lambda heads, cos, sin: heads), ("_normed", lambda norm, rows: rows * norm.weight)],
    ids=["rotation", "norm"],
)
def test_a_wrong_fusion_is_refused(name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layer, name, wrong)
    assert not any(fused(patched(model(FUSED["llama"]))))
