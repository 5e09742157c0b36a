"""Embedded world: determined by its seed, true captions, no held-out combinations in training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmprefix import world
from mmprefix.data.manifest import read_manifest
from mmprefix.errors import InputError
from mmprefix.world import audio, images, scenes

MEDIA: tuple[scenes.Medium, ...] = ("image", "audio")


def sample_scenes(medium: scenes.Medium, count: int, new: bool = False, seed: int = 5) -> list[scenes.Scene]:
    return list(islice(world.sample(medium, seed, new), count))


def test_a_scene_is_drawn_the_same_twice():
    for scene in sample_scenes("image", 20):
        assert isinstance(scene, world.Picture)
        first, again = world.draw(scene), world.draw(scene)
        assert first.size == (64, 64)
        assert first.mode == "RGB"
        assert first.tobytes() == again.tobytes()
        assert first.tobytes() != world.draw(replace(scene, seed=scene.seed + 1)).tobytes()


def test_things_lie_inside_the_picture_and_do_not_touch():
    for scene in sample_scenes("image", 300):
        assert isinstance(scene, world.Picture)
        marks = images.circles(scene)
        assert all(r <= x <= 64 - r and r <= y <= 64 - r for x, y, r in marks)
        apart = [np.hypot(a[0] - b[0], a[1] - b[1]) - a[2] - b[2] for a in marks for b in marks if a is not b]
        assert min(apart, default=1) > 0


def test_the_colour_of_a_thing_is_the_one_in_its_description():
    for colour, shade in images._SHADES.items():
        scene = world.Picture((world.Thing("large", colour, "square"),), "single", "centre", seed=3)
        middle = np.asarray(world.draw(scene))[30:34, 30:34].reshape(-1, 3).mean(0)
        nearest = min(images._SHADES, key=lambda name: np.abs(np.array(images._SHADES[name]) - middle).sum())
        assert nearest == colour, (middle, shade)


@pytest.mark.parametrize("new", [False, True])
def test_render_is_loud_enough_bounded_and_the_same_twice(new: bool):
    for scene in sample_scenes("audio", 60, new):
        assert isinstance(scene, world.Sound)
        wave = world.render(scene)
        assert wave.dtype == np.float32
        assert 1.0 <= len(wave) / audio.RATE <= audio.LONGEST
        assert np.abs(wave).max() <= 1
        np.testing.assert_array_equal(wave, world.render(scene))
        for start, end in audio.spans(scene):
            inside = wave[round(start * audio.RATE) : round(end * audio.RATE)]
            assert np.sqrt((inside**2).mean()) > 0.01, scene


def test_the_pitch_of_a_tone_is_the_one_in_its_description():
    for pitch, (low, high) in audio._HERTZ.items():
        wave = world.render(world.Sound((world.Event("long", pitch, "tone"),), seed=1))
        peak = np.abs(np.fft.rfft(wave)).argmax() * audio.RATE / len(wave)
        assert low - 5 < peak < high + 5


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("new", [False, True])
def test_captions_are_true_and_different(medium: scenes.Medium, new: bool):
    words = set[str]()
    for scene in sample_scenes(medium, 150, new):
        texts = world.captions(scene)
        assert len(texts) >= 3
        assert len(set(texts)) == len(texts)
        assert {world.parse(text) for text in texts} == {replace(scene, seed=0)}
        words.update(texts[0].split())
    assert words >= set(scenes.COLOURS if medium == "image" else scenes.PITCHES)


def test_parse_gives_none_for_a_text_that_is_no_caption():
    assert world.parse("a small red dog in the centre") is None
    assert world.parse("a small red ring to the left of a big red ring") is None
    assert world.parse("") is None


@pytest.mark.parametrize("medium", MEDIA)
def test_known_scenes_hold_every_word_but_no_held_out_combination(medium: scenes.Medium):
    parts, orders, words = set[tuple[str, ...]](), set[tuple[str, str]](), set[str]()
    for scene in sample_scenes(medium, 2000):
        assert not world.held_out(scene)
        names = list(_parts(scene))
        parts.update(names)
        orders.update(pairwise(name[-1] for name in names))
        words.update(word for name in names for word in name)
    assert not parts & scenes.HELD_OUT_PARTS
    assert not orders & scenes.HELD_OUT_ORDERS
    lengths = (*scenes.LENGTHS, *scenes.PITCHES, *scenes.KINDS)
    assert words == set((*scenes.COLOURS, *scenes.SHAPES) if medium == "image" else lengths)


@pytest.mark.parametrize("medium", MEDIA)
def test_every_new_scene_has_a_held_out_combination(medium: scenes.Medium):
    sampled = sample_scenes(medium, 300, new=True)
    for scene in sampled:
        names = list(_parts(scene))
        new = [not scenes.HELD_OUT_PARTS.isdisjoint(names)]
        new += [order in scenes.HELD_OUT_ORDERS for order in pairwise(name[-1] for name in names)]
        assert any(new)
        assert scenes.new_part(scene) == new[0]
    assert 0.3 < sum(map(scenes.new_part, sampled)) / len(sampled) < 0.9


def _parts(scene: scenes.Scene) -> Iterator[tuple[str, ...]]:
    if isinstance(scene, world.Picture):
        yield from ((thing.colour, thing.shape) for thing in scene.things)
    else:
        yield from ((event.length, event.pitch, event.kind) for event in scene.events)


def test_make_writes_good_manifests_once(tmp_path: Path):
    directory = world.make(tmp_path / "world", train=6, val=3, test=4, seed=2)
    stamps = {file: file.stat().st_mtime_ns for file in directory.rglob("*.*")}
    parsed = {}
    for split, count in (("train", 12), ("val", 6), ("test", 8)):
        examples, faults = read_manifest(directory / f"{split}.jsonl")
        assert faults == []
        assert len(examples) == count
        parsed[split] = [[world.parse(text) for text in example.captions] for example in examples]
    assert all(len(texts) == 2 for texts in parsed["train"])
    assert not any(scene and world.held_out(scene) for texts in (*parsed["train"], *parsed["val"]) for scene in texts)
    assert all(scene and world.held_out(scene) for texts in parsed["test"] for scene in texts)
    assert world.make(directory, train=6, val=3, test=4, seed=2) == directory
    assert {file: file.stat().st_mtime_ns for file in directory.rglob("*.*")} == stamps
    assert list(tmp_path.iterdir()) == [directory]


def test_make_gives_the_same_bytes_from_the_same_seed(tmp_path: Path):
    first, again, other = (
        world.make(tmp_path / name, train=3, val=1, test=2, seed=seed) for name, seed in (("a", 4), ("b", 4), ("c", 5))
    )
    files = [file.relative_to(first) for file in first.rglob("*.*")]
    assert len(files) == 2 * 6 + 4
    for file in files:
        assert (first / file).read_bytes() == (again / file).read_bytes()
    assert (first / "train.jsonl").read_bytes() != (other / "train.jsonl").read_bytes()


def test_make_writes_anew_for_other_numbers_but_never_over_foreign_files(tmp_path: Path):
    directory = world.make(tmp_path / "world", kinds=("audio",), train=2, val=1, test=1)
    world.make(directory, kinds=("audio",), train=3, val=1, test=1)
    assert len(list(directory.glob("train/*.wav"))) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="other files"):
        world.make(tmp_path / "mine", train=1, val=1, test=1)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_samples_lie_in_one_folder(tmp_path: Path):
    directory = world.make_samples(tmp_path / "samples", count=3)
    examples, faults = read_manifest(directory / "manifest.jsonl")
    assert faults == []
    assert {file.name for file in directory.glob("*.wav")} == {f"audio-{number:04d}.wav" for number in range(3)}
    assert all(Image.open(file).size == (64, 64) for file in directory.glob("*.png"))
    assert len(examples) == 6
    assert all(scene and world.held_out(scene) for row in examples for scene in map(world.parse, row.captions))
