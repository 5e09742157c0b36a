"""Clips of the embedded world: drawn by their seed, plans that can be carried out, splits that share no clip."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mmprefix.data.manifest import read_manifest
from mmprefix.errors import InputError
from mmprefix.media.video import read_frames
from mmprefix.plans.steps import Step, parse_plan
from mmprefix.world.clip_data import SPLITS, TASKS, ClipData, make_clips, rows_of
from mmprefix.world.clip_texts import GONE, INSTRUCTIONS, commands, describe, notes, plan, questions
from mmprefix.world.clips import FRAMES, Change, MovingScene, Split, draw_frames, sample_clips
from mmprefix.world.images import SIDE, SPOTS
from mmprefix.world.scenes import PLACES, Thing

RED, BLUE = Thing("large", "red", "circle"), Thing("small", "blue", "ring")
CLIP = MovingScene(
    (RED, BLUE), ("centre", "top left"), (Change(0, "centre", "top right"), Change(1, "top left", "")), 3
)


def clips(count: int, split: Split = "train", seed: int = 0) -> list[MovingScene]:
    return list(islice(sample_clips(seed, split), count))


def carried_out(steps: tuple[Step, ...], places: dict[str, str]) -> dict[str, str]:
    """Places of named things after a plan; fails where a step cannot be done."""
    places, held = dict(places), ""
    for step in steps:
        name = step.nouns[0]
        if step.verb == "pick":
            assert places.pop(name)
            held = name
        elif step.verb == "remove":
            assert places.pop(name)
        else:
            assert (step.verb == "put" and held == name) or (step.verb == "bring" and name not in places)
            assert step.nouns[1] not in places.values()
            places[name], held = step.nouns[1], ""
    assert not held
    return places


def state(clip: MovingScene, changes: int) -> dict[str, str]:
    return {clip.name(thing): place for thing, place in enumerate(clip.places_after(changes)) if place}


def test_a_plan_carried_out_gives_what_the_clip_shows():
    for clip in clips(200):
        end = len(clip.changes)
        assert carried_out(plan(clip, "repeat").steps, state(clip, 0)) == state(clip, end)
        assert carried_out(plan(clip, "undo").steps, state(clip, end)) == state(clip, 0)
        assert carried_out(plan(clip, "last").steps, state(clip, end - 1)) == state(clip, end)
        for wanted in INSTRUCTIONS:
            assert parse_plan(str(plan(clip, wanted))) == plan(clip, wanted)
            for step, place in commands(clip, wanted):
                assert place == step.nouns[1] if step.verb in ("put", "bring") else place in PLACES


def test_texts_of_a_clip():
    assert str(plan(CLIP, "undo")) == (
        "plan: bring the blue ring back to the top left, then move the red circle to the centre. "
        "actions: 1: bring(blue ring, top left) 2: pick(red circle) 3: put(red circle, centre)"
    )
    assert [place for _, place in commands(CLIP, "repeat")] == ["centre", "top right", "top left"]
    assert describe(CLIP, 0) == "a blue ring at the top left and a red circle at the centre"
    assert describe(CLIP, 2) == "a red circle at the top right"
    answers = dict(questions(CLIP))
    assert answers["where is the blue ring at the end"] == GONE
    assert answers["where was the red circle at the start"] == "centre"
    assert answers["which thing was touched last"] == "blue ring"
    assert answers["how many things were touched"] == "2"


def colour_at(frame: NDArray[np.uint8], place: str) -> NDArray[np.float64]:
    """Mean colour of the middle of a place."""
    x, y = (round(share * SIDE) for share in SPOTS[place])
    return frame[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).mean(0)


def test_frames_show_each_thing_at_its_place_before_and_after():
    frames = [np.asarray(frame) for frame in draw_frames(CLIP)]
    assert len(frames) == FRAMES
    assert all(frame.shape == (SIDE, SIDE, 3) for frame in frames)
    red = [[colour_at(frame, place)[0] > 150 for place in ("centre", "top right")] for frame in frames]
    assert red == [[True, False], [False, False], [False, True], [False, True], [False, True]]
    blue = [frame[:22, :26, 2].max() > 150 for frame in frames]
    assert blue == [True, True, True, True, False]
    assert all((a == np.asarray(b)).all() for a, b in zip(frames, draw_frames(CLIP), strict=True))
    short = MovingScene(CLIP.things, CLIP.places, CLIP.changes[:1], 3)
    still = [np.asarray(frame, dtype=float) for frame in draw_frames(short)[2:]]
    assert np.abs(still[0] - still[2]).max() < 40  # the noise of a camera
    assert np.abs(still[0] - still[2]).mean() > 0.5


def test_splits_share_no_clip_whatever_the_seed():
    def key(clip: MovingScene) -> tuple[object, ...]:
        return tuple(clip.name(index) for index in range(len(clip.things))), clip.places, clip.changes

    keys = {split: {key(clip) for seed in (0, 1) for clip in clips(300, split, seed)} for split in SPLITS}
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["val"]
    assert not keys["val"] & keys["test"]
    assert clips(20, seed=4) == clips(20, seed=4) != clips(20, seed=5)


def test_files_and_manifests(tmp_path: Path):
    make_clips(tmp_path / "data", train=6, val=2, test=3)
    rows = {
        (task, split): read_manifest(tmp_path / "data" / f"{task}_{split}.jsonl", texts=["instruction"])[0]
        for task in TASKS
        for split in SPLITS
    }
    assert {key: len(listed) for key, listed in rows.items()} == {
        (task, split): each * count
        for task, each in (("note", 1), ("describe", 1), ("answer", 2), ("plan", 3))
        for split, count in (("train", 6), ("val", 2), ("test", 3))
    }
    first = next(iter(sample_clips(0, "train")))
    example = rows["plan", "train"][0]
    frames = read_frames(example.inputs["video"].source, FRAMES)
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(frames, draw_frames(first), strict=True))
    assert example.captions == (str(plan(first, "repeat")),)
    assert rows["note", "train"][0].captions == (notes(first, by_place=True),)
    assert example.inputs["instruction"].texts == ((example.prompt or "").rstrip(":"),)
    assert len(read_frames(rows["describe", "train"][0].inputs["video"].source, FRAMES)) == 1
    before = (tmp_path / "data" / "train" / "00000-0.png").stat().st_mtime_ns
    make_clips(tmp_path / "data", train=6, val=2, test=3)
    assert (tmp_path / "data" / "train" / "00000-0.png").stat().st_mtime_ns == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="holds other files"):
        make_clips(tmp_path / "other")


def test_key_words_by_place_are_the_same_words_in_the_order_of_places():
    for clip in clips(20):
        changes, things = notes(clip, by_place=True).split("; ")
        assert changes == notes(clip).split("; ")[0]
        assert sorted(things.split(", ")) == sorted(notes(clip).split("; ")[1].split(", "))
        places = [next(place for place in PLACES if thing.endswith(place)) for thing in things.split(", ")]
        assert places == [place for place in PLACES if place in clip.places]


def test_rows_of_one_clip_differ_by_the_instruction_alone():
    rows = [dict(row) for task, row in rows_of(CLIP, [f"{index}.png" for index in range(FRAMES)]) if task == "plan"]
    assert len({json.dumps(row["video"]) for row in rows}) == 1
    assert len({json.dumps(row["captions"]) for row in rows}) == 3
    assert all(row["instruction"] in INSTRUCTIONS[str(row["wanted"])] for row in rows)


def test_batches_mix_rows_of_all_lengths_unless_asked():
    """Key words of one change and of two differ in length; a batch of either alone pulls the model to and fro."""
    assert not ClipData(task="note").bucket
    assert ClipData(task="note", bucket=True).bucket


def test_the_data_module_refuses_an_unknown_task():
    with pytest.raises(InputError, match=r"data\.task"):
        ClipData(task="dance")  # type: ignore[arg-type]
