"""Deep prefixes against PEFT, Li & Liang's formula and Transformers' cache; merging, saving, training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, DynamicCache

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.whisper import Whisper
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.inference.loading import load
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.parallel import Parallel
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.mappers.resampler import Resampler
from mmprefix.model import Branch, PrefixLM
from mmprefix.parts import builder_from_recipe, to_recipe
from mmprefix.saved_model import ModelSettings
from mmprefix.types import Batch, DeepPrefix, Features, Media, MixedPrefix, Prefix, concat_prefixes
from tiny import decoders as tiny_decoders
from tiny import speech_system as tiny_speech_system
from tiny.captioning_system import checkpoint_tensors, quietly, run, training_record
from tiny.speech_system import SpeechSystem, recipe_part

pytestmark = quietly
L, H, K, E, P = 2, 4, 8, 32, 5  # of the tiny GPT-2
DECODER = Sizes(0, 0, E, L, H, K)
PROMPTS = ["the", "a green", ""]
TARGETS = [["a dog barks", "the cat."], ["rain falls loudly over a hill"], ["a", "some rain", "the old roof rings"]]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(tiny_decoders.save_decoder(tmp_path_factory.mktemp("gpt2")))


def nothing(count: int) -> Features:
    """Features of no input."""
    empty = torch.zeros(count, 0)
    return Features(torch.zeros(count, 0, 0), empty.bool(), empty)


def texts(count: int = 3) -> Batch:
    """Batch of prompts and targets without inputs."""
    return Batch({}, PROMPTS[:count], TARGETS[:count], [""] * count, [str(n) for n in range(count)])


def table_model(decoder: CausalDecoder, seed: int = 0, std: float = 1.0) -> tuple[PrefixLM, DeepTable]:
    """Model of a random deep task prefix only, and its mapper."""
    torch.manual_seed(seed)
    model = PrefixLM({}, decoder, lambda sizes: DeepTable(sizes, length=P, std=std))
    return model, cast(DeepTable, model.task_prefix)


def deep_over_learned(hidden: int | None = 12) -> Deep:
    """Deep prefix over a learned table, by an MLP or a linear layer (``hidden`` None)."""
    torch.manual_seed(2)
    return Deep(DECODER, mapper=partial(Learned, length=P, std=1.0), hidden=hidden)


# ------------------------------------------------------------------------------------------- the values in the cache


def layers_by_hand(table: Tensor, layers: int, heads: int, k: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer from the table: for a position first all keys, then all values, layer by layer."""
    layer_pairs: list[tuple[Tensor, Tensor]] = []
    for layer in range(layers):
        pair: list[Tensor] = []
        for both in range(2):
            part = torch.empty(1, heads, len(table), k)
            for head in range(heads):
                at = ((both * layers + layer) * heads + head) * k
                part[0, head] = table[:, at : at + k]
            pair.append(part)
        layer_pairs.append((pair[0], pair[1]))
    return layer_pairs


def plain_pass(decoder: CausalDecoder, layers: list[tuple[Tensor, Tensor]], ids: list[int]) -> Tensor:
    """Log-probabilities (N V) after ``ids`` by Transformers' model with ``layers`` in its cache."""
    before, n = layers[0][0].shape[2], len(ids)
    out = cast(Any, decoder.lm)(
        input_ids=torch.tensor([ids]),
        past_key_values=DynamicCache(layers),
        position_ids=torch.arange(before, before + n)[None],
        attention_mask=torch.ones(1, before + n, dtype=torch.long),
    )
    return out.logits[0].log_softmax(-1)


