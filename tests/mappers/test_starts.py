"""Starts of learned prefixes: texts, words, drawn numbers, means of others; against Transformers, trained, saved."""

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
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.mappers.starts import Average, Normal, Start, TextTokens, Uniform, Words, Zeros
from mmprefix.mappers.ulpt import UserULPT
from mmprefix.mappers.user_prefix import DeepUserPrefix, UserPrefix
from mmprefix.model import Branch, PrefixLM
from mmprefix.parts import builder_from_recipe, to_recipe
from mmprefix.saved_model import ModelSettings
from mmprefix.training.inputs.observation import show_training_data
from mmprefix.training.inputs.text_room import text_room
from mmprefix.types import Batch, Features, Prefix
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


# ------------------------------------------------------------------------------------------------- kinds of starts


def test_words_are_tokens_with_a_letter_each_once(gpt2: CausalDecoder) -> None:
    tokenizer: Any = gpt2.tokenizer
    letters = [n for n in range(len(tokenizer)) if any(c.isalpha() for c in tokenizer.decode([n]))]
    letters = [n for n in letters if n not in tokenizer.all_special_ids]
    assert gpt2.word_ids() == letters
    assert len(letters) > 30
    drawn = Words(seed=1).ids(gpt2, 20)
    assert len({*drawn}) == 20
    assert {*drawn} <= {*letters}
    assert Words(seed=1).ids(gpt2, 20) == drawn
    assert Words(seed=2).ids(gpt2, 20) != drawn
    assert sorted(Words(most=7).ids(gpt2, 7)) == letters[:7]
    assert sorted(Words(most=3).ids(gpt2, 6)) == sorted(letters[:3] * 2)  # again where there are too few
    first = Words(first="a dog", seed=1).ids(gpt2, 9)
    names = gpt2.token_ids("a dog")
    assert first == [*names, *drawn[: 9 - len(names)]]


