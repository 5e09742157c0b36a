"""Terms beside the cache, vectors of layers and tables behind networks that begin as words or a text, and are saved."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import mmprefix
from mmprefix.data.model_inputs import ModelInputs
from mmprefix.decoders import CausalDecoder
from mmprefix.encoders.user_id import UserId
from mmprefix.errors import InputError
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.aligner import Aligner
from mmprefix.mappers.base import Sizes, join_layers
from mmprefix.mappers.compensated_prefix import CompensatedPrefix
from mmprefix.mappers.control_prefix import ControlPrefix
from mmprefix.mappers.llama_adapter import LlamaAdapter
from mmprefix.mappers.prompt_gating import PromptGating
from mmprefix.mappers.starts import Start, TextTokens, Tokens, Words, Zeros
from mmprefix.mappers.unipelt import UniPELTPrefix
from mmprefix.model import Branch, PrefixLM
from mmprefix.saved_model import ModelSettings
from mmprefix.training.inputs.observation import show_training_data
from tiny import decoders as tiny_decoders
from tiny.mappers import Reader

TEXT = "the cat runs over a green hill; some rain falls"
SIZES = Sizes(0, 8, 12, 2, 3, 5)
NOTHING = ModelInputs({}, {}, False)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(tiny_decoders.save_decoder(tmp_path_factory.mktemp("gpt2")))


def begun(gpt2: CausalDecoder, build: Any) -> PrefixLM:
    model = PrefixLM({}, gpt2, build)
    show_training_data(model, [], NOTHING)
    return model


@pytest.mark.parametrize("start", [TEXT, Words(seed=3)])
def test_terms_beside_the_cache_begin_as_keys_and_values_of_tokens(start: str | Start, gpt2: CausalDecoder) -> None:
    tokens = TextTokens(text=start) if isinstance(start, str) else start
    table = join_layers(gpt2.token_key_values(cast(Tokens, tokens).ids(gpt2, 4)))[0]  # (P 2*L*H*K)
    keys, values = table.view(4, 2, gpt2.layers, gpt2.heads, gpt2.head_width).permute(1, 2, 3, 0, 4)
    gated = cast(UniPELTPrefix, begun(gpt2, partial(UniPELTPrefix, length=4, start=start)).task_prefix)
    shared = cast(CompensatedPrefix, begun(gpt2, partial(CompensatedPrefix, length=4, start=start)).task_prefix)
    first = cast(
        CompensatedPrefix, begun(gpt2, partial(CompensatedPrefix, length=4, layers=1, start=start)).task_prefix
    )
    assert torch.equal(gated.key_values, torch.stack([keys, values]))
    assert torch.equal(shared.key_values, torch.stack([keys, values]))
    assert torch.equal(first.key_values, torch.stack([keys[:1], values[:1]]))


def test_vectors_of_layers_and_tables_behind_networks_begin_as_words(gpt2: CausalDecoder) -> None:
    words = gpt2.token_vectors(Words(seed=3).ids(gpt2, 3))
    start = Words(seed=3)
    table = cast(Aligner, begun(gpt2, partial(Aligner, length=3, first=0, start=start)).task_prefix)
    assert torch.equal(table.vectors, words)
    layers = cast(LlamaAdapter, begun(gpt2, partial(LlamaAdapter, length=3, first=0, start=start)).task_prefix)
    assert torch.equal(layers.vectors, words.expand(gpt2.layers, -1, -1))
    gating = cast(PromptGating, begun(gpt2, partial(PromptGating, length=3, hidden=4, start=start)).task_prefix)
    assert torch.equal(gating.table, words)
    build = partial(ControlPrefix, length=3, control_length=1, hidden=4, capacity=2, start=start)
    model = PrefixLM({"user": Branch(UserId(), build)}, gpt2)
    cast(Any, model.mapper("user")).begin(gpt2)
    assert torch.equal(cast(ControlPrefix, model.mapper("user")).task, words)


@pytest.mark.parametrize("kind", [UniPELTPrefix, CompensatedPrefix, Aligner, LlamaAdapter, PromptGating])
def test_a_start_is_taken_once_and_is_not_in_the_saved_recipe(kind: Any, gpt2: CausalDecoder, tmp_path: Path) -> None:
    options: dict[str, Any] = {"first": 0} if kind in (Aligner, LlamaAdapter) else {}
    assert not kind(SIZES, length=3, start="a dog", **options).known
    assert kind(SIZES, length=3, start=Zeros(), **options).known
    model = begun(gpt2, partial(kind, length=3, start=Words(), **options))
    Predictor(model, ModelSettings()).save(tmp_path / "model")
    assert "Words" not in (tmp_path / "model" / "mmprefix.yaml").read_text()
    own, loaded = (cast(Any, m.task_prefix) for m in (model, mmprefix.load(tmp_path / "model", device="cpu").model))
    assert not hasattr(loaded, "known") or loaded.known
    for name, tensor in own.merged().state_dict().items():
        assert torch.allclose(tensor, loaded.state_dict()[name])
    before = getattr(own, own.begun).clone()
    show_training_data(model, [], NOTHING)  # a run that goes on keeps what it has
    assert torch.equal(getattr(own, own.begun), before)


def test_vectors_wider_than_embeddings_have_no_words() -> None:
    mapper = Aligner(replace(SIZES, hidden=SIZES.width + 4), first=0, start="a dog")
    with pytest.raises(InputError, match=r"Aligner\.start: embeddings have 12 numbers"):
        mapper.begin(Reader(torch.randn(4, SIZES.width), SIZES))
