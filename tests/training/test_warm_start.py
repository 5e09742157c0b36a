"""Start from a saved model: tensors that both have are copied, others stay, other parts and shapes are refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.inference.loading import load
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.learned import Learned
from mmprefix.model import PrefixLM
from mmprefix.saved_model import ModelSettings
from mmprefix.training.warm_start import warm_start
from tiny.decoders import save_decoder
from tiny.models import OPTIONS


def build(decoder: str, length: int = 2, lora_rank: int = 0) -> PrefixLM:
    return PrefixLM({}, CausalDecoder(decoder, lora_rank=lora_rank), partial(Learned, length=length))


@pytest.fixture
def decoder(tmp_path: Path) -> str:
    return save_decoder(tmp_path / "gpt2")


@pytest.fixture
def saved(decoder: str, tmp_path: Path) -> Path:
    Predictor(build(decoder), ModelSettings(OPTIONS)).save(tmp_path / "model")
    return tmp_path / "model"


def test_common_tensors_are_copied_and_others_stay(decoder: str, saved: Path) -> None:
    expected = load(saved, device="cpu").model.trained
    model = build(decoder, lora_rank=2)
    before = {name: tensor.clone() for name, tensor in model.trained.items()}
    warm_start(model, str(saved))
    moved = {name for name, tensor in model.trained.items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("task_prefix.") for name in moved)
    assert all(torch.equal(model.trained[name], expected[name]) for name in moved)


def test_another_shape_and_another_decoder_are_refused(decoder: str, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tensor 'task_prefix.* has the shape"):
        warm_start(build(decoder, length=3), str(saved))
    torch.manual_seed(7)
    other = save_decoder(tmp_path / "other", "llama")
    with pytest.raises(InputError, match="was trained with another decoder"):
        warm_start(build(other), str(saved))