@pytest.mark.parametrize("kind", tiny_decoders.KINDS)
def test_a_table_equals_transformers_with_the_values_in_its_cache(kind: str, tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, kind))
    model, table = table_model(decoder)
    layers = layers_by_hand(table.table.detach(), decoder.layers, decoder.heads, decoder.head_width)
    state = model.prefill(texts())
    scores = decoder.score(state, PROMPTS, TARGETS)
    written = decoder.generate(state, PROMPTS, GenerateOptions(max_new_tokens=6))
    for b, prompt in enumerate(PROMPTS):
        before = decoder.codec.subword_ids(prompt) or [
            0
        ]  # where nothing was read, a text begins with the token for that
        for target, value in zip(TARGETS[b], scores[b], strict=True):
            ids = [*before, *decoder.codec.target_ids(prompt, target)]
            log_probs = plain_pass(decoder, layers, ids[:-1])
            positions = torch.arange(len(before) - 1, len(ids) - 1)
            expected = log_probs[positions, torch.tensor(ids)[positions + 1]].sum()
            assert value == pytest.approx(float(expected), abs=1e-3)
        line = list(before)
        while len(line) < len(before) + 6 and line[-1:] != [0] * (len(line) > len(before)):
            line.append(int(plain_pass(decoder, layers, line)[-1].argmax()))
        assert written[b][0].text == decoder.codec.decode(line[len(before) :])


def from_peft_order(weight: Tensor) -> Tensor:
    """Last dimension from PEFT's order (layer, key or value, head, number) to ours."""
    return weight.unflatten(-1, (L, 2, H, K)).transpose(-4, -3).flatten(-4)


