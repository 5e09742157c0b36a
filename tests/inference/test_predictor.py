"""Predictor: captions and scores that do not depend on batch size, order, source or thread; refused calls."""

from __future__ import annotations

import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soxr
import torch

import mmprefix
from mmprefix import InputError, Predictor, Waveform
from mmprefix.generation.options import GenerateOptions
from mmprefix.saved_model import ModelSettings
from mmprefix.types import Prefix
from tiny import models as tiny_models
from tiny.models import RATE, assert_same_candidates, random_picture, sound_bytes, tone

# -------------------------------------------------------------------------------------------------- inputs and options


def test_a_file_gives_a_text_and_a_list_gives_texts_in_its_order(model: Predictor, files: list[Path]) -> None:
    texts = model(files)
    assert isinstance(texts, list)
    assert len(set(texts)) >= 6  # the inputs matter, so a wrong order would show
    assert model(files[::-1]) == texts[::-1]
    assert model(files[0]) == texts[0]
    assert model([files[3]]) == [texts[3]]
    assert model(tuple(files[:2])) == texts[:2]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return": 3}, {"seed": 4, "num_return": 2}])
def test_a_batch_equals_one_at_a_time(
    model: Predictor, files: list[Path], batch_size: int, options: dict[str, Any]
) -> None:
    options = {"num_return": 1, **options}
    alone = [model.candidates(file, **options) for file in files]
    assert_same_candidates(model.candidates(files, batch_size=batch_size, **options), alone)


def test_inputs_with_different_branches_keep_their_order(model: Predictor, files: list[Path]) -> None:
    """Inputs that need another branch are left out of a batch; texts must come back in the order of the inputs."""
    sounds, pictures = files[0::2], files[1::2]
    inputs: list[Any] = [
        sounds[3],
        {"audio": sounds[1], "image": pictures[0]},
        sounds[4],
        pictures[1],
        {"image": pictures[2], "audio": sounds[0]},
        {"audio": sounds[2]},
    ]
    alone = [model.candidates(value, num_return=1) for value in inputs]
    for batch_size in (1, 2, 16):
        assert_same_candidates(model.candidates(inputs, num_return=1, batch_size=batch_size), alone)
    assert model(inputs[1]) != model(sounds[1])  # the picture changes the caption of the sound


def test_sources_in_memory_equal_the_file(model: Predictor, tmp_path: Path) -> None:
    values, drawing = tone(1.1, 330.0), random_picture(5)
    sound, image = tmp_path / "a.wav", tmp_path / "a.png"
    sound.write_bytes(sound_bytes(np.round(values * 32767).astype(np.int16)))
    drawing.save(image)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(sound, "in/a.wav")
        archive.write(image, "in/a.png")
    exact = np.round(values * 32767) / 32768
    sounds: list[Any] = [
        str(sound), sound, sound.read_bytes(), f"{tmp_path}/all.zip::in/a.wav", {"audio": sound},
        Waveform(exact, RATE), Waveform(torch.from_numpy(exact), RATE), Waveform(np.stack([exact, exact]), RATE),
        Waveform(np.round(values * 32767).astype(np.int16), RATE),
    ]  # fmt: skip
    pictures: list[Any] = [
        str(image), image, image.read_bytes(), f"{tmp_path}/all.zip::in/a.png", {"image": drawing}, drawing,
    ]  # fmt: skip
    for sources in (sounds, pictures):
        candidates = model.candidates(sources, num_return=2)
        assert_same_candidates(candidates, [candidates[0]] * len(sources))
    assert model(sound) != model(image)


def test_the_kind_of_a_file_without_a_known_suffix_is_read_from_its_content(
    model: Predictor, files: list[Path], tmp_path: Path
) -> None:
    sound = shutil.copy(files[0], tmp_path / "sound.data")
    image = shutil.copy(files[1], tmp_path / "picture.data")
    assert model([sound, image]) == model(files[:2])


