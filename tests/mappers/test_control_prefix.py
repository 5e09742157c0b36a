"""Control prefixes: the paper's formula written out, its count of parameters, unknown values, training and saving."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch

import mmprefix
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.user_id import UserId, id_bytes
from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.control_prefix import ControlPrefix
from mmprefix.model import Branch, PrefixLM
from mmprefix.parts import builder_from_recipe, to_recipe
from mmprefix.saved_model import ModelSettings
from mmprefix.types import Features
from tiny.decoders import save_decoder
from tiny.fits import text_batch

SIZES = Sizes(0, 8, 12, 2, 3, 5)


def attributes(*names: str) -> Features:
    return replace(Features.empty(len(names)), pooled=torch.stack([id_bytes(name) for name in names]))


@pytest.fixture
def mapper() -> ControlPrefix:
    torch.manual_seed(0)
    made = ControlPrefix(SIZES, length=4, control_length=2, hidden=7, capacity=3).eval()
    made.observe(attributes("news", "sport"))
    return made


def test_the_formula(mapper: ControlPrefix) -> None:
    """P = MLP(E_task), C = MLP(E_control[value]), keys and values [C; P], layer by layer, head by head."""
    state = mapper.state_dict()
    prefix = mapper(attributes("sport", "news", "unknown"))
    assert prefix.keys.shape == prefix.values.shape == (2, 3, 3, 6, 5)
    assert prefix.mask.all()
    for row, table_row in enumerate((2, 1, 0)):
        whole = torch.cat([state["rows"][table_row].view(2, 12), state["task"]])
        hidden = torch.tanh(whole @ state["model.0.weight"].T + state["model.0.bias"])
        vectors = hidden @ state["model.2.weight"].T + state["model.2.bias"]
        for layer in range(2):
            for head in range(3):
                at = (layer * 3 + head) * 5
                assert torch.allclose(prefix.keys[layer, row, head], vectors[:, at : at + 5], atol=1e-5)
                assert torch.allclose(prefix.values[layer, row, head], vectors[:, 30 + at : 35 + at], atol=1e-5)


@pytest.mark.parametrize(("values", "hidden"), [(3, 800), (15, 512)])
def test_the_count_of_parameters_is_the_papers(values: int, hidden: int) -> None:
    """T5-large has 24 layers of 16 heads, each 64 wide, and embeddings of 1,024; nobody's row is ours."""
    mapper = ControlPrefix(Sizes(0, 8, 1024, 24, 16, 64), length=50, hidden=hidden, capacity=values)
    table, control = 50 * 1024, 2 * values * 1024
    network = 1024 * hidden + hidden + hidden * 2 * 24 * 1024 + 2 * 24 * 1024
    nobody = 2 * 1024
    assert sum(p.numel() for p in mapper.parameters()) == table + control + network + nobody


def test_values_learn_their_own_texts_and_are_saved(tmp_path: Path) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path / "gpt2"))
    torch.manual_seed(0)
    build = partial(ControlPrefix, length=2, control_length=2, hidden=16, capacity=5, nobody=0.0)
    model = PrefixLM({"topic": Branch(UserId(), build)}, decoder)
    mapper = cast(ControlPrefix, model.mapper("topic"))
    mapper.observe(attributes("news", "sport"))
    texts = ("a dog barks", "rain falls on the roof")
    batch = text_batch(texts, prompts=["", ""], inputs={"topic": attributes("news", "sport")})
    swapped = replace(batch, inputs={"topic": attributes("sport", "news")})
    optimizer = torch.optim.Adam(model.trained_parameters().values(), 0.02)
    for _ in range(40):
        optimizer.zero_grad()
        model.text_loss(batch).mean().backward()
        optimizer.step()
    with torch.no_grad():
        own, other = (float(model.text_loss(batch_).mean()) for batch_ in (batch, swapped))
    assert own < other - 0.5
    Predictor(model, ModelSettings()).save(tmp_path / "model")
    saved = mmprefix.load(tmp_path / "model", device="cpu").model
    assert cast(ControlPrefix, saved.mapper("topic")).users == 2
    with torch.no_grad():
        assert float(saved.text_loss(batch).mean()) == pytest.approx(own, abs=1e-4)


def test_a_recipe_builds_it_again_and_lengths_are_checked(mapper: ControlPrefix) -> None:
    again = builder_from_recipe(to_recipe(mapper), ControlPrefix)(SIZES)
    again.load_state_dict(mapper.state_dict())
    names = attributes("news", "unknown")
    assert torch.equal(again.eval()(names).keys, mapper(names).keys)
    with pytest.raises(InputError, match=r"ControlPrefix.control_length 0: give a number from 1 on"):
        ControlPrefix(SIZES, control_length=0)
    with pytest.raises(InputError, match=r"ControlPrefix.length 0"):
        ControlPrefix(SIZES, length=0)