@pytest.mark.parametrize("projected", [False, True])
def test_deep_prefixes_equal_pefts_prefix_tuning(gpt2: CausalDecoder, projected: bool) -> None:
    torch.manual_seed(4)
    settings = peft.PrefixTuningConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        num_virtual_tokens=P,
        prefix_projection=projected,
        encoder_hidden_size=12,
    )
    lm = AutoModelForCausalLM.from_pretrained(gpt2.identity.source)
    wrapped = cast(Any, peft.get_peft_model(lm, settings)).eval()
    encoder = wrapped.prompt_encoder["default"]
    if projected:
        mapper: Mapper = deep_over_learned()
        inside, ours = cast(Learned, mapper.mapper), cast(Any, mapper.model)
        with torch.no_grad():
            encoder.transform[2].weight.mul_(5)
            inside.embeds.copy_(encoder.embedding.weight)
            ours[0].load_state_dict(encoder.transform[0].state_dict())
            ours[2].weight.copy_(from_peft_order(encoder.transform[2].weight.T).T)
            ours[2].bias.copy_(from_peft_order(encoder.transform[2].bias))
    else:
        mapper = DeepTable(DECODER, length=P)
        with torch.no_grad():
            mapper.table.copy_(from_peft_order(encoder.embedding.weight))
    model = PrefixLM({}, gpt2, lambda sizes: mapper)
    scores = gpt2.score(model.prefill(texts(2)), PROMPTS[:2], TARGETS[:2])
    for b in range(2):
        for target, value in zip(TARGETS[b], scores[b], strict=True):
            before = gpt2.codec.subword_ids(PROMPTS[b])
            ids = [*before, *gpt2.codec.target_ids(PROMPTS[b], target)]
            log_probs = wrapped(input_ids=torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
            positions = torch.arange(len(before) - 1, len(ids) - 1)
            expected = log_probs[positions, torch.tensor(ids)[positions + 1]].sum()
            assert value == pytest.approx(float(expected), abs=1e-3)
    plain = gpt2.score(gpt2.prefill(Prefix(torch.zeros(2, 0, E), torch.zeros(2, 0).bool())), PROMPTS[:2], TARGETS[:2])
    assert all(abs(a[0] - b[0]) > 0.1 for a, b in zip(scores, plain, strict=True))


@pytest.mark.parametrize("hidden", [12, None])
def test_deep_over_a_learned_table_equals_li_and_liangs_formula(hidden: int | None) -> None:
    """P = MLP(P'), (P, 2 L H K) cut into keys and values of layers and heads."""
    deep = deep_over_learned(hidden)
    weights = [tensor.detach() for tensor in deep.state_dict().values()]
    x = weights[0]
    if hidden:
        x = torch.tanh(x @ weights[1].T + weights[2])
    x = x @ weights[-2].T + weights[-1]
    prefix = deep(nothing(3))
    for layer, (keys, values) in enumerate(layers_by_hand(x, L, H, K)):
        for b in range(3):
            assert torch.allclose(prefix.keys[layer, b], keys[0], atol=1e-6)
            assert torch.allclose(prefix.values[layer, b], values[0], atol=1e-6)
    assert prefix.keys.shape == (L, 3, H, P, K)
    assert prefix.mask.tolist() == [[True] * P] * 3


# ------------------------------------------------------------------------------------------------ folded and saved


@pytest.mark.parametrize("twice", [False, True])
def test_the_merged_mapper_makes_the_same_prefix_from_keys_and_values_only(twice: bool) -> None:
    deep: list[Deep] = [deep_over_learned(), deep_over_learned(8)]
    pair = Parallel(DECODER, mappers=[lambda sizes: deep[0], lambda sizes: deep[1]])
    mapper = (pair if twice else deep[0]).eval()
    merged = mapper.merged()
    before, after = mapper(nothing(2)), merged(nothing(2))
    for name in ("keys", "values", "mask"):
        assert torch.allclose(getattr(before, name), getattr(after, name), atol=1e-6)
    count = before.keys.shape[3] // P
    assert [tuple(tensor.shape) for tensor in merged.state_dict().values()] == [(P, 2 * L * H * K)] * count
    again = builder_from_recipe(to_recipe(merged), Mapper)(DECODER)
    again.load_state_dict(merged.state_dict())
    assert_close(again(nothing(2)).keys, after.keys)
    assert merged.merged() is merged


def test_a_mapper_that_reads_its_input_is_not_merged() -> None:
    deep = Deep(Sizes(12, 6, E, L, H, K), mapper=partial(MLP, length=2))
    assert deep.merged() is deep


def test_a_saved_model_holds_keys_and_values_only(gpt2: CausalDecoder, tmp_path: Path) -> None:
    model = PrefixLM({}, gpt2, lambda sizes: deep_over_learned())
    predictor = Predictor(model, ModelSettings(GenerateOptions(max_new_tokens=6)))
    predictor.save(tmp_path / "model")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == {"task_prefix.table": (P, 2 * L * H * K)}
    again = load(tmp_path / "model", device="cpu").model
    for options in (GenerateOptions(max_new_tokens=6), GenerateOptions(max_new_tokens=6, num_beams=3, num_return=3)):
        result, expected = again.generate(texts(), options), model.generate(texts(), options)
        assert [[c.text for c in row] for row in result] == [[c.text for c in row] for row in expected]
    result, expected = (one.text_loss(texts()).nll for one in (again, model))
    assert torch.allclose(result, expected, atol=1e-4)
    assert isinstance(model.task_prefix, Deep)  # the trained mapper itself is unchanged


@pytest.mark.parametrize("learned", [False, True])
def test_a_prefix_for_whisper_small_is_less_than_a_megabyte(learned: bool, tmp_path: Path) -> None:
    """12 layers of 12 heads of 64, 10 positions: 184,320 numbers, merged or not."""
    sizes = Sizes(0, 0, 768, layers=12, heads=12, head_width=64)
    mapper: Mapper = DeepTable(sizes, length=10)
    if learned:
        mapper = Deep(sizes, mapper=partial(Learned, length=10)).merged()
    assert sum(parameter.numel() for parameter in mapper.parameters()) == 10 * 2 * 12 * 768
    save_file(dict(mapper.state_dict()), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size < 1_000_000


# ----------------------------------------------------------------------------------------------- prefixes of an input


OVER_FRAMES = partial(Deep, mapper=partial(Linear, stack=3), hidden=16)  # of ragged length
BUILD: dict[str, Callable[[Sizes], Mapper]] = {
    "linear": OVER_FRAMES,
    "resampler": partial(Deep, mapper=partial(Resampler, length=4, heads=4), hidden=16),
    "one layer": partial(Deep, mapper=partial(Linear, stack=2), hidden=None),
    "both": partial(Parallel, mappers=[OVER_FRAMES, partial(MLP, length=2, hidden=8)]),
}


@pytest.fixture(params=BUILD)
def model_of_sounds(request: pytest.FixtureRequest, spoken: SpeechSystem) -> PrefixLM:
    """Model of sounds: Whisper's encoder, with frames for the length of the sound, and GPT-2."""
    torch.manual_seed(5)
    encoder, decoder = Whisper(spoken.path("whisper")), CausalDecoder(spoken.path("decoder"))
    model = PrefixLM({"audio": Branch(encoder, BUILD[request.param])}, decoder)
    with torch.no_grad():
        for parameter in model.mappers.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model


def sounds(seconds: tuple[float, ...] = (0.5, 1.7, 0.9)) -> Media:
    waves = [torch.from_numpy(tiny_speech_system.tone(200.0 + 500 * n, s)) for n, s in enumerate(seconds)]
    lengths = torch.tensor([len(wave) for wave in waves])
    dirty = torch.full((len(waves), int(lengths.max())), 0.7)  # padding that must have no influence
    for row, wave in zip(dirty, waves, strict=True):
        row[: len(wave)] = wave
    return Media(dirty, lengths)


def single(media: Media, batch: Batch, b: int) -> Batch:
    """Row ``b`` as a batch of its own, without padding."""
    one = Media(media.values[b : b + 1, : int(media.lengths[b])], media.lengths[b : b + 1])
    return replace(
        batch, inputs={"audio": one}, prompts=batch.prompts[b : b + 1], targets=batch.targets[b : b + 1],
        contexts=[""], ids=batch.ids[b : b + 1],
    )  # fmt: skip


def test_a_batch_equals_its_items_in_loss_gradient_and_text(model_of_sounds: PrefixLM) -> None:
    media = sounds()
    batch = replace(texts(), inputs={"audio": media})
    loss = model_of_sounds.text_loss(batch)
    singles = [model_of_sounds.text_loss(single(media, batch, b)) for b in range(3)]
    assert torch.allclose(loss.nll, torch.cat([one.nll for one in singles]), atol=1e-3)
    parameters = list(model_of_sounds.mappers.parameters())
    together = torch.autograd.grad(loss.nll.sum(), parameters)
    apart = torch.autograd.grad(torch.cat([one.nll for one in singles]).sum(), parameters)
    for a, b in zip(together, apart, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))
        assert a.abs().max() > 0
    for options in (GenerateOptions(max_new_tokens=6), GenerateOptions(max_new_tokens=6, num_beams=3)):
        written = model_of_sounds.generate(batch, options)
        for b in range(3):
            (candidates,) = model_of_sounds.generate(single(media, batch, b), options)
            assert [c.text for c in candidates] == [c.text for c in written[b]]


def test_the_prefix_depends_on_the_sound_and_its_length(model_of_sounds: PrefixLM) -> None:
    prefix = model_of_sounds.build_prefix({"audio": sounds()})
    deep = prefix.deep if isinstance(prefix, MixedPrefix) else prefix
    assert isinstance(deep, DeepPrefix)
    assert not torch.allclose(deep.keys[:, 0, :, :2], deep.keys[:, 1, :, :2], atol=1e-3)
    assert not torch.allclose(deep.values[:, 0, :, :2], deep.values[:, 1, :, :2], atol=1e-3)
    ragged = not isinstance(getattr(model_of_sounds.mappers["audio"], "mapper", None), Resampler)
    assert (len(set(deep.mask.sum(1).tolist())) == 3) == ragged


def test_deep_and_soft_prefixes_are_concatenated_in_order() -> None:
    torch.manual_seed(6)
    one, two = deep_over_learned()(nothing(2)), deep_over_learned(None)(nothing(2))
    first, second = (Learned(Sizes(0, 0, E), length=n, std=1.0)(nothing(2)) for n in (3, 1))
    joined = concat_prefixes([first, one, second, two])
    assert isinstance(joined, MixedPrefix)
    assert torch.equal(joined.deep.keys, torch.cat([one.keys, two.keys], 3))
    assert torch.equal(joined.deep.values, torch.cat([one.values, two.values], 3))
    assert torch.equal(joined.soft.embeds, torch.cat([first.embeds, second.embeds], 1))
    nested = concat_prefixes([MixedPrefix(one, first), MixedPrefix(two, second)])
    assert isinstance(nested, MixedPrefix)
    assert torch.equal(nested.deep.keys, joined.deep.keys)
    assert torch.equal(nested.soft.embeds, joined.soft.embeds)
    assert concat_prefixes([one]) is one


# ------------------------------------------------------------------------------------------------------------ details


def test_dropout_in_training_only() -> None:
    table = DeepTable(DECODER, length=50, std=1.0, dropout=0.3)
    deep = Deep(DECODER, mapper=partial(Learned, length=50, std=1.0), dropout=0.3)
    for mapper in (table, deep):
        prefix = mapper(nothing(2))
        hidden = (prefix.keys == 0).float().mean()
        assert 0.27 < float(hidden) < 0.33
        mapper.eval()
        assert not bool((mapper(nothing(2)).keys == 0).any())
    kept = table.train()(nothing(1)).keys
    shown = table.eval()(nothing(1)).keys
    assert torch.allclose(kept[kept != 0], shown[kept != 0] / 0.7)  # the others are scaled up


def test_sizes_are_those_of_the_decoder(gpt2: CausalDecoder) -> None:
    model, table = table_model(gpt2)
    assert table.sizes == Sizes(0, 0, E, L, H, K, query_heads=H, hidden=E)
    options = {"length": P, "std": 1.0, "dropout": 0.0, "start": None, "frozen": None}
    assert model.recipe()["prefix"]["init_args"] == options
    again = builder_from_recipe(model.recipe()["prefix"], DeepTable)(table.sizes)
    again.load_state_dict(table.state_dict())


@pytest.mark.parametrize(("make", "message"), [
    (lambda: DeepTable(Sizes(0, 0, E, layers=2)), "layers=2, heads=0, head_width=0; give all three"),
    (lambda: Deep(Sizes(0, 0, E, heads=2, head_width=4), mapper=Learned), "layers=0, heads=2, head_width=4"),
    (lambda: DeepTable(DECODER, length=0), "DeepTable.length 0: give a number from 1 on"),
    (lambda: Learned(Sizes(0, 0, E), length=-1), "Learned.length -1: give a number from 1 on"),
    (lambda: Deep(DECODER, mapper=DeepTable), "Deep reads embeddings, and DeepTable makes keys and values"),
    (lambda: Deep(DECODER, mapper=partial(Parallel, mappers=[Learned, DeepTable])), "DeepTable makes keys and values"),
])  # fmt: skip
def test_impossible_sizes_and_mappers_are_refused(make: Callable[[], Mapper], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# ----------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["learned", "sounds"])
def test_training_whisper_touches_the_prefix_and_nothing_else(kind: str, spoken: SpeechSystem, tmp_path: Path) -> None:
    encoder = recipe_part("encoders.whisper.Whisper", model=spoken.path("whisper"), window="whole")
    deep = recipe_part("mappers.deep.Deep", mapper=recipe_part("mappers.learned.Learned", length=3), hidden=8)
    config = spoken.config(
        branches={"audio": {"encoder": encoder}},
        decoder=recipe_part("seq2seq.CrossDecoder", model=spoken.path("whisper")),
    )
    if kind == "sounds":
        inside = recipe_part("mappers.resampler.Resampler", length=3, layers=1, heads=4, hidden=16)
        config["model"]["branches"]["audio"]["mapper"] = recipe_part("mappers.deep.Deep", mapper=inside, hidden=8)
    else:
        config["model"]["prefix"] = deep
    assert run("fit", spoken.recipe(config, tmp_path), save_to=tmp_path / "model", trainer__max_epochs=2) == 0
    record, own = training_record(tmp_path), "model.mappers." if kind == "sounds" else "model.task_prefix."
    moved = {name for name, tensor in record.after.items() if not torch.equal(tensor, record.before[name])}
    assert moved == {name for name in record.after if name.startswith(own)} == set(record.gradients)
    assert len(record.after) > len(moved) + 60  # Whisper's two halves
    kept = checkpoint_tensors(tmp_path / "checkpoints" / "last.ckpt")
    assert kept.keys() == moved
    assert all(torch.equal(kept[name], record.after[name]) for name in kept)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert kind == "sounds" or {name: tuple(t.shape) for name, t in saved.items()} == {
        "task_prefix.table": (3, 2 * 2 * 4 * 8)
    }
    model = load(tmp_path / "model", device="cpu")
    assert len(model([spoken.path(f"{n}.wav") for n in range(2)])) == 2