def test_a_waveform_of_another_rate_is_resampled(model: Predictor) -> None:
    values = tone(1.0, 250.0, 44100)
    resampled = soxr.resample(values, 44100, RATE, quality="HQ")
    assert_same_candidates(
        model.candidates([Waveform(values, 44100), Waveform(torch.from_numpy(values), 44100)]),
        model.candidates([Waveform(resampled, RATE)] * 2),
    )
    assert (
        abs(model.score(Waveform(values, RATE), "a dog")[0] - model.score(Waveform(resampled, RATE), "a dog")[0]) > 1e-3
    )


def test_ogg_bytes_are_decoded(model: Predictor, tmp_path: Path) -> None:
    packed = sound_bytes(tone(1.5, 300.0), container="OGG")
    (tmp_path / "a.ogg").write_bytes(packed)
    assert model(packed) == model(tmp_path / "a.ogg")


def test_prompts_stand_before_the_text(model: Predictor, files: list[Path]) -> None:
    inputs = files[:4]
    prompts = ["a dog", "", "the cat runs over", "some rain"]
    alone = [model(file, prompt=prompt) for file, prompt in zip(inputs, prompts, strict=True)]
    assert model(inputs, prompt=prompts) == alone
    assert alone[1] == model(inputs[1])
    assert model(inputs, prompt="a dog")[0] == alone[0]
    assert sum(a != b for a, b in zip(alone, model(inputs), strict=True)) >= 2
    scored = model.score(inputs, ["barks"] * 4, prompt=prompts)
    for file, prompt, value in zip(inputs, prompts, scored, strict=True):
        assert value == pytest.approx(model.score(file, "barks", prompt=prompt)[0], abs=1e-4)


def test_options_of_a_call(model: Predictor, files: list[Path]) -> None:
    short = model.candidates(files, num_return=1, max_new_tokens=2)
    decoder: Any = model.model.decoder
    for row, whole in zip(short, model.candidates(files, num_return=1), strict=True):
        assert len(decoder.tokenizer(row[0].text)["input_ids"]) <= len(decoder.tokenizer(whole[0].text)["input_ids"])
        assert row[0].score != whole[0].score
    ranked = model.candidates(files, num_return=4)
    assert all(len(row) == 4 and len({c.score for c in row}) == 4 for row in ranked)
    assert all(row[i].score > row[i + 1].score for row in ranked for i in range(3))
    assert model(files, num_beams=4, num_return=4) == [[c.text for c in row] for row in ranked]
    assert model(files[0], num_beams=4, num_return=2) == [c.text for c in ranked[0][:2]]
    assert model(files, num_beams=4) == [row[0].text for row in ranked]


def test_a_seed_fixes_the_draw_whatever_the_batch(model: Predictor, files: list[Path]) -> None:
    drawn = model(files, seed=1)
    assert model(files, seed=1) == drawn
    assert [model(file, seed=1) for file in files] == drawn
    assert model(files[::-1], seed=1, batch_size=3) == drawn[::-1]
    assert sum(a != b for a, b in zip(model(files, seed=2), drawn, strict=True)) >= 7


def test_options_of_a_call_override_the_saved_ones(parts: dict[str, Path], files: list[Path]) -> None:
    """Any saved search settings can be overridden by any others."""
    plain = GenerateOptions(max_new_tokens=6)
    built = tiny_models.build_model(parts, "audio")
    sound = files[0]
    settings = [
        replace(plain, num_beams=3, num_return=2, ranking="clipcap"),
        replace(plain, num_beams=3, temperature=0.7),
        replace(plain, sample=True, temperature=0.7, top_p=0.9, seed=5),
        replace(plain, sample=True, num_return=3),
    ]
    greedy = Predictor(built, ModelSettings(plain))
    for own in settings:
        other = Predictor(built, ModelSettings(own))
        assert other(sound, num_beams=1) == greedy(sound)
        assert isinstance(other(sound), str)
        assert isinstance(other(sound, seed=3), str)
        assert len(other.candidates(sound, num_beams=4, num_return=3)) == 3
        assert len(other.candidates(sound, num_return=5)) == 5
    sampled, unseeded = (Predictor(built, ModelSettings(way)) for way in (settings[2], replace(settings[2], seed=None)))
    assert sampled(sound) == unseeded(sound, seed=5)


