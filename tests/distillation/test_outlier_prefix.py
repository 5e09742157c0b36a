"""Outlier tokens by the rule of PrefixQuant, on a model made loud at one; fixed scales round by the formula."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.distillation.outlier_prefix import nll, outlier_ids, outlier_prefix
from mmprefix.distillation.static_activations import activation_scales, static_activations
from mmprefix.errors import InputError
from tiny.decoders import save_decoder

LOUD = 40
TEXTS = [[70, LOUD, 90, 100, 71, 72], [80, 81, LOUD, LOUD, 82, 83], [84, 85, 86, 87, 88, 89]]


@pytest.fixture
def decoder(tmp_path: Path) -> CausalDecoder:
    """LLaMA whose first layer answers one token with huge numbers."""
    decoder = CausalDecoder(save_decoder(tmp_path, "llama", sharp=1.0)).eval()
    layer = cast(Any, decoder.language_model.decoder_layers[0])
    with torch.no_grad():
        row = decoder.lm.get_input_embeddings().weight[LOUD]
        for matrix in (layer.mlp.up_proj, layer.mlp.gate_proj):
            matrix.weight[0] += 400 * row / row.norm()
    return decoder


def test_the_prefix_is_the_loud_token_and_the_one_that_begins_a_text(decoder: CausalDecoder) -> None:
    begin = decoder.codec.prompt_ids("", True)
    seen: list[tuple[int, Tensor]] = []
    hooks = [
        cast(Any, layer).mlp.down_proj.register_forward_pre_hook(lambda _, x, n=n: seen.append((n, x[0][0].detach())))
        for n, layer in enumerate(decoder.language_model.decoder_layers)
    ]
    counts, ids = [0, 0], Counter[int]()
    for text in TEXTS:  # the rule by hand, over a plain run of the model
        whole = [*begin, *text]
        seen.clear()
        decoder.lm(input_ids=torch.tensor([whole]))
        for layer, row in seen:
            loudest = row.abs().amax(-1)
            loud = [token for token, value in zip(whole, loudest, strict=True) if value > 20 * loudest.median()]
            counts[layer] += len(loud)
            ids.update(loud)
    for hook in hooks:
        hook.remove()
    most = math.ceil(max(counts) / len(TEXTS))
    assert 1 <= most <= 3
    assert ids.most_common()[0][0] == LOUD
    made = outlier_ids(decoder, TEXTS, eta=20)
    assert made == [token for token, _ in ids.most_common() if token not in begin][:most] + begin
    assert made[0] == LOUD
    assert outlier_prefix(decoder, TEXTS, eta=20).mask.shape == (1, len(made))


def test_one_scale_for_all_rounds_every_activation(decoder: CausalDecoder) -> None:
    scales = activation_scales(decoder, None, TEXTS)
    assert len(scales) == 2 * 7
    with static_activations(decoder, scales, 16):
        assert nll(decoder, None, TEXTS[2]) == pytest.approx(nll_of(decoder), abs=2e-2)
    seen: dict[str, Tensor] = {}
    layer = cast(Any, decoder.language_model.decoder_layers[1]).mlp.down_proj
    with static_activations(decoder, scales, 4):
        hook = layer.register_forward_pre_hook(lambda _, x: seen.update(after=x[0].detach()))
        coarse = nll(decoder, None, TEXTS[2])
        hook.remove()
    step = scales["1.mlp.down_proj"] / 7
    levels = seen["after"] / step
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert levels.abs().max() <= 8
    assert coarse != pytest.approx(nll_of(decoder), abs=1e-4)


def nll_of(decoder: CausalDecoder) -> float:
    """Mean negative log-likelihood of the last text by a plain run, its first token not scored."""
    ids = torch.tensor([[*decoder.codec.prompt_ids("", True), *TEXTS[2]]])
    with torch.no_grad():
        log_probs = decoder.lm(input_ids=ids).logits[0].log_softmax(-1)
    start = ids.shape[1] - len(TEXTS[2])
    return -float(log_probs[start:-1].gather(1, ids[0, start + 1 :, None]).mean())


def test_a_quiet_decoder_has_only_the_beginning(tmp_path: Path) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path, "llama", sharp=1.0), begin="").eval()
    with pytest.raises(InputError, match="eta"):
        outlier_prefix(decoder, TEXTS, eta=1e6)
