"""Words, norms and mixtures of prefixes, against the embeddings and captions that they are made of."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mmprefix import InputError, Predictor, Waveform, world
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.vit import ViT
from mmprefix.generation.options import GenerateOptions
from mmprefix.inspection import has_embeddings, interpolate, nearest_words, next_words, norms
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.mappers.resampler import Resampler
from mmprefix.model import Branch, PrefixLM
from mmprefix.saved_model import ModelSettings
from mmprefix.world.audio import RATE
from tiny.models import random_picture, tone
from tiny.users import save_personal


def pictures(count: int, seed: int = 5) -> list[Image.Image]:
    scenes = islice(world.sample("image", seed, new=False), count)
    return [world.draw(scene) for scene in scenes if isinstance(scene, world.Picture)]


def table_of(model: Predictor) -> Tensor:
    decoder = model.model.decoder
    assert isinstance(decoder, CausalDecoder)
    return decoder.lm.get_input_embeddings().weight.detach()


def learned_words(text: str) -> Predictor:
    """Embedded decoder behind a prefix that is the embeddings of the words of ``text``, each at another length."""
    model = PrefixLM({}, CausalDecoder("mmprefix:world/frozen/decoder"), partial(Learned, length=len(text.split())))
    vectors = torch.cat([model.decoder.word_vectors(f" {word}") for word in text.split()])
    prefix = model.task_prefix
    assert isinstance(prefix, Learned)
    prefix.embeds.data = vectors * torch.arange(1, len(vectors) + 1)[:, None]
    return Predictor(model)


def deep_model(parts: dict[str, Path], *, mixed: bool) -> Predictor:
    """Keys and values that read no input, alone or in front of a picture's embeddings."""
    torch.manual_seed(2)
    prefix = partial(Deep, mapper=partial(Learned, length=3, std=1.0), hidden=None)
    branches = {"image": Branch(ViT(str(parts["image"])), partial(Resampler, length=2, heads=2))} if mixed else {}
    return Predictor(PrefixLM(branches, CausalDecoder(str(parts["decoder"])), prefix))


def test_a_prefix_that_is_words_is_named_by_them() -> None:
    text = "large red ring above"
    rows = nearest_words(learned_words(text), {}, count=3)
    assert [row[0].text for row in rows] == text.split()
    assert [row[0].cosine for row in rows] == pytest.approx([1.0] * 4, abs=1e-5)
    assert [len(row) for row in rows] == [3] * 4
    assert all(row == sorted(row, key=lambda word: -word.cosine) for row in rows)


def test_cosines_are_those_of_the_whole_table(world_model: Predictor) -> None:
    picture, table = pictures(1)[0], table_of(world_model)
    rows = nearest_words(world_model, picture, count=1)
    pixels = world_model.model.encoder("image").preprocess(picture, 0.0, None)
    from mmprefix.data.collate import collate_inputs

    prefix: Any = world_model.model.build_prefix({"image": collate_inputs([pixels])})
    cosines = torch.nn.functional.cosine_similarity(prefix.embeds[0][:, None], table[None], dim=2)
    assert [row[0].cosine for row in rows] == pytest.approx(cosines.amax(1).tolist(), abs=1e-4)


def test_norms_are_those_of_torch(world_model: Predictor) -> None:
    text, table = "small blue cross", table_of(world_model).norm(dim=1)
    model = learned_words(text)
    own = torch.cat([model.model.decoder.word_vectors(f" {word}") for word in text.split()]).norm(dim=1)
    result = norms(model, {})
    assert result.positions == pytest.approx((own * torch.tensor([1.0, 2, 3])).tolist(), rel=1e-5)
    quantiles = table.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    assert [result.mean, result.low, result.median, result.high] == pytest.approx([float(table.mean()), *quantiles])
    assert result.outside == [n for n, norm in enumerate(result.positions) if not quantiles[0] <= norm <= quantiles[2]]
    assert 2 in result.outside


