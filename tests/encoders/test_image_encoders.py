"""Image encoders against open_clip and Transformers: equal weights called directly, with their processors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers as hf
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from mmprefix.encoders.clip import Clip
from mmprefix.encoders.vit import ViT
from mmprefix.errors import InputError
from mmprefix.types import Media
from tiny import encoders as tiny

PICTURE = Image.fromarray(np.random.default_rng(8).integers(0, 256, (61, 83, 3), dtype=np.uint8))
ONE = torch.ones(1, dtype=torch.long)


@pytest.mark.parametrize("config", [tiny.CLIP, tiny.CLIP_RESNET, tiny.CLIP_TIMM], ids=["vit", "resnet", "timm"])
def test_clip_is_open_clip(config: dict[str, Any], tmp_path: Path):
    folder = tiny.save_clip(tmp_path / "model", config)
    loaded: Any = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model, transform = loaded[0].eval(), loaded[1]
    encoder = Clip(str(folder))
    pixels = encoder.preprocess(PICTURE, 0.0, None)
    assert torch.equal(pixels, transform(PICTURE))
    with torch.no_grad():
        expected = model.encode_image(pixels[None])
        unit = model.encode_image(pixels[None], normalize=True)
    features = encoder(Media(pixels[None], ONE))
    assert_close(features.pooled, expected, atol=1e-6, rtol=1e-5)
    assert_close(
        Clip(f"local-dir:{folder}", normalize=True)(Media(pixels[None], ONE)).pooled, unit, atol=1e-6, rtol=1e-5
    )
    if config is tiny.CLIP:
        with torch.no_grad():
            tokens = model.visual.forward_intermediates(
                pixels[None], indices=1, output_fmt="NLC", normalize_intermediates=True
            )["image_intermediates"][0]
        assert_close(features.frames, tokens, atol=1e-6, rtol=1e-5)
    assert not any("text" in name or "transformer.resblocks.2" in name for name, _ in encoder.named_parameters())


def test_clip_takes_a_configuration_and_a_file_of_weights(tmp_path: Path):
    folder = tiny.save_clip(tmp_path / "model")
    whole = Clip(str(folder))
    media = Media(whole.preprocess(PICTURE, 0.0, None)[None], ONE)
    state = load_file(folder / "open_clip_model.safetensors")
    torch.save(state, tmp_path / "weights.pt")
    for name, described in (
        ("whole", {"model_cfg": tiny.CLIP, "preprocess_cfg": tiny.PREPROCESS}),
        ("bare", tiny.CLIP),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(described))
        encoder = Clip(str(tmp_path / f"{name}.json"), pretrained=str(tmp_path / "weights.pt"))
        assert_close(encoder(media).pooled, whole(media).pooled)
    assert encoder.preprocess(PICTURE, 0.0, None).shape == (3, 32, 32)
    open_clip.add_model_config(tmp_path / "bare.json")  # now a name that open_clip knows
    known = Clip("bare", pretrained=str(tmp_path / "weights.pt"))
    assert_close(known(media).pooled, whole(media).pooled)
    assert known.identity == encoder.identity.__class__(
        f"bare/{tmp_path / 'weights.pt'}", None, encoder.identity.sha256
    )


def test_clip_errors_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"model": "ViT-B-33"}, "ViT-B-32"),
        ({"model": "ViT-B-32"}, "laion2b_s34b_b79k"),
        ({"model": "ViT-B-32", "pretrained": "laion9"}, "laion2b_s34b_b79k"),
        ({"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}, "could not be fetched"),
        ({"model": "hf-hub:nobody/nothing"}, "hf-hub:nobody/nothing"),
        ({"model": str(tmp_path / "absent.json"), "pretrained": "x.pt"}, "absent.json"),
    )
    for arguments, message in cases:
        with pytest.raises(InputError, match=message) as error:
            Clip(**arguments)
        assert "\n" not in str(error.value)


def _cached(cache: Path, folder: Path, name: str) -> str:
    """Copy ``folder`` into a hub cache as the hub's client stores it, and return the commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    return commit


def test_the_identity_of_a_hub_model_has_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    clip, dino = tiny.save_clip(tmp_path / "clip"), tiny.save_vision(tmp_path / "dino", "dinov2")
    commit = _cached(tmp_path / "cache", clip, "owner/clip")
    _cached(tmp_path / "cache", dino, "owner/dino")
    for revision in (None, commit):
        for hub, local in (
            (Clip("hf-hub:owner/clip", revision=revision), Clip(str(clip))),
            (ViT("owner/dino", revision=revision), ViT(str(dino))),
        ):
            assert hub.identity.revision == commit
            assert hub.identity.sha256 == local.identity.sha256
            media = Media(torch.rand(1, 3, 32, 32), ONE)
            assert_close(hub(media).pooled, local(media).pooled)


