"""Compressed prefixes: codes by the formula, error below half a step, bytes counted, a saved model loads and writes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mmprefix
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.inference.prefixes import compress_prefix
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.compressed import CompressedTable, Scales
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.model import PrefixLM
from mmprefix.types import DeepPrefix, Features
from tiny.decoders import save_decoder

L, H, P, K = 3, 2, 7, 8
SIZES = Sizes(0, 0, 32, L, H, K)
LOSS = {8: 2e-3, 4: 5e-2}  # nats a token that the tests allow


def random_prefix() -> DeepPrefix:
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(L, 1, H, P, K, generator=generator) for _ in range(2))
    keys[..., 3] *= 20  # a loud channel
    return DeepPrefix(keys, values, torch.ones(1, P, dtype=torch.bool))


def rounded(part: Tensor, over: int, bits: int, exact: int) -> Tensor:
    """Numbers (L 1 H P K) as the nearest of 2^bits even steps over their group, dimension ``over``, by hand."""
    out = part.clone()
    out[:, :, :, :exact] = part[:, :, :, :exact].half().float()
    group = part[:, :, :, exact:]
    least, greatest = group.amin(over, keepdim=True), group.amax(over, keepdim=True)
    step = ((greatest - least) / (2**bits - 1)).half().float()
    least = least.half().float()
    out[:, :, :, exact:] = least + step * ((group - least) / step).round().clamp(0, 2**bits - 1)
    return out


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("scales", "keys_over", "values_over"), [("head", 4, 4), ("channel", 3, 3), ("mixed", 3, 4)])
@pytest.mark.parametrize("exact", [0, 2])
def test_numbers_are_the_nearest_steps(bits: int, scales: Scales, keys_over: int, values_over: int, exact: int) -> None:
    prefix = random_prefix()
    table = CompressedTable(SIZES, length=P, bits=bits, scales=scales, exact=exact)
    table.fill(prefix)
    decoded = table(Features.empty(2))
    assert decoded.mask.all()
    for own, before, over in ((decoded.keys, prefix.keys, keys_over), (decoded.values, prefix.values, values_over)):
        assert torch.allclose(own[:, :1], rounded(before, over, bits, exact), atol=1e-5)
        assert torch.equal(own[:, :1], own[:, 1:])


@pytest.mark.parametrize("bits", [8, 4])
def test_bytes_are_those_of_the_codes_and_two_half_numbers_a_group(bits: int) -> None:
    table = CompressedTable(SIZES, length=P, bits=bits, scales="head", exact=1)
    size = sum(tensor.numel() * tensor.element_size() for tensor in table.state_dict().values())
    assert size == 2 * L * H * ((P - 1) * K * bits // 8 + (P - 1) * 4 + K * 2)


def test_options_are_refused_by_name() -> None:
    for options, words in (({"bits": 3}, "bits 3"), ({"scales": "row"}, "scales"), ({"exact": 99}, "exact 99")):
        with pytest.raises(InputError, match=words):
            CompressedTable(SIZES, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_saved_model_is_smaller_and_says_nearly_the_same(bits: int, tmp_path: Path) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path / "decoder", "llama", sharp=3.0))
    prefix = partial(DeepTable, length=32, start="a dog barks loudly. the cat runs over a green hill")
    model = PrefixLM({}, decoder, prefix)
    assert isinstance(model.task_prefix, DeepTable)
    model.task_prefix.begin(decoder)  # type: ignore[arg-type]
    whole = Predictor(model)
    small = compress_prefix(whole, bits)
    for name, predictor in (("whole", whole), ("small", small)):
        predictor.save(tmp_path / name)
    loaded = mmprefix.load(tmp_path / "small")
    assert isinstance(loaded.model.task_prefix, CompressedTable)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "small")]
    assert sizes[0] > {8: 2.2, 4: 3.0}[bits] * sizes[1]
    texts = ["some rain falls", "a bell rings twice.", "the old roof"]
    before, after, again = (p.score([{}] * 3, texts) for p in (whole, small, loaded))
    assert after == again
    tokens = sum(decoder.count_tokens(texts))
    assert before != after
    assert sum(abs(a - b) for a, b in zip(before, after, strict=True)) / tokens < LOSS[bits]


def test_a_model_without_a_deep_prefix_is_refused(tmp_path: Path) -> None:
    model = PrefixLM({}, CausalDecoder(save_decoder(tmp_path)), Learned)
    with pytest.raises(InputError, match="no task prefix"):
        compress_prefix(Predictor(model))
