"""Timm against timm itself: equal weights called directly, with timm's own transform; folders that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers as hf
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.testing import assert_close

from mmprefix.encoders.timm import Timm
from mmprefix.encoders.vit import ViT
from mmprefix.errors import InputError
from mmprefix.parts import to_recipe
from mmprefix.types import Media
from mmprefix.weights import dry_run
from mmprefix.weights import source as sources
from mmprefix.weights.part_places import from_hub_cache
from tiny import encoders as tiny
from tiny.hub import COMMIT, hub_model

pytestmark = pytest.mark.numeric
PICTURE = Image.fromarray(np.random.default_rng(8).integers(0, 256, (61, 83, 3), dtype=np.uint8))
ONE = torch.ones(1, dtype=torch.long)
KINDS = list(tiny.TIMM)


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_timm(tmp_path_factory.mktemp("timm") / request.param, request.param)


@pytest.fixture
def swin(tmp_path: Path) -> Path:
    return tiny.save_timm(tmp_path / "swin", "swin")


def _own(folder: Path) -> Any:
    """The model as timm loads it."""
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def _media(pixels: Tensor) -> Media:
    return Media(pixels[None], ONE)


def _row_by_row(output: Tensor, channels_last: bool) -> Tensor:
    """The frames of a feature map, spelled out."""
    if output.ndim == 3:
        return output
    grid = output if channels_last else output.permute(0, 2, 3, 1)
    return torch.stack([grid[:, y, x] for y in range(grid.shape[1]) for x in range(grid.shape[2])], dim=1)


def _refused(folder: Path | str, *parts: str, **options: Any) -> None:
    with pytest.raises(InputError) as error:
        Timm(str(folder), **options)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_frames_and_summary_are_those_of_timm(folder: Path):
    model, encoder = _own(folder), Timm(str(folder))
    pixels = encoder.preprocess(PICTURE, 0.0, None)
    features = encoder(_media(pixels))
    with torch.no_grad():
        last = model.forward_features(pixels[None])
        summary = model.forward_head(last, pre_logits=True)
        model.reset_classifier(0)
        without_classifier = model(pixels[None])
    assert_close(features.frames, _row_by_row(last, folder.name == "swin"), atol=1e-6, rtol=1e-5)
    assert_close(features.pooled, summary, atol=1e-6, rtol=1e-5)
    assert_close(features.pooled, without_classifier, atol=1e-6, rtol=1e-5)
    assert features.mask.all()
    assert (encoder.dim, encoder.pooled_dim) == (features.frames.shape[2], features.pooled.shape[1])
    assert folder.name != "vit" or features.frames.shape[1] == 1 + 4 + 16  # class token, registers, 4 x 4 patches


def test_the_whole_picture_is_resized_and_crop_is_the_evaluation_of_timm(folder: Path):
    data = resolve_model_data_config(_own(folder))
    timms: Any = create_transform(**data, is_training=False)
    cropped = Timm(str(folder), crop=True).preprocess(PICTURE, 0.0, None)
    assert torch.equal(cropped, timms(PICTURE))
    whole = Timm(str(folder)).preprocess(PICTURE, 0.0, None)
    size = data["input_size"][1:]
    resized = np.asarray(PICTURE.resize((size[1], size[0]), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    by_hand = (resized - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.4])
    assert_close(whole, torch.from_numpy(by_hand).float().permute(2, 0, 1), atol=1e-6, rtol=1e-5)
    assert torch.equal(whole, Timm(str(folder)).preprocess(PICTURE, 0.0, None))


def test_layers_are_those_of_forward_intermediates(folder: Path):
    model = _own(folder)
    pixels = Timm(str(folder)).preprocess(PICTURE, 0.0, None)
    with torch.no_grad():
        outputs: Any = model.forward_intermediates(pixels[None], intermediates_only=True)
    frames = Timm(str(folder), layers=[-2])(_media(pixels)).frames
    grid = outputs[len(outputs) - 2]
    expected = grid.flatten(2).transpose(1, 2)
    if folder.name == "vit":
        assert frames.shape[1] == expected.shape[1] + 5
        frames = frames[:, 5:]
    assert_close(frames, expected, atol=1e-6, rtol=1e-5)
    encoder = Timm(str(folder), layers=[-2, -1])
    several = encoder(_media(pixels))
    assert encoder.dim == grid.shape[1] + outputs[-1].shape[1] == several.frames.shape[2]
    step = grid.shape[2] // outputs[-1].shape[2]  # the larger map is averaged over squares of this side
    means = grid.unfold(2, step, step).unfold(3, step, step).mean((4, 5))
    joined = torch.cat([means, outputs[-1]], dim=1).flatten(2).transpose(1, 2)
    assert_close(several.frames[:, -joined.shape[1] :], joined, atol=1e-5, rtol=1e-5)
    assert_close(several.pooled, Timm(str(folder))(_media(pixels)).pooled, atol=1e-6, rtol=1e-5)
    meant = Timm(str(folder), layers=[-2], summary="frames")
    features = meant(_media(pixels))
    assert meant.pooled_dim == meant.dim
    assert_close(features.pooled, features.frames.mean(1))
    assert_close(features.frames, Timm(str(folder), layers=[-2])(_media(pixels)).frames)
    last = Timm(str(folder), summary="frames")(_media(pixels))
    assert_close(last.pooled, last.frames.mean(1))


def test_class_and_register_tokens_of_a_layer_stand_first(tmp_path: Path):
    vit = tiny.save_timm(tmp_path / "vit", "vit")
    pixels = Timm(str(vit)).preprocess(PICTURE, 0.0, None)
    last = Timm(str(vit), layers=[-1])(_media(pixels)).frames
    with torch.no_grad():
        normalised = _own(vit).norm(last)
    assert_close(normalised, Timm(str(vit))(_media(pixels)).frames, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("cls", [hf.TimmWrapperForImageClassification, hf.TimmWrapperModel])
@pytest.mark.parametrize("described", [True, False], ids=["loaded", "fresh"])
def test_what_the_wrapper_of_transformers_saves_is_read(cls: Any, described: bool, tmp_path: Path):
    folder = tmp_path / "timm"
    timm.models.save_for_hf(tiny.randomized(timm.create_model("test_vit")), str(folder))
    settings = json.loads((folder / "config.json").read_text())
    del settings["model_args"]  # with them this version of Transformers builds none
    (folder / "config.json").write_text(json.dumps(settings))
    wrapped = cls.from_pretrained(folder) if described else cls(hf.TimmWrapperConfig(architecture="test_vit"))
    wrapped.eval().save_pretrained(tmp_path / "wrapped")
    encoder = Timm(str(tmp_path / "wrapped"))
    pixels = encoder.preprocess(PICTURE, 0.0, None)
    with torch.no_grad():
        expected = wrapped.timm_model.forward_features(pixels[None])
    assert_close(encoder(_media(pixels)).frames, expected, atol=1e-6, rtol=1e-5)
    with dry_run.without_weights():
        assert Timm(str(tmp_path / "wrapped")).dim == encoder.dim
    state = load_file(tmp_path / "wrapped" / "model.safetensors")
    del state[next(key for key in state if key.endswith("blocks.0.mlp.fc1.weight"))]
    save_file(state, tmp_path / "wrapped" / "model.safetensors")
    _refused(tmp_path / "wrapped", "holds no tensor", "blocks.0.mlp.fc1.weight")


def test_vit_says_which_encoder_reads_a_model_of_timm(swin: Path):
    settings = json.loads((swin / "config.json").read_text())
    for kind in ({}, {"model_type": "timm_wrapper"}):
        (swin / "config.json").write_text(json.dumps({**settings, **kind}))
        with pytest.raises(InputError, match=r"a model of timm; mmprefix\.encoders\.timm\.Timm reads it"):
            ViT(str(swin))


def test_a_model_of_another_library_is_refused_with_the_encoder_that_fits(swin: Path, tmp_path: Path):
    _refused(tiny.save_vision(tmp_path / "dino", "dinov2"), "'dinov2' model", "mmprefix.encoders.vit.ViT")
    _refused(tiny.save_clip(tmp_path / "clip"), "mmprefix.encoders.clip.Clip")
    settings = json.loads((swin / "config.json").read_text())
    (swin / "config.json").write_text(json.dumps({**settings, "architecture": "swin_tiny_patch5"}))
    _refused(swin, "knows no architecture 'swin_tiny_patch5'", "swin_tiny_patch4")
    (swin / "config.json").write_text(json.dumps({**settings, "model_args": {"img_sise": 64}}))
    _refused(swin, "timm cannot load it", "img_sise")
    grey = {**settings["model_args"], "in_chans": 1}
    torch.manual_seed(0)
    shutil.rmtree(swin)
    timm.models.save_for_hf(timm.create_model(settings["architecture"], **grey), str(swin), model_args=grey)
    _refused(swin, "1 channels")


@pytest.mark.parametrize(
    ("change", "num_classes"),
    [("missing", 1000), ("unexpected", 1000), ("shape", 1000), ("missing", 12), ("shape", 12)],
)
def test_weights_that_do_not_fit_are_refused(swin: Path, change: str, num_classes: int):
    """With another number of classes timm itself is not strict: a missing weight would stay random."""
    settings = json.loads((swin / "config.json").read_text())
    settings["model_args"]["num_classes"] = num_classes
    (swin / "config.json").write_text(json.dumps(settings))
    state = load_file(swin / "model.safetensors")
    name = "layers.0.blocks.0.mlp.fc1.weight"
    if change == "missing":
        del state[name]
    elif change == "shape":
        state[name] = torch.zeros(3, 3)
    else:
        state["layers.0.strange.weight"] = torch.zeros(1)
    save_file(state, swin / "model.safetensors")
    _refused(swin, name if change != "unexpected" else "layers.0.strange.weight")


def test_without_weights_a_folder_is_refused(swin: Path):
    (swin / "model.safetensors").unlink()
    _refused(swin, "holds no weights")


def test_names_and_options_that_do_not_exist_are_refused(swin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    _refused("efficientnet_b00", "efficientnet_b0", "no folder")
    _refused("resnet18.nothing", "resnet18.a1_in1k")
    _refused("resnet18", "model hub did not give timm/resnet18.a1_in1k")
    _refused("hf-hub:nobody/nothing", "nobody/nothing")
    _refused(swin, "layers [3]", "0 to 2", layers=[3])
    _refused(swin, "layers []", layers=[])
    _refused(swin, "summary", "classifier", "frames", summary="mean")
    with dry_run.without_weights():
        _refused("coat_tiny", "CoaT", "layers")
        assert Timm("coat_tiny", layers=[-1]).dim == 152


def test_a_dry_run_knows_the_sizes_of_all_names_without_weights(swin: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    full = Timm(str(swin))
    (swin / "model.safetensors").unlink()
    with dry_run.without_weights():
        empty = Timm(str(swin))
        names = ("efficientnet_b0.ra_in1k", "timm/convnext_atto", "hf-hub:timm/vit_small_patch14_reg4_dinov2.lvd142m")
        sizes = {name: Timm(name).dim for name in names}
    assert (empty.dim, empty.pooled_dim) == (full.dim, full.pooled_dim)
    assert [p.shape for p in empty.parameters()] == [p.shape for p in full.parameters()]
    assert list(sizes.values()) == [1280, 320, 384]


def test_names_of_timm_and_of_the_hub_are_read_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    model = tiny.randomized(timm.create_model("test_vit"))
    timm.models.save_for_hf(model, str(tmp_path / "vit"))
    hub_model(tmp_path / "cache", "timm/test_vit.r160_in1k", tmp_path / "vit")
    local = Timm(str(tmp_path / "vit"))
    media = _media(local.preprocess(PICTURE, 0.0, None))
    for name in ("test_vit", "test_vit.r160_in1k", "hf-hub:timm/test_vit.r160_in1k", "timm/test_vit.r160_in1k"):
        hub = Timm(name)
        assert_close(hub(media).frames, local(media).frames)
        assert (hub.identity.revision, hub.identity.sha256) == (COMMIT, local.identity.sha256)
        assert sources.settings(hub.identity) == sources.settings(local.identity)
    hub = Timm("hf-hub:timm/test_vit.r160_in1k")
    described: dict[str, Any] = {
        "recipe": {"branches": {"a": {"encoder": to_recipe(hub)}}},
        "parts": {"a": hub.identity.as_dict()},
    }
    from_hub_cache(described, limit=50)
    packed = described["recipe"]["branches"]["a"]["encoder"]["init_args"]["model"]
    assert Path(packed).is_absolute()
    assert Timm(packed).identity.sha256 == hub.identity.sha256
    assert Timm("test_vit", revision=COMMIT).identity.revision == COMMIT
    with pytest.raises(InputError, match=r"did not give timm/test_vit\.r160_in1k"):
        Timm("test_vit", revision="other")


@pytest.mark.models
@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite2"])
def test_real_weights_see_what_timm_sees(name: str, real_model: Any):
    """Compare class scores from the encoder's summary with those of timm's own model."""
    encoder = Timm(real_model(name), crop=True)
    model = _own(sources.resolve_folder(real_model(name)))
    pixels = encoder.preprocess(PICTURE, 0.0, None)
    with torch.no_grad():
        assert_close(model.classifier(encoder(_media(pixels)).pooled), model(pixels[None]), atol=1e-4, rtol=1e-4)
    with dry_run.without_weights():
        assert Timm(real_model(name)).dim == encoder.dim == 1280
