"""Video encoder: the image encoder's features of each frame in order, independent of the batch."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from mmprefix.data.collate import pad_media
from mmprefix.encoders.base import Encoder
from mmprefix.encoders.clip import Clip
from mmprefix.encoders.signals import Signals
from mmprefix.encoders.video import Frames
from mmprefix.encoders.vit import ViT
from mmprefix.errors import InputError
from mmprefix.media.source import FrameSequence
from mmprefix.media.video import read_frames
from mmprefix.parts import from_recipe, to_recipe
from mmprefix.types import Features
from tiny import encoders as tiny
from tiny.videos import decoded, frame, save_video

KINDS = ("vit", "clip", "clip-resnet")  # with a class token, with patches alone, without frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("video")


@pytest.fixture(scope="module", params=KINDS)
def pictures(request: Any, folder: Path) -> Encoder:
    """Image encoder."""
    path = folder / request.param
    if request.param == "vit":
        return ViT(str(tiny.save_vision(path, "vit")))
    return Clip(str(tiny.save_clip(path, tiny.CLIP_RESNET if request.param == "clip-resnet" else tiny.CLIP)))


@pytest.fixture(scope="module")
def clips(folder: Path) -> list[Path]:
    """Videos of forty frames, of one frame, and of three."""
    lengths = {"long.mp4": 40, "still.mkv": 1, "short.webm": 3}
    return [save_video(folder / name, count=count, seed=count) for name, count in lengths.items()]


def features_of(encoder: Encoder, frames: list[Image.Image]) -> Features:
    """Each picture encoded as a picture (N T D)."""
    return encoder(pad_media([encoder.preprocess(image, 0.0, None) for image in frames]))


@pytest.mark.parametrize("read", ["frames", "summary"])
def test_features_are_those_of_the_pictures_in_a_row(read: Any, pictures: Encoder, clips: list[Path]) -> None:
    encoder = Frames(pictures, frames=5, read=read)
    features = encoder(pad_media([encoder.preprocess(clip, 0.0, None) for clip in clips]))
    assert encoder.input_kind == "video"
    assert features.frames.shape == (3, features.mask.shape[1], encoder.dim)
    assert features.pooled.shape == (3, encoder.pooled_dim)
    for row, (clip, count) in enumerate(zip(clips, (5, 1, 3), strict=True)):
        frames, _ = decoded(clip)
        alone = features_of(pictures, [frames[i] for i in ((4, 12, 20, 28, 36) if count == 5 else range(count))])
        expected = alone.pooled if read == "summary" else alone.frames.flatten(0, 1)
        real = features.mask[row]
        assert int(real.sum()) == len(expected)
        assert real[: len(expected)].all()
        assert_close(features.frames[row][real], expected, atol=1e-5, rtol=1e-5)
        assert_close(features.pooled[row], alone.pooled.mean(0), atol=1e-5, rtol=1e-5)
        assert not features.frames[row][~real].any()


def test_a_batch_equals_its_videos_one_at_a_time(pictures: Encoder, clips: list[Path]) -> None:
    encoder = Frames(pictures, frames=4)
    values = [encoder.preprocess(clip, 0.0, None) for clip in clips]
    batch = encoder(pad_media(values))
    for row, pixels in enumerate(values):
        alone = encoder(pad_media([pixels]))
        size = alone.mask.shape[1]
        assert torch.equal(batch.mask[row, :size], alone.mask[0])
        assert not batch.mask[row, size:].any()
        assert_close(batch.frames[row, :size], alone.frames[0], atol=1e-5, rtol=1e-5)
        assert_close(batch.pooled[row], alone.pooled[0], atol=1e-5, rtol=1e-5)
    assert (batch.pooled[0] - batch.pooled[2]).abs().max() > 1e-3


def test_long_videos_are_encoded_in_pieces(pictures: Encoder) -> None:
    """70 frames go through the picture encoder in two pieces."""
    encoder, frames = Frames(pictures, frames=70), [frame(number, 70) for number in range(70)]
    features = encoder(pad_media([encoder.preprocess(FrameSequence(frames), 0.0, None)]))
    alone = features_of(pictures, frames)
    assert_close(features.frames[0], alone.frames.flatten(0, 1), atol=1e-5, rtol=1e-5)
    assert_close(features.pooled[0], alone.pooled.mean(0), atol=1e-5, rtol=1e-5)


def test_preprocessing_is_pickled_and_cuts(pictures: Encoder, clips: list[Path]) -> None:
    preprocess = pickle.loads(pickle.dumps(Frames(pictures, frames=3).preprocess))
    expected = [pictures.preprocess(image, 0.0, None) for image in read_frames(clips[0], 3, 1.0, 2.5)]
    assert torch.equal(preprocess(clips[0], 1.0, 2.5), torch.stack(expected))


def test_it_is_frozen_and_can_be_tuned(folder: Path, clips: list[Path]) -> None:
    """In training, the image encoder is trained too; it is one of its parts."""
    path = folder / "tuned"
    encoder = Frames(Clip(str(tiny.save_clip(path))), frames=2)
    media = pad_media([encoder.preprocess(clips[0], 0.0, None)])
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(media).pooled.requires_grad
    encoder.tune()
    assert all(module.training for module in encoder.modules())
    encoder(media).pooled.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.encoder.parameters())
    encoder.freeze()
    assert not any(module.training for module in encoder.modules())
    assert encoder.trained == ("",)


def test_its_recipe_holds_the_image_encoder(pictures: Encoder, clips: list[Path]) -> None:
    encoder = Frames(pictures, frames=2, read="summary")
    recipe = to_recipe(encoder)
    assert recipe["class_path"] == "mmprefix.encoders.video.Frames"
    assert recipe["init_args"]["encoder"] == to_recipe(pictures)
    again = from_recipe(recipe, Frames)
    assert again.identity == encoder.identity == pictures.identity
    values = encoder.preprocess(clips[0], 0.0, None)
    assert_close(again(pad_media([values])).frames, encoder(pad_media([values])).frames)


def test_wrong_options_are_refused(folder: Path) -> None:
    vit = ViT(str(tiny.save_vision(folder / "refused", "dinov2")))
    cases: list[tuple[Any, str]] = [
        (lambda: Frames(Signals(["a"])), "Frames.encoder: Signals reads signals, not pictures"),
        (lambda: Frames(Frames(vit)), "Frames.encoder: Frames reads video, not pictures"),
        (lambda: Frames(vit, frames=0), "Frames.frames 0: give a number from 1 on"),
        (lambda: Frames(vit, read="words"), "read: 'words' is none of frames, summary"),  # pyright: ignore
    ]
    for build, message in cases:
        with pytest.raises(InputError, match=message):
            build()


def test_pictures_of_several_sizes_are_refused_if_the_model_keeps_sizes(folder: Path) -> None:
    model = tiny.save_vision(folder / "sizes", "resnet")
    settings = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").write_text(json.dumps({**settings, "do_resize": False}))
    encoder = Frames(ViT(str(model)), frames=2)
    assert encoder.preprocess(FrameSequence([Image.new("RGB", (64, 48))] * 2), 0.0, None).shape == (2, 3, 48, 64)
    with pytest.raises(InputError, match=r"its pictures have several sizes \(\(48, 64\), \(48, 96\)\)"):
        encoder.preprocess(FrameSequence([Image.new("RGB", (64, 48)), Image.new("RGB", (96, 48))]), 0.0, None)
