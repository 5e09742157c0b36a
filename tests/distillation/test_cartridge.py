"""Cartridges: files, joining, a row each, and their places: task prefix, a user's row, the store of users."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import mmprefix
from mmprefix.decoders import CausalDecoder
from mmprefix.distillation import Cartridge, compose, distil, stack
from mmprefix.encoders.user_id import UserId, id_bytes
from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.user_prefix import DeepUserPrefix
from mmprefix.model import Branch, PrefixLM
from mmprefix.saved_model import ModelSettings
from mmprefix.types import DeepPrefix, Media
from mmprefix.users import UserStore
from tiny import decoders as tiny_decoders

pytestmark = pytest.mark.numeric
TARGETS = [["a dog barks", "loudly."]]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(tiny_decoders.save_decoder(tmp_path_factory.mktemp("llama"), "llama"))


@pytest.fixture(scope="module")
def rain(decoder: CausalDecoder) -> Cartridge:
    return distil(decoder, "some rain falls on the old roof", [], positions=5, steps=0)


@pytest.fixture(scope="module")
def hill(decoder: CausalDecoder) -> Cartridge:
    return distil(decoder, "the cat runs over a green hill", [], positions=4, steps=0)


def scores(decoder: CausalDecoder, prefix: DeepPrefix) -> list[list[float]]:
    count = len(prefix.mask)
    return decoder.score(decoder.prefill(prefix), ["the"] * count, TARGETS * count)


def test_a_file_holds_it_and_its_decoder(rain: Cartridge, tmp_path: Path) -> None:
    rain.save(tmp_path / "rain.safetensors")
    loaded = Cartridge.load(tmp_path / "rain.safetensors")
    assert torch.equal(loaded.keys, rain.keys)
    assert torch.equal(loaded.values, rain.values)
    assert (loaded.frozen, loaded.decoder) == (1, rain.decoder)
    assert rain.nbytes == 4 * 2 * rain.keys.numel()
    half = rain.half()
    half.save(tmp_path / "half.safetensors")
    assert half.nbytes == rain.nbytes // 2
    assert (tmp_path / "half.safetensors").stat().st_size < half.nbytes + 500


def test_composed_cartridges_have_one_sink(decoder: CausalDecoder, rain: Cartridge, hill: Cartridge) -> None:
    both = compose(rain, hill)
    assert (both.positions, both.frozen) == (5 + 4 - 1, 1)
    assert torch.equal(both.keys[:, :, :5], rain.keys)
    assert torch.equal(both.values[:, :, 5:], hill.values[:, :, 1:])
    assert scores(decoder, both.prefix())[0] != pytest.approx(scores(decoder, rain.prefix())[0], abs=1e-2)
    assert torch.equal(compose(rain, hill, rain).keys, compose(both, rain).keys)
    assert torch.equal(compose(rain).values, rain.values)
    with pytest.raises(InputError, match="of 2 decoders"):
        compose(rain, replace(hill, decoder="another"))


def test_each_row_has_a_cartridge_of_its_own(decoder: CausalDecoder, rain: Cartridge, hill: Cartridge) -> None:
    together = scores(decoder, stack([rain, hill, rain]))
    for row, cartridge in zip(together, (rain, hill, rain), strict=True):
        assert row == pytest.approx(scores(decoder, cartridge.prefix())[0], abs=1e-3)
    assert scores(decoder, hill.prefix(2))[1] == pytest.approx(together[1], abs=1e-3)


def test_it_is_the_task_prefix_of_a_saved_model(decoder: CausalDecoder, rain: Cartridge, tmp_path: Path) -> None:
    model = PrefixLM({}, decoder, rain.mapper)
    Predictor(model, ModelSettings()).save(tmp_path / "model")
    loaded = mmprefix.load(tmp_path / "model", device="cpu").model
    prefix: Any = loaded.build_prefix({}, count=1)
    assert torch.equal(prefix.keys[:, 0], rain.keys)
    assert torch.equal(prefix.values[:, 0], rain.values)


def test_it_is_a_users_row_and_stands_in_the_store(decoder: CausalDecoder, rain: Cartridge, tmp_path: Path) -> None:
    model = PrefixLM({"user": Branch(UserId(), partial(DeepUserPrefix, length=5, capacity=2))}, decoder).eval()
    mapper = model.mapper("user")
    assert isinstance(mapper, DeepUserPrefix)
    with UserStore(tmp_path / "users.db", create=True) as store:
        store.add("ann")
        store.put("ann", "cartridge", rain.tensors(), key=rain.decoder)
        kept = store.tensors("ann", "cartridge", key=rain.decoder)
    assert kept is not None
    mapper.add(id_bytes("ann"), Cartridge.from_tensors(kept, rain.decoder).vector())
    hashed = torch.stack([id_bytes("ann"), id_bytes("bo")])
    features = UserId().encode(Media(hashed, torch.ones(2)))
    prefix = mapper(features)
    assert torch.equal(prefix.keys[:, 0], rain.keys)
    assert torch.equal(prefix.values[:, 0], rain.values)
    assert not torch.equal(prefix.keys[:, 1], rain.keys)


def test_other_decoders_and_other_files_are_refused(rain: Cartridge, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.safetensors: cannot be read as a cartridge"):
        Cartridge.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"bad.safetensors: cannot be read as a cartridge"):
        Cartridge.load(tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match=r"cannot be read as a cartridge"):
        Cartridge.load(tmp_path)
    whole = rain.tensors()
    for tensors in (
        {"keys": rain.keys},
        whole | {"keys": rain.keys[0]},
        whole | {"values": rain.values[:, :, 1:]},
        whole | {"values": rain.values.long()},
        whole | {"keys": rain.keys[:, :, :0], "values": rain.values[:, :, :0]},
        *(whole | {"frozen": torch.tensor(number)} for number in (6, -1, 0.5, [1, 1])),
    ):
        with pytest.raises(InputError, match="needs the tensors keys and values"):
            Cartridge.from_tensors(tensors, "")
    other = CausalDecoder(tiny_decoders.save_decoder(tmp_path / "other", "llama", seed=1))
    with pytest.raises(InputError, match="was made for weights"):
        rain.require(other)
    gpt2 = CausalDecoder(tiny_decoders.save_decoder(tmp_path / "gpt2", "gpt2"))
    with pytest.raises(InputError, match=r"has layers, heads and width \(2, 2, 8\), the decoder \(2, 4, 8\)"):
        rain.require(gpt2)