def test_one_input_has_a_flat_list_of_candidates(model: Predictor, files: list[Path]) -> None:
    (row,) = model.candidates(files[:1], num_return=2)
    assert_same_candidates([model.candidates(files[0], num_return=2)], [row])
    assert_same_candidates([model.candidates({"audio": files[0]}, num_return=2)], [row])
    assert model(files[0], num_return=2) == [candidate.text for candidate in row]


def test_generators_are_several_inputs(model: Predictor, files: list[Path]) -> None:
    assert model(file for file in files[:3]) == model(files[:3])
    assert model(map(str, files[:1])) == model(files[:1])
    assert model.score((file for file in files[:2]), ["a", "b"]) == pytest.approx(model.score(files[:2], ["a", "b"]))
    with pytest.raises(InputError, match="no input given"):
        model(iter([]))
    with pytest.raises(InputError, match="an input of type"):
        model(files[0].open("rb"))  # type: ignore[call-overload]


def test_a_predictor_says_what_it_is(saved: dict[str, Path], model: Predictor) -> None:
    lines = repr(model).splitlines()
    assert lines[0] == f"Predictor({str(saved['both'])!r}, device='cpu')"
    assert lines[1].startswith("  image: ViT('")
    assert lines[1].endswith(" → Resampler")
    assert lines[2].startswith("  audio: Whisper('")
    assert lines[2].endswith(" → MLP")
    assert lines[3].startswith("  decoder: CausalDecoder('")
    count = sum(tensor.numel() for tensor in model.model.trained.values())
    assert lines[4] == f"  trained: {count:,} parameters ({4 * count / 1e6:.2f} MB)"
    assert repr(Predictor(model.model)).startswith("Predictor(device='cpu')")


# ------------------------------------------------------------------------------------------------------------- score


def test_scores_are_the_sum_over_a_plain_pass(model: Predictor, files: list[Path]) -> None:
    """Reference: the language model over prefix and text in one row, without cache, mask and packing."""
    texts = ["a dog barks loudly.", "rain", "the cat runs over a green hill"]
    decoder: Any = model.model.decoder
    for file, prompt in ((files[0], ""), (files[1], "the old roof:")):
        branch = "image" if file.suffix == ".png" else "audio"
        encoder = model.model.encoder(branch)
        media = mmprefix.types.Media(encoder.preprocess(file, 0.0, None)[None], torch.ones(1, dtype=torch.long))
        media = replace(media, lengths=media.lengths * (1 if branch == "image" else media.values.shape[-1]))
        scores = model.score(file, texts, prompt=prompt)
        for text, value in zip(texts, scores, strict=True):
            ids = decoder.tokenizer(prompt + (" " if prompt else "") + text)["input_ids"] + [decoder.codec.eos]
            before = len(decoder.tokenizer(prompt)["input_ids"]) if prompt else 0
            with torch.no_grad():
                prefix = cast(Prefix, model.model.build_prefix({branch: media})).embeds
                embeds = torch.cat([prefix, decoder.lm.get_input_embeddings()(torch.tensor([ids]))], dim=1)
                logits = decoder.lm(inputs_embeds=embeds).logits[0].log_softmax(-1)
            first = prefix.shape[1] + before - 1
            expected = sum(float(logits[first + i, token]) for i, token in enumerate(ids[before:]))
            assert value == pytest.approx(expected, abs=1e-3)


def test_scores_of_many_inputs_and_of_many_texts(model: Predictor, files: list[Path]) -> None:
    texts = [f"a bell rings {n}" for n in range(len(files))]
    many = model.score(files, texts, batch_size=4)
    alone = [model.score(file, text)[0] for file, text in zip(files, texts, strict=True)]
    assert many == pytest.approx(alone, abs=1e-4)
    several = model.score(files[2], texts)
    assert several == pytest.approx([model.score(files[2], text)[0] for text in texts], abs=1e-4)
    assert several[2] == pytest.approx(many[2], abs=1e-4)


