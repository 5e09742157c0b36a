"""Videos from manifest to caption: checked, encoded once, trained on, saved, loaded, captioned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
import torch
import yaml
from torch.testing import assert_close

from mmprefix import FrameSequence, InputError, Predictor, load
from mmprefix.cli.main import main
from mmprefix.cli.model_inputs import relocated_paths
from mmprefix.data.collate import pad_media
from mmprefix.data.manifest import InputRef
from mmprefix.encoders.clip import Clip
from mmprefix.encoders.video import Frames
from mmprefix.features.keys import content_hashes, feature_key
from mmprefix.features.store import FeatureStore, store_description
from mmprefix.saved_model import ModelSettings
from tiny import decoders as tiny_decoders
from tiny import encoders as tiny_encoders
from tiny import models as tiny_models
from tiny.captioning_system import CaptioningSystem, error_message, metric_values, quietly, run
from tiny.videos import save_pictures, save_video

pytestmark = quietly
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "videos.yaml"
FRAMES = 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> CaptioningSystem:
    """Frozen parts, and a manifest whose videos are files, parts of files, folders and lists."""
    folder = tmp_path_factory.mktemp("videos")
    torch.manual_seed(3)
    tiny_encoders.save_clip(folder / "pictures")
    tiny_decoders.save_decoder(folder / "decoder")
    save_video(folder / "long.mp4", count=60, seed=1)
    save_video(folder / "short.webm", count=2, seed=2)
    save_pictures(folder / "folder", 12, seed=3)
    listed = [f"list/{file.name}" for file in save_pictures(folder / "list", 5, seed=4)]
    rows: list[dict[str, Any]] = [
        {"id": "file", "video": "long.mp4", "captions": ["a dog runs", "the dog barks"]},
        {"id": "part", "video": "long.mp4", "start": 1.5, "end": 3.0, "captions": ["rain falls"]},
        {"id": "short", "video": "short.webm", "captions": ["a cat"]},
        {"id": "folder", "video": "folder", "captions": ["the hill"]},
        {"id": "cut folder", "video": "folder", "start": 2, "end": 4, "captions": ["the old roof"]},
        {"id": "list", "video": listed, "captions": ["some rain"]},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for split in ("train", "val", "test"):
        (folder / f"{split}.jsonl").write_text(text)
    return CaptioningSystem(folder)


def config(tiny: CaptioningSystem) -> dict[str, Any]:
    """Shipped recipe with tiny parts and tiny data."""
    shipped, made = yaml.safe_load(RECIPE.read_text(encoding="utf-8")), tiny.config(())
    video = shipped["model"]["branches"]["video"]
    video["encoder"]["init_args"] |= {"frames": FRAMES}
    video["encoder"]["init_args"]["encoder"]["init_args"] = {"model": tiny.path("pictures")}
    video["mapper"]["init_args"] |= {"length": 3, "layers": 1, "heads": 4}
    made["model"]["branches"] = {"video": video}
    return made


@pytest.fixture(scope="module")
def fitted(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fitted")
    assert run("fit", tiny.recipe(config(tiny), root), save_to=root / "model") == 0
    return root


def test_a_training_reads_every_form_and_saves(
    tiny: CaptioningSystem, fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = metric_values(fitted, "train/loss")
    assert len(losses) == 4
    assert all(loss > 0 for loss in losses)
    rows = [json.loads(line) for line in (tiny.folder / "train.jsonl").read_text().splitlines()]
    assert run("predict", tiny.recipe(config(tiny), fitted / "again"), ckpt_path=fitted / "checkpoints/last.ckpt") == 0
    lines = [json.loads(line) for line in (fitted / "again" / "predictions.jsonl").read_text().splitlines()]
    model = load(fitted / "model", device="cpu")
    inputs: list[Any] = [
        InputRef(str(tiny.folder / row["video"]), row.get("start") or 0.0, row.get("end")) for row in rows[:5]
    ]
    inputs.append(FrameSequence([tiny.folder / name for name in rows[5]["video"]]))
    assert model(inputs) == [line["prediction"] for line in lines]
    assert 'model("clip.mp4")' in (fitted / "model" / "README.md").read_text()
    capsys.readouterr()
    words = [str(fitted / "model"), *(str(tiny.folder / name) for name in ("long.mp4", "folder")), "--device", "cpu"]
    assert main(["caption", *words]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{file}: {text}".rstrip() for file, text in zip(words[1:3], model(words[1:3]), strict=True)]


def test_a_manifest_written_elsewhere_names_all_pictures_of_a_video(tmp_path: Path) -> None:
    row = {"video": ["list/1.png", "/videos/2.png"], "audio": "a.wav", "signals": [0.5, 1.0], "target": "x"}
    moved = relocated_paths(row, tmp_path / "in", str(tmp_path / "out" / "m.jsonl"))
    assert moved == {
        "video": ["../in/list/1.png", "/videos/2.png"], "audio": "../in/a.wav", "signals": [0.5, 1.0], "target": "x",
    }  # fmt: skip


def test_every_source_of_a_video_equals_its_file(tiny: CaptioningSystem, fitted: Path) -> None:
    model = load(fitted / "model", device="cpu")
    file, folder = tiny.folder / "long.mp4", tiny.folder / "folder"
    names = [str(folder / f"{number + 1}.png") for number in range(12)]
    files: list[Any] = [file, str(file), file.read_bytes(), {"video": file}]
    pictures: list[Any] = [folder, {"video": folder}, {"video": names}, FrameSequence(names)]
    for sources in (files, pictures):
        scores = model.score(sources, ["a dog runs"] * 4)
        assert scores == pytest.approx([scores[0]] * 4, abs=1e-5)
    assert abs(model.score(file, "a dog runs")[0] - model.score(folder, "a dog runs")[0]) > 1e-4
    unnamed = shutil.copy(file, tiny.folder / "unnamed.data")
    assert model.score(unnamed, "a dog runs") == pytest.approx(model.score(file, "a dog runs"), abs=1e-5)


def test_other_kinds_are_refused_by_name(tiny: CaptioningSystem, fitted: Path) -> None:
    model = load(fitted / "model", device="cpu")
    cases: list[tuple[Any, str]] = [
        (tiny.folder / "folder" / "1.png", "1.png: is a picture, but this model reads a video (branch 'video')"),
        ((0.5, 1.0), "the given numbers: is a row of numbers, but this model reads a video"),
        (tiny.folder / "gone.mp4", "gone.mp4: no such file"),
    ]
    for source, message in cases:
        with pytest.raises(InputError) as caught:
            model(source)
        assert message in str(caught.value)


def test_another_number_of_frames_is_refused(tiny: CaptioningSystem, fitted: Path, tmp_path: Path, capfd: Any) -> None:
    changed = config(tiny)
    changed["model"]["branches"]["video"]["encoder"]["init_args"]["frames"] = 4
    message = error_message(
        "validate", tiny.recipe(changed, tmp_path), capfd, ckpt_path=fitted / "checkpoints" / "last.ckpt"
    )
    assert "the encoder of branch 'video' was trained with frames=3, but this one has frames=4" in message


# ---------------------------------------------------------------------------------------------------- the feature store


def stored(tiny: CaptioningSystem, cache: Path) -> tuple[Frames, FeatureStore]:
    """Encoder of the recipe, and its feature store in ``cache``."""
    encoder = Frames(Clip(tiny.path("pictures")), frames=FRAMES)
    return encoder, FeatureStore(cache, store_description(encoder, "float32"))


def test_each_video_is_encoded_once(tiny: CaptioningSystem, fitted: Path, tmp_path: Path) -> None:
    cache = {"cache": str(tmp_path / "cache"), "cache_dtype": "float32"}
    assert run("fit", tiny.recipe(config(tiny), tmp_path / "kept"), **cache) == 0
    assert metric_values(tmp_path / "kept", "train/loss") == pytest.approx(
        metric_values(fitted, "train/loss"), rel=1e-4
    )
    encoder, store = stored(tiny, tmp_path / "cache")
    assert len(store) == 6  # two of one file, two of one folder
    sources: list[tuple[Any, float, float | None]] = [
        (str(tiny.folder / "long.mp4"), 0.0, None),
        (str(tiny.folder / "long.mp4"), 1.5, 3.0),
        (str(tiny.folder / "short.webm"), 0.0, None),
        (str(tiny.folder / "folder"), 2.0, 4.0),
        (FrameSequence([str(tiny.folder / "list" / f"{n + 1}.png") for n in range(5)]), 0.0, None),
    ]
    hashes = content_hashes([source for source, _, _ in sources], tmp_path / "hashes.sqlite")
    for source, start, end in sources:
        row = store[feature_key(hashes[source], start, end)]
        pixels = encoder.preprocess(source, start, end)
        features = encoder(pad_media([pixels]))
        assert len(row.frames) == len(pixels) * (features.frames.shape[1] // len(pixels))
        assert_close(row.frames, features.frames[0], atol=1e-5, rtol=1e-5)
        assert_close(row.pooled, features.pooled[0], atol=1e-5, rtol=1e-5)


def test_a_changed_picture_is_a_changed_video(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    files = save_pictures(folder, 3)
    sequence, swapped = FrameSequence([str(file) for file in files]), FrameSequence([str(file) for file in files[::-1]])
    first = content_hashes([str(folder), sequence, swapped], tmp_path / "hashes.sqlite")
    assert first[str(folder)] == first[sequence]
    assert len(set(first.values())) == 2  # the order counts
    shutil.copy(files[0], files[1])
    assert content_hashes([str(folder)], tmp_path / "hashes.sqlite")[str(folder)] != first[str(folder)]


def test_a_moved_encoder_uses_its_store_again(tiny: CaptioningSystem, tmp_path: Path) -> None:
    shutil.copytree(tiny.path("pictures"), tmp_path / "moved")
    first, moved = (Frames(Clip(str(path)), FRAMES) for path in (tiny.path("pictures"), tmp_path / "moved"))
    assert store_description(first) == store_description(moved)
    assert store_description(first) != store_description(Frames(Clip(tiny.path("pictures")), FRAMES + 1))


# ----------------------------------------------------------------------------------------------------------- check-data


def test_check_data_measures_videos_and_names_bad_ones(
    tiny: CaptioningSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-data", str(tiny.folder / "train.jsonl")]) == 0
    text = capsys.readouterr().out
    assert "inputs    video 6" in text
    assert "seconds   min 0.20, median 3.50, max 12 s; 26.70 in all" in text
    assert "width     min 64, median 64, max 64 pixels" in text
    assert "frames    min 2, median 8.50, max 60; 96 in all" in text
    whole = save_video(tmp_path / "whole.mp4", count=100, options={"movflags": "faststart"}).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").mkdir()
    save_pictures(tmp_path / "broken", 3)[1].write_text("no picture")
    bad: list[tuple[dict[str, Any], str]] = [
        ({"video": "cut.mp4"}, "cut off"),
        ({"video": "empty"}, "empty: holds no picture"),
        ({"video": "broken"}, "2.png: not a picture"),
        ({"video": ["broken/1.png", "broken/9.png"]}, "9.png: no such file"),
        ({"video": ["broken/1.png", 2]}, "video must be a list of file names, found a number (2) in it"),
        ({"video": []}, "video must be a list of file names, found none"),
        ({"video": "whole.mp4", "start": 11}, "start 11.0 s lies beyond the end of the video, 10.000 s"),
        ({"image": ["broken/1.png"]}, "image must be a text, found a list"),
        ({"audio": "empty"}, "audio: "),
    ]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps({**row, "target": "t"}) + "\n" for row, _ in bad))
    assert main(["check-data", str(tmp_path / "bad.jsonl")]) == 2
    lines = capsys.readouterr().out.splitlines()
    for line, (_, message) in zip(lines, bad, strict=False):
        assert message in line
    (tmp_path / "table.csv").write_text('video,captions,start\n"[""broken/1.png"", ""broken/3.png""]",a text,0\n')
    assert main(["check-data", str(tmp_path / "table.csv")]) == 0
    assert "frames    min 2, median 2, max 2" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------ the sound track


def test_a_model_of_sounds_reads_the_sound_track_of_a_video(tmp_path: Path) -> None:
    built = tiny_models.build_model(tiny_models.frozen_parts(tmp_path / "parts"), "audio")
    model = Predictor(built, ModelSettings(tiny_models.OPTIONS))
    values = tiny_models.tone(1.0, 300.0)
    for name in ("sound.m4a", "film.mp4"):
        with av.open(str(tmp_path / name), "w", format="mp4") as container:
            track = container.add_stream("aac", rate=16000, layout="mono")
            sound = av.AudioFrame.from_ndarray(values[None].astype(np.float32), format="fltp", layout="mono")
            sound.rate = 16000
            container.mux([*track.encode(sound), *track.encode(None)])
    sources = [tmp_path / "sound.m4a", tmp_path / "film.mp4", {"audio": tmp_path / "film.mp4"}]
    scores = model.score(cast(Any, sources), ["a dog"] * 3)
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)