def test_words_of_a_position_alone_follow_from_the_decoder(world_model: Predictor) -> None:
    model = learned_words("there is")
    rows = next_words(model, {}, count=4)
    decoder: Any = model.model.decoder
    embeds: Any = model.model.build_prefix({}).embeds  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        own = decoder.lm(inputs_embeds=embeds.transpose(0, 1)).logits[:, -1].softmax(1)
    texts = [decoder.codec.decode([number]) for number in range(own.shape[1])]  # some are the same, with a space before
    for row, probabilities in zip(rows, own, strict=True):
        assert len(row) == 4
        for word in row:
            same = [float(p) for text, p in zip(texts, probabilities, strict=True) if text == word.text]
            assert not same or min(abs(p - word.probability) for p in same) < 1e-5
            assert word.probability > word.without
        likely = texts[int(probabilities.argmax())]
        assert likely in [word.text for word in row]


@pytest.mark.parametrize("mixed", [False, True])
def test_keys_and_values_have_next_words_and_no_nearest_ones(parts: dict[str, Path], mixed: bool) -> None:
    model, value = deep_model(parts, mixed=mixed), random_picture(0) if mixed else {}
    assert [len(row) for row in next_words(model, value, count=2)] == [2] * (5 if mixed else 3)
    assert has_embeddings(model, value) == mixed
    if mixed:
        assert [len(row) for row in nearest_words(model, value, count=2)] == [0, 0, 0, 2, 2]
        assert (norms(model, value).deep, len(norms(model, value).positions)) == (3, 2)
        assert [weight for weight, _ in interpolate(model, value, random_picture(1), 3, max_new_tokens=3)] == [
            0,
            0.5,
            1,
        ]
    else:
        for view in (nearest_words, norms):
            with pytest.raises(InputError, match="keys and values"):
                view(model, value)


def test_a_users_positions_are_among_them(parts: dict[str, Path], tmp_path: Path) -> None:
    import mmprefix

    for kind, length in (("soft", 5), ("deep", 5)):
        model = mmprefix.load(save_personal(tmp_path / kind, parts, kind, "ann", "bob"), device="cpu")
        ann, bob = (next_words(model, random_picture(1), count=3, user=user) for user in ("ann", "bob"))
        assert len(ann) == length
        assert ann != bob


def test_the_ends_of_a_mixture_are_the_captions_of_both(world_model: Predictor) -> None:
    a, b = pictures(2)
    pairs = interpolate(world_model, a, b, 5)
    assert [weight for weight, _ in pairs] == [0, 0.25, 0.5, 0.75, 1]
    assert [pairs[0][1], pairs[-1][1]] == world_model([a, b])
    assert pairs[0][1] != pairs[-1][1]
    beams = interpolate(world_model, a, b, 2, num_beams=2, batch_size=1)
    assert [text for _, text in beams] == world_model([a, b], num_beams=2)


def test_what_does_not_fit_is_one_sentence(world_model: Predictor, tiny_model: Predictor) -> None:
    a, sound = pictures(1)[0], Waveform(tone(0.5, 300.0), RATE)
    cases: list[tuple[Any, str]] = [
        (lambda: nearest_words(world_model, a, count=0), "count 0"),
        (lambda: nearest_words(world_model, [a, a]), "2 inputs: one is looked at"),  # pyright: ignore[reportArgumentType]
        (lambda: nearest_words(world_model, None), "no input given"),
        (lambda: interpolate(world_model, a, a, 1), "steps 1"),
        (lambda: interpolate(tiny_model, random_picture(0), sound, 3), "3 and 4 positions"),
        (lambda: nearest_words(world_model, a, user="ann"), "trained without users"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_decoding_options_of_a_model_are_those_of_its_mixtures(world_model: Predictor) -> None:
    settings = ModelSettings(GenerateOptions(max_new_tokens=2))
    short = Predictor(world_model.model, settings)
    a, b = pictures(2)
    assert interpolate(short, a, b, 2)[0][1] == short(a)
    assert len(short(a).split()) == 2