# ------------------------------------------------------------------------------------------------------------ errors


def test_wrong_calls_are_refused_in_one_line(
    model: Predictor, saved: dict[str, Path], files: list[Path], tmp_path: Path
) -> None:
    sounds, pictures = mmprefix.load(saved["audio"], device="cpu"), mmprefix.load(saved["image"], device="cpu")
    wrong: list[tuple[Any, str]] = [
        (lambda: model([]), "no input given"),
        (lambda: model(tmp_path / "none.wav"), "none.wav: no such file"),
        (lambda: model([files[0], tmp_path / "none.png"]), "none.png: no such file"),
        (lambda: model(f"{tmp_path}/none.zip::a.wav"), "none.zip: no such file"),
        (lambda: model(files[:2], prompt=["one"]), "prompt: 1 prompts for 2 inputs"),
        (lambda: model.score(files[:3], ["one", "two"]), "score: 3 inputs and 2 texts"),
        (lambda: model.score(files[0], []), "score: 1 inputs and 0 texts"),
        (lambda: model(files[0], context="a kitchen"), "context: this model was trained without one"),
        (lambda: sounds(files[1]), "picture0.png: is a picture, but this model reads a sound (branch 'audio')"),
        (lambda: sounds(random_picture(0)), "the given picture: is a picture"),
        (lambda: sounds(files[1].read_bytes()), "the given bytes: is a picture"),
        (lambda: pictures(files[0]), "sound0.wav: is a sound, but this model reads a picture (branch 'image')"),
        (lambda: pictures(Waveform(tone(1, 200), RATE)), "the given waveform: is a sound"),
        (lambda: model({"audio": files[1]}), "picture0.png: is a picture, but this model reads a sound (branch"),
        (lambda: model({"sound": files[0]}), "no branch for input sound; this model reads a picture (branch 'image')"),
        (lambda: sounds({}), "no branch for input (none given)"),
        (lambda: model(np.zeros(16000)), "an input of type ndarray and shape (16000,): give a file, bytes, a PIL"),
        (lambda: model(files[0], batch_size=0), "batch_size 0: give a number from 1 on"),
        (lambda: model(files[0], num_beams=0), "num_beams=0: must be at least 1"),
        (lambda: model(files[0], max_new_tokens=0), "max_new_tokens=0: must be at least 1"),
        (lambda: model(files[0], max_new_tokens=500), "has 128 positions"),
        (lambda: model(files[0], seed=1, num_beams=3), "num_beams=3: sample=True draws texts without beams"),
        (lambda: model.candidates(files[0], num_beams=2, num_return=3), "num_return=3"),
        (lambda: mmprefix.load(saved["audio"], device="quantum"), "device 'quantum': cannot be used here"),
        (lambda: mmprefix.load(saved["audio"], dtype="int8"), "dtype 'int8': give one of float32, bfloat16, float16"),  # type: ignore[arg-type]
    ]  # fmt: skip
    for call, message in wrong:
        with pytest.raises(InputError) as error:
            call()
        assert message in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_an_unavailable_device_is_refused_by_name(saved: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="device 'cuda': cannot be used here"):
        mmprefix.load(saved["audio"], device="cuda")


# ------------------------------------------------------------------------------------------------------ many threads


def test_calls_from_several_threads_give_the_results_of_sequential_calls(model: Predictor, files: list[Path]) -> None:
    jobs: list[tuple[Any, dict[str, Any]]] = [
        (files[i % 9] if i % 3 else files[i % 5 : i % 5 + 3], options)
        for i, options in enumerate(
            [{}, {"num_beams": 3}, {"seed": 7}, {"prompt": "a dog"}, {"max_new_tokens": 3}, {"seed": 8}] * 4
        )
    ]
    expected = [model(inputs, **options) for inputs, options in jobs]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda job: model(job[0], **job[1]), jobs))
    assert texts == expected