@pytest.mark.parametrize("kind", ["dinov2", "siglip", "clip", "clip_vision_model", "convnext", "resnet"])
def test_vit_is_the_model_of_transformers(kind: str, tmp_path: Path):
    folder = tiny.save_vision(tmp_path / kind, kind)
    model: Any = hf.AutoModel.from_pretrained(folder).eval()
    tower = getattr(model, "vision_model", model)
    processed = hf.AutoImageProcessor.from_pretrained(folder)(PICTURE, return_tensors="pt")["pixel_values"]
    encoder = ViT(str(folder))
    pixels = encoder.preprocess(PICTURE, 0.0, None)[None]
    assert torch.equal(pixels, processed)
    with torch.no_grad():
        expected = tower(pixel_values=processed)
    features = encoder(Media(pixels, ONE))
    states = expected.last_hidden_state
    if states.ndim == 4:
        states = torch.stack([states[:, :, y, x] for y in range(states.shape[2]) for x in range(states.shape[3])], 1)
    assert_close(features.frames, states, atol=1e-6, rtol=1e-5)
    assert_close(features.pooled, expected.pooler_output.reshape(1, -1), atol=1e-6, rtol=1e-5)
    text = [name for name, _ in encoder.named_parameters() if "text" in name or "embed_tokens" in name]
    assert not text


def test_a_classifier_without_a_pooler_gets_none(tmp_path: Path):
    folder = tiny.save_vision(tmp_path / "vit", "vit")
    encoder = ViT(str(folder))
    media = Media(torch.rand(2, 3, 32, 32), torch.ones(2, dtype=torch.long))
    with torch.no_grad():
        expected = hf.ViTForImageClassification.from_pretrained(folder).vit(media.values).last_hidden_state
    features = encoder(media)
    assert_close(features.frames, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(features.pooled, features.frames[:, 0])
    assert not any("pooler" in name for name, _ in encoder.named_parameters())


def test_a_missing_tensor_is_refused(tmp_path: Path):
    folder = tiny.save_vision(tmp_path / "dino", "dinov2")
    state = load_file(folder / "model.safetensors")
    gone = next(name for name in state if "attention" in name)
    save_file({k: v for k, v in state.items() if k != gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 tensors of Dinov2Model"):
        ViT(str(folder))


def test_a_model_that_hides_patches_at_random_is_refused(tmp_path: Path):
    config = hf.ViTMAEConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    hf.ViTMAEModel(config).save_pretrained(tmp_path)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="random"):
        ViT(str(tmp_path))


def test_a_file_of_weights_needs_a_given_activation(tmp_path: Path):
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(InputError, match="give the model ViT-B-32-quickgelu; others: give quick_gelu true or false"):
        Clip("ViT-B-32", str(tmp_path / "weights.pt"))
    with pytest.raises(InputError, match="open_clip cannot load it"):  # an activation is said, and the file is empty
        Clip("ViT-B-32", str(tmp_path / "weights.pt"), quick_gelu=False)


def test_openais_weights_use_quickgelu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """OpenAI's weights were trained with QuickGELU; open_clip only warns in a network without it."""
    described = {**tiny.CLIP}
    (tmp_path / "tiny-vit.json").write_text(json.dumps(described))
    open_clip.add_model_config(tmp_path)
    folder = tiny.save_clip(tmp_path / "made")
    file = str(folder / "open_clip_model.safetensors")
    tags = open_clip.pretrained._PRETRAINED
    for tag, quick in (("openai", True), ("laion", False)):
        monkeypatch.setitem(tags, "tiny-vit", {tag: open_clip.pretrained._pcfg(url="https://x", quick_gelu=quick)})
        monkeypatch.setattr(open_clip, "download_pretrained", lambda *_, **__: file)
        monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: file)
        encoder = Clip("tiny-vit", tag)
        pixels = encoder.preprocess(PICTURE, 0.0, None)[None]
        expected: Any = open_clip.create_model("tiny-vit", pretrained=file, force_quick_gelu=quick).eval()
        other: Any = open_clip.create_model("tiny-vit", pretrained=file, force_quick_gelu=not quick).eval()
        pooled = encoder(Media(pixels, ONE)).pooled
        with torch.no_grad():
            assert_close(pooled, expected.encode_image(pixels), atol=1e-6, rtol=1e-5)
            assert not torch.allclose(pooled, other.encode_image(pixels), atol=1e-4)