def test_frequent_words_are_those_of_a_file(gpt2: CausalDecoder, tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("a dog\nthe dog; the dog\nthe the the", "utf-8")
    counts = dict.fromkeys(gpt2.word_ids(), 0)
    for line in file.read_text().splitlines():
        for number in gpt2.token_ids(line):
            if number in counts:
                counts[number] += 1
    best = sorted(counts, key=lambda number: -counts[number])[0]
    assert Words(most=1, file=str(file)).ids(gpt2, 2) == [best, best]
    assert {*Words(file=str(file)).ids(gpt2, 50)} == {number for number, count in counts.items() if count}
    with pytest.raises(InputError, match=r"Words.file .*nowhere.txt: cannot be read as text"):
        Words(file=str(tmp_path / "nowhere.txt")).ids(gpt2, 2)
    (tmp_path / "numbers.txt").write_text("1 2 3")
    with pytest.raises(InputError, match=r"numbers.txt has no token with a letter"):
        Words(file=str(tmp_path / "numbers.txt")).ids(gpt2, 2)
    with pytest.raises(InputError, match=r"Words.most 0: give a number of words from 1 on"):
        Words(most=0)


@pytest.mark.parametrize("start", [TEXT, TextTokens(text=TEXT), Words(seed=3)])
def test_soft_and_deep_prefixes_begin_as_the_same_tokens(start: str | Start, gpt2: CausalDecoder) -> None:
    tokens = TextTokens(text=start) if isinstance(start, str) else cast(Any, start)
    ids = tokens.ids(gpt2, 6)
    soft = PrefixLM({}, gpt2, partial(Learned, length=6, start=start))
    deep = PrefixLM({}, gpt2, partial(DeepTable, length=6, start=start))
    made = PrefixLM({}, gpt2, partial(Deep, mapper=partial(Learned, length=6), hidden=4, start=start))
    for model in (soft, deep, made):
        show_training_data(model, [], NOTHING)
    assert torch.equal(cast(Learned, soft.task_prefix).embeds, gpt2.lm.get_input_embeddings().weight[ids])
    out = cast(Any, gpt2.lm)(torch.tensor([ids]), use_cache=True).past_key_values
    for model in (deep, made):
        prefix = cast(Any, model.build_prefix({}))
        for layer in range(gpt2.layers):
            assert torch.allclose(prefix.keys[layer], out.layers[layer].keys, atol=1e-4)
            assert torch.allclose(prefix.values[layer], out.layers[layer].values, atol=1e-4)
    scores = [gpt2.score(model.prefill(texts()), [" and"], TARGETS)[0] for model in (soft, deep, made)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)  # one pass over the tokens is the same either way
    assert scores[0] == pytest.approx(scores[2], abs=1e-3)


def texts() -> Batch:
    """One input of text alone."""
    return Batch({}, [""], TARGETS, [""], ["0"])


def test_drawn_starts_need_no_decoder() -> None:
    for build, size in ((Learned, 12), (DeepTable, 60)):
        zeros: Any = build(SIZES, length=4, start=Zeros())
        assert zeros.known
        assert not any(parameter.any() for parameter in zeros.parameters())
        uniform: Any = build(SIZES, length=400, start=Uniform(scale=0.3))
        (numbers,) = (parameter.detach() for parameter in uniform.parameters())
        assert numbers.shape == (400, size)
        assert float(numbers.abs().max()) <= 0.3
        assert float(numbers.std()) == pytest.approx(0.3 / 3**0.5, rel=0.05)
        torch.manual_seed(0)
        normal: Any = build(SIZES, length=4, start=Normal(std=0.7))
        torch.manual_seed(0)
        by_std: Any = build(SIZES, length=4, std=0.7)
        for own, other in zip(normal.parameters(), by_std.parameters(), strict=True):
            assert torch.equal(own, other)
        before = numbers.clone()
        uniform.begin(Reader(torch.ones(1, 12), SIZES))
        assert torch.equal(next(uniform.parameters()), before)  # it has begun already


def test_users_numbers_through_a_basis_begin_near_words(gpt2: CausalDecoder) -> None:
    mapper = UserULPT(Sizes(0, 8, gpt2.width), length=3, rank=gpt2.width, capacity=2, start="some rain")
    mapper.begin(gpt2)
    expected = TextTokens(text="some rain").embeds(gpt2, mapper.sizes, 3)
    embeds = mapper.eval()(Features(torch.zeros(2, 0, 0), torch.zeros(2, 0).bool(), torch.zeros(2, 8))).embeds
    assert torch.allclose(embeds, expected.expand_as(embeds), atol=1e-3)
    drawn = UserULPT(mapper.sizes, length=3, rank=2, capacity=2, start=Uniform(scale=0.1))
    drawn.begin(gpt2)
    assert torch.equal(drawn.rows, drawn.rows[:1].expand_as(drawn.rows))
    assert 0 < drawn.rows.abs().max() <= 0.1


def test_users_rows_begin_as_words(gpt2: CausalDecoder) -> None:
    model = PrefixLM({"user": Branch(UserId(), partial(UserPrefix, length=3, capacity=2, start="some rain"))}, gpt2)
    mapper = cast(UserPrefix, model.mapper("user"))
    mapper.begin(gpt2)
    expected = TextTokens(text="some rain").embeds(gpt2, mapper.sizes, 3)
    assert torch.equal(mapper.rows, expected.flatten().expand(3, -1))


def test_deep_over_an_input_has_no_start() -> None:
    with pytest.raises(InputError, match=r"Deep\.start: Linear reads an input; leave the start out"):
        Deep(Sizes(6, 0, 12, 2, 3, 5), mapper=Linear, start="a")


def saved(decoder: CausalDecoder, build: Any, folder: Path) -> PrefixLM:
    """Model saved in ``folder``, with a prefix that has been trained a little."""
    model = PrefixLM({}, decoder, build)
    show_training_data(model, [], NOTHING)
    with torch.no_grad():
        for parameter in cast(Any, model.task_prefix).parameters():
            parameter.add_(torch.randn_like(parameter))
    Predictor(model, ModelSettings()).save(folder)
    return model


@pytest.mark.parametrize("build", [partial(Learned, length=3), partial(DeepTable, length=3, start="a dog", frozen=1)])
def test_an_average_is_the_mean_of_saved_prefixes(build: Any, gpt2: CausalDecoder, tmp_path: Path) -> None:
    models = [saved(gpt2, build, tmp_path / str(n)) for n in range(3)]
    start = Average(models=[str(tmp_path / str(n)) for n in range(3)])
    model = PrefixLM({}, gpt2, partial(build.func, length=3, start=start))
    assert not cast(Any, model.task_prefix).known
    show_training_data(model, [], NOTHING)
    own = cast(Any, model.build_prefix({}))
    others = [cast(Any, other.build_prefix({})) for other in models]
    for name in ("embeds",) if build.func is Learned else ("keys", "values"):
        mean = torch.stack([getattr(other, name) for other in others]).mean(0)
        assert torch.allclose(getattr(own, name), mean, atol=1e-6)


def test_an_average_of_what_does_not_fit_is_refused(gpt2: CausalDecoder, tmp_path: Path) -> None:
    saved(gpt2, partial(Learned, length=3), tmp_path / "soft")
    saved(gpt2, partial(DeepTable, length=3), tmp_path / "deep")
    names = {name: str(tmp_path / name) for name in ("soft", "deep")}
    sizes = Sizes(0, 0, gpt2.width, gpt2.layers, gpt2.heads, gpt2.head_width)
    for models, positions in (([names["soft"]], 4), ([names["soft"], names["deep"]], 3)):
        with pytest.raises(InputError, match=rf"not all have a task prefix of {positions} embeddings"):
            Average(models=models).embeds(gpt2, sizes, positions)
    with pytest.raises(InputError, match="not all have a task prefix of 3 keys and values"):
        Average(models=[names["soft"]]).vectors(gpt2, sizes, 3)
    other = CausalDecoder(tiny_decoders.save_decoder(tmp_path / "llama", "llama"))
    with pytest.raises(InputError, match="was trained with another decoder"):
        Average(models=[names["soft"]]).embeds(other, sizes, 3)
    with pytest.raises(InputError, match="is no saved model"):
        Average(models=[str(tmp_path / "llama")]).embeds(gpt2, sizes, 3)
    with pytest.raises(InputError, match="is empty; name the folders"):
        Average(models=[])


def test_a_recipe_names_a_start_and_the_saved_model_does_not(gpt2: CausalDecoder, tmp_path: Path) -> None:
    for build in (Learned, DeepTable, partial(Deep, mapper=partial(Learned, length=2), hidden=3)):
        options: dict[str, Any] = {"length": 2} if build in (Learned, DeepTable) else {}
        mapper = cast(Any, build)(SIZES, start=Words(most=9, file="captions.txt", seed=4), **options)
        recipe = to_recipe(mapper)
        assert recipe["init_args"]["start"] == {
            "class_path": "mmprefix.mappers.starts.Words",
            "init_args": {"most": 9, "file": "captions.txt", "first": "", "seed": 4},
        }
        again: Any = builder_from_recipe(recipe, type(mapper))(SIZES)
        assert to_recipe(again) == recipe
        assert not mapper.known
    saved(gpt2, partial(Learned, length=3, start=Words()), tmp_path / "model")
    assert "Words" not in (tmp_path / "model" / "mmprefix.yaml").read_text()
    loaded = mmprefix.load(tmp_path / "model", device="cpu").model
    assert cast(Learned, loaded.task_prefix).known
