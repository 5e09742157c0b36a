"""Programs that train frozen models: they run from end to end, and their models load like any other."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmprefix import world
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.vit import ViT
from mmprefix.encoders.whisper import Whisper
from mmprefix.generation.options import GenerateOptions
from mmprefix.recipes.pretrain import decoder as pretrain_decoder
from mmprefix.recipes.pretrain import decoder_tokens
from mmprefix.recipes.pretrain import world as pretrain_world
from mmprefix.types import Media, Prefix
from mmprefix.world import grammar, labels, scenes

FROZEN = Path(world.__file__).parent / "frozen"
TEXTS = [("a dog barks", "the dog barks"), "a cat sleeps on the mat", "rain falls on a roof", "the sea, it's loud."] * 8


def train(folder: Path, texts: Sequence[decoder_tokens.Text] = TEXTS, steps: int = 30) -> dict[str, float]:
    plan = pretrain_decoder.DecoderPlan(
        layers=1, heads=2, width=32, vocab_size=300, positions=16, batch_tokens=128, steps=steps, seed=3
    )
    return pretrain_decoder.train_decoder(texts, folder, plan)


def test_decoder_learns_and_loads_like_any_other(tmp_path: Path):
    figures = train(tmp_path / "decoder", steps=200)
    assert figures["loss"] < 0.5 * math.log(300)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "decoder")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder", dtype=torch.float32)
    assert tokenizer.eos_token == tokenizer.bos_token == decoder_tokens.END
    assert model.config.eos_token_id == tokenizer.eos_token_id
    for text in ("a dog barks", "Ünseen, wörds — 42 !", "it's  two spaces"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    # The saved model is in half precision; the printed loss is that of the model in float32.
    ids = torch.tensor([tokenizer("a cat sleeps on the mat")["input_ids"]])
    wrong = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    assert model(input_ids=ids, labels=ids).loss < model(input_ids=wrong, labels=wrong).loss
    assert CausalDecoder(str(tmp_path / "decoder")).width == 32


def test_one_seed_gives_one_decoder_to_the_byte(tmp_path: Path):
    for name in ("a", "b"):
        train(tmp_path / name, steps=3)
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_too_little_text_and_too_few_words_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="fewer than one window of 16"):
        train(tmp_path / "decoder", ["a", "b"])
    with pytest.raises(ValueError, match="vocab_size 100"):
        decoder_tokens.train_tokenizer(["a dog"], 100)
    assert not (tmp_path / "decoder").exists()


def test_stream_ends_every_text_and_returns_where_groups_begin():
    tokenizer = decoder_tokens.train_tokenizer(["a dog barks"], 280)
    ids, starts = decoder_tokens.stream([["a dog", "barks"], ["a"]], tokenizer)
    end = decoder_tokens.END
    assert tokenizer.decode(ids) == f"{end}a dog{end}barks{end}a{end}"
    assert tokenizer.decode(ids[starts[1] :]) == f"{end}a{end}"


def test_decoder_command_reads_manifests_and_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"captions": ["a red dog runs", "a dog"], "split": "train"}, {"target": "secret", "split": "test"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "lines.txt").write_text("a cat sleeps\n\na bird sings\n" * 20)
    files = [tmp_path / "rows.jsonl", tmp_path / "lines.txt"]
    assert list(islice(decoder_tokens.read_texts(files, "train"), 2)) == [["a red dog runs", "a dog"], "a cat sleeps"]
    sizes = ["--layers", "1", "--heads", "2", "--width", "16", "--vocab-size", "260", "--positions", "8"]
    folder = tmp_path / "decoder"
    pretrain_decoder.main([*map(str, files), "--folder", str(folder), "--split", "train", "--steps", "2", *sizes])
    assert json.loads(capsys.readouterr().out)["parameters"] > 0
    assert (folder / "model.safetensors").is_file()


def test_labels_name_every_thing_and_event_in_order():
    for scene in islice(world.sample("image", 1, new=False), 100):
        assert isinstance(scene, world.Picture)
        patches = labels.picture_labels(scene)
        assert set(patches[:, 3].tolist()) == set(range(len(scene.things) + 1))
        for rank, thing in enumerate(scene.things, start=1):
            sizes, colours, shapes = scenes.SIZES, scenes.COLOURS, scenes.SHAPES
            expected = [sizes.index(thing.size), colours.index(thing.colour), shapes.index(thing.shape), rank]
            assert patches[patches[:, 3] == rank].unique(dim=0).tolist() == [expected]
    for scene in islice(world.sample("audio", 1, new=False), 100):
        assert isinstance(scene, world.Sound)
        ranks = labels.sound_labels(scene)[:, 3]
        assert ranks[ranks > 0].unique_consecutive().tolist() == list(range(1, len(scene.events) + 1))


def test_decoder_texts_are_notes_and_captions_of_scenes():
    groups = list(pretrain_world.texts(400, seed=7))
    parsed = [world.parse(text) for group in groups for text in group[1:]]
    for group, scene in zip(groups, parsed[::3], strict=True):
        assert scene
        assert group[0] == grammar.notes(scene)
    assert {type(scene) for scene in parsed} == {world.Picture, world.Sound}
    assert sum(world.held_out(scene) for scene in parsed if scene) == len(parsed) / 4


def test_summary_labels_name_the_whole_scene():
    for medium in ("image", "audio"):
        for scene in islice(world.sample(medium, 1, new=False), 100):
            *parts, how = labels.summary_labels(scene)
            count = len(scene.things if isinstance(scene, world.Picture) else scene.events)
            assert [part == -100 for part in parts] == [False] * 3 + [count == 1] * 3
            assert labels.ARRANGEMENTS[how].split()[-1] in grammar.notes(scene) or medium == "audio"


def test_world_program_makes_all_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    steps = ["--eye-steps", "2", "--ear-steps", "2", "--tongue-steps", "2"]
    pretrain_world.main(["--folder", str(tmp_path), *steps, "--batch", "2", "--measure", "4", "--scenes", "60"])
    figures = json.loads(capsys.readouterr().out)
    assert set(figures) == {"vision", "audio", "decoder", "seconds"}
    assert all(0 <= figures[name][key] <= 1 for name in ("vision", "audio") for key in ("known", "held_out"))
    _load_all_three(tmp_path)


def test_shipped_models_load_and_are_small():
    assert sum(file.stat().st_size for file in FROZEN.rglob("*") if file.is_file()) <= 12 * 2**20
    _load_all_three(FROZEN)


def _load_all_three(folder: Path) -> None:
    eye, ear = ViT(str(folder / "vision")), Whisper(str(folder / "audio"))
    tongue = CausalDecoder(str(folder / "decoder"))
    picture = next(world.sample("image", 0, new=True))
    sound = next(world.sample("audio", 0, new=True))
    assert isinstance(picture, world.Picture)
    assert isinstance(sound, world.Sound)
    pixels = eye.preprocess(world.draw(picture), 0.0, None)
    expected = torch.tensor(list(world.draw(picture).tobytes())).view(64, 64, 3).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)  # the pixels that the program trains on
    image_features = eye(Media(pixels[None], torch.ones(1, dtype=torch.long)))
    assert image_features.frames.shape == (1, 64, 128)
    wave = torch.from_numpy(world.render(sound))[None]
    audio_features = ear(Media(wave, torch.tensor([wave.shape[1]])))
    assert audio_features.frames.shape == (1, math.ceil(wave.shape[1] / 640), 128)
    state = tongue.prefill(Prefix(torch.zeros(1, 2, tongue.width), torch.ones(1, 2, dtype=torch.bool)))
    assert tongue.generate(state, [""], GenerateOptions(max_new_tokens=4))[0][0].text is not None
