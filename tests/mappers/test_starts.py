"""Deep prefixes that start as the decoder's keys and values of a text: against Transformers, in training, saved."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import mmprefix
from mmprefix.data.model_inputs import ModelInputs
from mmprefix.decoders import CausalDecoder, CrossDecoder
from mmprefix.encoders.user_id import UserId, id_bytes
from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.user_prefix import DeepUserPrefix
from mmprefix.model import Branch, PrefixLM
from mmprefix.parts import builder_from_recipe, to_recipe
from mmprefix.saved_model import ModelSettings
from mmprefix.training.inputs.observation import show_training_data
from mmprefix.training.inputs.text_room import text_room
from mmprefix.types import Features, Prefix
from tiny import decoders as tiny_decoders
from tiny import whisper as tiny_whisper
from tiny.mappers import Reader

TEXT = "the cat runs over a green hill; some rain falls"
TARGETS = [["on the old roof", "and a bell rings twice."]]
SIZES = Sizes(0, 8, 12, 2, 3, 5)
NOTHING = ModelInputs({}, {}, False)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(tiny_decoders.save_decoder(tmp_path_factory.mktemp("gpt2")))


def nobody(count: int = 1) -> Features:
    return Features.empty(count)


@pytest.mark.parametrize("kind", [*tiny_decoders.KINDS, *tiny_decoders.WINDOWED])
def test_a_prefix_of_a_texts_keys_and_values_is_that_text_as_a_prompt(kind: str, tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, kind))
    ids = decoder.codec.marked_ids(TEXT)
    deep = decoder.key_values(TEXT, len(ids))
    out = cast(Any, decoder.lm)(torch.tensor([ids]), use_cache=True).past_key_values
    for layer, (keys, values) in enumerate(zip(deep.keys, deep.values, strict=True)):
        own = out.layers[layer].keys  # drops what lies before the window of the layer
        assert torch.allclose(keys[:, :, -own.shape[2] :], own, atol=1e-4)
        assert values.shape == keys.shape == (1, decoder.heads, len(ids), decoder.head_width)
    empty = decoder.prefill(Prefix.empty(1, decoder.width))
    by_prompt = decoder.score(empty, [f"{TEXT} and"], TARGETS)[0]
    by_prefix = decoder.score(decoder.prefill(deep), [" and"], TARGETS)[0]
    assert by_prefix == pytest.approx(by_prompt, abs=1e-3)


def test_a_short_text_is_repeated(gpt2: CausalDecoder) -> None:
    ids = gpt2.codec.marked_ids("rain falls")
    deep = gpt2.key_values("rain falls", 2 * len(ids) + 1)
    out = cast(Any, gpt2.lm)(torch.tensor([[*ids, *ids, ids[0]]]), use_cache=True).past_key_values
    assert torch.allclose(deep.keys[-1], out.layers[-1].keys, atol=1e-4)
    assert torch.allclose(deep.values[-1], out.layers[-1].values, atol=1e-4)


def test_a_table_starts_as_the_text_and_is_saved(gpt2: CausalDecoder, tmp_path: Path) -> None:
    model = PrefixLM({}, gpt2, partial(DeepTable, length=5, start=TEXT))
    table = cast(DeepTable, model.task_prefix)
    assert not table.known
    show_training_data(model, [], NOTHING)
    assert table.known
    expected = gpt2.key_values(TEXT, 5)
    prefix = table(nobody(2))
    assert torch.equal(prefix.keys, expected.keys.expand(-1, 2, -1, -1, -1))
    assert torch.equal(prefix.values, expected.values.expand(-1, 2, -1, -1, -1))
    assert {name: tensor.shape[0] for name, tensor in model.trained.items()} == {
        "task_prefix.table": 4,
        "task_prefix.sink": 1,
    }

    optimizer = torch.optim.Adam(table.parameters(), 0.1)
    gpt2.loss(gpt2.prefill(table(nobody())), ["a"], [["dog barks"]]).backward()
    optimizer.step()
    moved = table(nobody()).keys.detach()
    assert torch.equal(moved[:, :, :, :1], expected.keys[:, :, :, :1])  # the first position is not trained
    assert not torch.isclose(moved[:, :, :, 1:], expected.keys[:, :, :, 1:]).any(-1).all()

    show_training_data(model, [], NOTHING)  # a run that goes on keeps what it has
    assert torch.equal(table(nobody()).keys, moved)
    Predictor(model, ModelSettings()).save(tmp_path / "model")
    loaded = mmprefix.load(tmp_path / "model", device="cpu").model
    assert torch.equal(cast(DeepTable, loaded.task_prefix)(nobody()).keys, moved)


def test_all_users_rows_start_as_the_text(gpt2: CausalDecoder) -> None:
    build = partial(DeepUserPrefix, length=4, capacity=3, start=TEXT)
    model = PrefixLM({"user": Branch(UserId(), build)}, gpt2)
    mapper = cast(DeepUserPrefix, model.mapper("user"))
    room = text_room(model)
    assert room is not None
    assert room.left({}, ("", "")) == 128 - 1  # tried out before it has started
    mapper.begin(gpt2)
    expected = gpt2.key_values(TEXT, 4)
    hashed = torch.stack([id_bytes("ann"), id_bytes("bo")])
    mapper.observe(Features(torch.zeros(2, 0, 0), torch.zeros(2, 0).bool(), hashed))
    prefix = mapper(Features(torch.zeros(2, 0, 0), torch.zeros(2, 0).bool(), hashed))
    assert torch.equal(prefix.keys, expected.keys.expand(-1, 2, -1, -1, -1))
    assert torch.equal(prefix.values, expected.values.expand(-1, 2, -1, -1, -1))
    prefix.keys.sum().backward()
    assert mapper.rows.shape[1] == 3 * 2 * gpt2.layers * gpt2.heads * gpt2.head_width


@pytest.mark.parametrize("kind", [DeepTable, partial(DeepUserPrefix, capacity=2)])
def test_frozen_positions_by_default_and_in_a_recipe(kind: Any) -> None:
    assert (kind(SIZES).frozen, kind(SIZES, start="a").frozen) == (0, 1)
    mapper = kind(SIZES, length=3, frozen=2)
    assert mapper.sink.shape == (2, 60)
    rebuilt: Any = builder_from_recipe(to_recipe(mapper), type(mapper))(SIZES)
    rebuilt.load_state_dict(mapper.state_dict())
    assert torch.equal(rebuilt.sink, mapper.sink)
    started = kind(SIZES, length=3, start="a", frozen=0)
    started.begin(reader := Reader(torch.ones(1, 12), SIZES))
    assert reader.texts == ["a"]
    assert not hasattr(started, "sink")
    for length, frozen in ((3, 3), (1, None), (3, -1)):
        with pytest.raises(InputError, match=r"Deep\w+\.frozen -?\d: of length \d at least one position is trained"):
            kind(SIZES, length=length, start="a", frozen=frozen)
    with pytest.raises(InputError, match=r"length 0: give a number from 1 on"):
        kind(SIZES, length=0)


def test_texts_and_decoders_without_keys_and_values_are_refused(gpt2: CausalDecoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="start '': has no tokens; give a word"):
        gpt2.key_values("", 3)
    with pytest.raises(InputError, match="has 128 positions, but 129 more are needed"):
        gpt2.key_values(TEXT, 129)
    deepseek = CausalDecoder(tiny_decoders.save_decoder(tmp_path / "deepseek", "deepseek"))
    with pytest.raises(InputError, match="no common size"):
        deepseek.key_values(TEXT, 2)
    whisper = CrossDecoder(tiny_whisper.save_whisper(tmp_path / "whisper"))
    with pytest.raises(InputError, match="reads a text beside frames only"):
        whisper.key_values(TEXT, 2)
