"""Distillation: the loss falls, the first position stays, starts and options, a fresh decoder reads the result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmprefix.decoders import CausalDecoder
from mmprefix.distillation import Cartridge, DistilOptions, compact, distil
from mmprefix.distillation.student import Start
from mmprefix.distillation.teacher import ask_teacher, mean_loss
from mmprefix.errors import InputError
from tiny import decoders as tiny_decoders

pytestmark = pytest.mark.numeric
CONTEXT = "some rain falls on the old roof, and a bell rings twice. the cat runs"
TEXTS = ["a dog barks loudly.", ("; the", "cat runs over a green hill"), (" and", "the old roof")]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(tiny_decoders.save_decoder(tmp_path_factory.mktemp("llama"), "llama", sharp=3.0))


def loss_of(decoder: CausalDecoder, cartridge: Cartridge) -> float:
    """Loss on the texts, less that of the teacher itself."""
    expected = ask_teacher(decoder, CONTEXT, TEXTS)
    cartridge.require(decoder)
    entropy = torch.cat([-(own.log_probs.exp() * own.log_probs).sum(1) for own in expected]).mean()
    with torch.no_grad():
        return float(mean_loss(decoder, decoder.prefill(cartridge.prefix(len(TEXTS))), expected) - entropy)


@pytest.mark.parametrize("start", ["compact", "text", "random"])
def test_training_brings_the_student_to_its_teacher(decoder: CausalDecoder, start: Start, tmp_path: Path) -> None:
    before = distil(decoder, CONTEXT, TEXTS, positions=4, start=start, steps=0)
    after = distil(decoder, CONTEXT, TEXTS, positions=4, start=start, steps=25)
    assert loss_of(decoder, after) < loss_of(decoder, before) * 0.8
    frozen = int(start != "random")
    assert (before.frozen, after.frozen) == (frozen, frozen)
    for old, new in ((before.keys, after.keys), (before.values, after.values)):
        assert torch.equal(new[:, :, :frozen], old[:, :, :frozen])
        assert not torch.isclose(new[:, :, frozen:], old[:, :, frozen:]).all(-1).any()
    assert all(parameter.grad is None for parameter in decoder.parameters())
    after.save(tmp_path / "file.safetensors")
    assert loss_of(decoder, Cartridge.load(tmp_path / "file.safetensors")) == pytest.approx(loss_of(decoder, after))


def test_a_first_step_moves_each_number_by_the_rate(decoder: CausalDecoder) -> None:
    """Adam's first step is the rate times the sign of the gradient, whatever the loss."""
    options = DistilOptions(batch_size=2, rate=0.01, frozen=2)
    before = compact(decoder, CONTEXT, 5).keys[:, 0]
    after = distil(decoder, CONTEXT, TEXTS, positions=5, steps=1, options=options)
    moved = (after.keys - before).abs()
    assert not moved[:, :, :2].any()
    assert moved.max() < 0.0101
    assert moved[:, :, 2:].median() == pytest.approx(0.01, rel=0.02)
    assert after.frozen == 2


def test_starts_and_numbers_that_cannot_be_are_refused(decoder: CausalDecoder) -> None:
    with pytest.raises(InputError, match="start 'best': give one of compact, text, random"):
        distil(decoder, CONTEXT, TEXTS, positions=4, start="best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="texts: there are none"):
        distil(decoder, CONTEXT, [], positions=4)
    with pytest.raises(InputError, match="positions 0: give a number from 1 on"):
        distil(decoder, CONTEXT, TEXTS, positions=0)
    with pytest.raises(InputError, match="frozen 5: give a number from 0 up to positions, 4"):
        distil(decoder, CONTEXT, TEXTS, positions=4, options=DistilOptions(frozen=5))
    for name in ("batch_size", "rate", "top"):
        with pytest.raises(InputError, match=f"{name} 0: give a number above 0"):
            DistilOptions(**{name: 0})
