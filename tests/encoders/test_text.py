"""Text against Transformers itself; pooling as sentence-transformers has it; folders and texts that do not fit."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from huggingface_hub import constants
from torch import Tensor
from torch.testing import assert_close

from mmprefix.data.collate import pad_media
from mmprefix.encoders.text import Text
from mmprefix.errors import InputError
from mmprefix.features.store import store_description
from mmprefix.media.source import Texts
from mmprefix.types import Features
from mmprefix.weights.part_places import pack
from tiny import encoders as tiny_encoders
from tiny.hub import COMMIT, hub_model
from tiny.recorded import SHARED
from tiny.texts import KINDS, save_sentence_encoder, save_text

pytestmark = pytest.mark.numeric
SENTENCES = ("a dog runs .", "the cat", "a cat sleeps . the dog runs", "dog")


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("text") / request.param, request.param)


def features_of(encoder: Text, *texts: str) -> Features:
    return encoder(pad_media([encoder.preprocess(Texts((text,)), 0.0, None) for text in texts]))


def own_output(folder: Path, text: str) -> tuple[Tensor, Tensor | None]:
    """Last hidden state of one text, and the embedding of a tower, as Transformers computes them."""
    kind = folder.name
    tokens = hf.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    del tokens["token_type_ids"]
    with torch.no_grad():
        if kind == "siglip":
            model: Any = hf.AutoModel.from_pretrained(folder).eval()
            ids = torch.zeros(1, 12, dtype=torch.long)
            ids[:, : tokens["input_ids"].shape[1]] = tokens["input_ids"]
            output = model.get_text_features(input_ids=ids)
            return output.last_hidden_state[:, : tokens["input_ids"].shape[1]], output.pooler_output
        if kind == "clip":
            output = hf.AutoModel.from_pretrained(folder).eval().get_text_features(**tokens)
            return output.last_hidden_state, output.pooler_output
        if kind == "clip_text_model":
            output = hf.CLIPTextModelWithProjection.from_pretrained(folder).eval()(**tokens)
            return output.last_hidden_state, output.text_embeds
        return hf.AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state, None


def test_frames_and_summary_are_those_of_transformers(folder: Path) -> None:
    encoder = Text(str(folder))
    for text in SENTENCES:
        frames, embedding = own_output(folder, text)
        features = features_of(encoder, text)
        assert features.mask.all()
        assert_close(features.frames, frames, atol=1e-5, rtol=1e-5)
        assert_close(features.pooled, frames.mean(1) if embedding is None else embedding, atol=1e-5, rtol=1e-5)
    assert (encoder.dim, encoder.pooled_dim) == (16, 20 if "clip" in folder.name else 16)


def test_a_batch_equals_its_texts_one_at_a_time(folder: Path) -> None:
    encoder = Text(str(folder))
    together = features_of(encoder, *SENTENCES)
    for row, text in enumerate(SENTENCES):
        alone = features_of(encoder, text)
        size = alone.mask.shape[1]
        assert together.mask[row].tolist() == [place < size for place in range(together.mask.shape[1])]
        assert_close(together.frames[row, :size], alone.frames[0], atol=1e-5, rtol=1e-5)
        assert not together.frames[row, size:].any()
        assert_close(together.pooled[row], alone.pooled[0], atol=1e-5, rtol=1e-5)
    assert (together.pooled[0] - together.pooled[1]).abs().max() > 1e-3


def test_a_long_text_is_cut_to_the_positions_of_the_model(folder: Path) -> None:
    encoder = Text(str(folder))
    ids = encoder.preprocess(Texts(("dog " * 40,)), 0.0, None)
    assert len(ids) == 12
    assert ids.dtype == torch.long
    assert features_of(encoder, "dog " * 40).frames.isfinite().all()


def test_texts_are_read_as_one(folder: Path) -> None:
    read = pickle.loads(pickle.dumps(Text(str(folder)).preprocess))
    assert torch.equal(read(Texts(("a dog", " ", "the cat "))), read(Texts(("a dog. the cat",))))
    assert not torch.equal(read(Texts(("a dog",))), read(Texts(("the cat",))))


MODES: dict[str, Callable[[Tensor], Any]] = {  # of the frames (T D) of one text
    "cls_token": lambda frames: frames[0],
    "max_tokens": lambda frames: frames.amax(0),
    "mean_tokens": lambda frames: frames.mean(0),
    "mean_sqrt_len_tokens": lambda frames: frames.sum(0) / len(frames) ** 0.5,
    "weightedmean_tokens": lambda frames: sum((n + 1) * f for n, f in enumerate(frames)) / sum(range(len(frames) + 1)),
    "lasttoken": lambda frames: frames[-1],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("unit", [True, False])
def test_the_summary_is_pooled_as_the_folder_says(mode: str, unit: bool, tmp_path: Path) -> None:
    encoder = Text(str(save_sentence_encoder(tmp_path / "s", [mode], unit)))
    features = features_of(encoder, *SENTENCES)
    for row, mask in enumerate(features.mask):
        expected = MODES[mode](features.frames[row][mask])
        expected = expected / expected.norm() if unit else expected
        assert_close(features.pooled[row], expected, atol=1e-5, rtol=1e-5)


def test_several_modes_stand_one_after_the_other(tmp_path: Path) -> None:
    encoder = Text(str(save_sentence_encoder(tmp_path / "s", ["mean_tokens", "cls_token"], unit=False)))
    features = features_of(encoder, "a dog runs .")
    assert_close(features.pooled[0], torch.cat([features.frames[0, 0], features.frames[0].mean(0)]))
    newer = {"word_embedding_dimension": 16, "pooling_mode": "lasttoken"}
    (tmp_path / "s" / "1_Pooling" / "config.json").write_text(json.dumps(newer))
    assert_close(features_of(Text(str(tmp_path / "s")), "a dog").pooled[0], features_of(encoder, "a dog").frames[0, -1])


def test_settings_of_the_folder_are_kept_and_change_the_store(tmp_path: Path) -> None:
    encoder = Text(str(save_sentence_encoder(tmp_path / "s")))
    described = store_description(encoder)
    assert len(encoder.preprocess(Texts(("dog " * 40,)), 0.0, None)) == 8
    settings = tmp_path / "s" / "1_Pooling" / "config.json"
    settings.write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert store_description(Text(str(tmp_path / "s"))) != described
    (tmp_path / "s" / "sentence_bert_config.json").write_text('{"max_seq_length": 5, "do_lower_case": true}')
    prompts = {"prompts": {"query": "the "}, "default_prompt_name": "query"}
    (tmp_path / "s" / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    changed = Text(str(tmp_path / "s")).preprocess
    assert changed(Texts(("DOG",)), 0.0, None).tolist() == encoder.preprocess(Texts(("the dog",)), 0.0, None).tolist()
    assert len(changed(Texts(("dog " * 40,)), 0.0, None)) == 5


def test_a_model_of_the_hub_keeps_its_pooling_and_is_packed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = save_sentence_encoder(tmp_path / "s", ["cls_token"])
    hub_model(tmp_path / "hub", "owner/sentences", folder)
    encoder, own = Text("owner/sentences"), Text(str(folder))
    assert (encoder.identity.revision, encoder.identity.sha256) == (COMMIT, own.identity.sha256)
    pack({"sentences": folder}, tmp_path / "saved", 100.0)
    packed = Text(str(tmp_path / "saved" / "parts" / "sentences"))
    assert packed.identity.sha256 == own.identity.sha256
    assert_close(features_of(packed, *SENTENCES).pooled, features_of(own, *SENTENCES).pooled)


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(InputError) as error:
        Text(str(folder))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_folder_that_is_no_text_encoder_is_refused_by_name(tmp_path: Path) -> None:
    refused(tiny_encoders.save_gpt2(tmp_path / "lm"), "'gpt2' model", "which Text cannot read", "CausalDecoder")
    refused(tiny_encoders.save_vision(tmp_path / "eyes", "dinov2"), "'dinov2' model", "encoders.vit.ViT")
    folder = save_text(tmp_path / "mute", "bert")
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "vocab.txt").unlink()
    refused(folder, "encoder ", "holds no tokenizer that can be loaded")


@pytest.mark.parametrize(("modules", "words"), [
    ("[1]", ("no list of modules",)),
    ("{", ("no list of modules",)),
    ('[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]', ("a module Dense", "it reads Transformer")),
    ('[{"type": "models.Pooling", "path": "gone"}]', ("names a Pooling", "gone")),
    ('[{"type": "models.Pooling", "path": "../s/1_Pooling"}]', ("'../s/1_Pooling'", "which is not in")),
])  # fmt: skip
def test_modules_that_cannot_be_read_are_refused(modules: str, words: tuple[str, ...], tmp_path: Path) -> None:
    folder = save_sentence_encoder(tmp_path / "s")
    (folder / "modules.json").write_text(modules)
    refused(folder, *words)


@pytest.mark.parametrize("pooling", [{}, {"pooling_mode": "median"}, {"pooling_mode_mean_tokens": False}])
def test_an_unknown_pooling_is_refused(pooling: dict[str, Any], tmp_path: Path) -> None:
    folder = save_sentence_encoder(tmp_path / "s")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    refused(folder, "1_Pooling/config.json: no pooling that Text knows")


def test_an_empty_text_half_a_character_and_what_is_no_text_are_refused(tmp_path: Path) -> None:
    read = Text(str(save_text(tmp_path / "bert", "bert"))).preprocess
    for texts in ((), ("",), (" ", "\n")):
        with pytest.raises(InputError, match="the given text is empty; give words"):
            read(Texts(texts), 0.0, None)
    with pytest.raises(InputError, match=r"dog\.png: is no text"):
        read("dog.png", 0.0, None)
    for texts in (("a \ud800 dog",), ("a dog",) * 300 + ("\udfff",)):  # a list too long is counted in tokens first
        with pytest.raises(InputError, match=r"the given text: .* half a character"):
            read(Texts(texts), 0.0, None)


@pytest.mark.models
def test_minilm_says_which_sentences_mean_the_same(real_model: Callable[[str], str]) -> None:
    encoder = Text(real_model("all-minilm-l6-v2"))
    assert (encoder.dim, encoder.pooled_dim) == (384, 384)
    pairs = (
        ("A man is playing a guitar.", "Someone plays the guitar."),
        ("The cat sleeps on the sofa.", "A cat is napping on a couch."),
        ("Heavy rain flooded the streets.", "The roads were under water after the downpour."),
    )
    summaries = features_of(encoder, *(text for pair in pairs for text in pair)).pooled
    assert_close(summaries.norm(dim=1), torch.ones(6))
    cosines = summaries @ summaries.T
    same = torch.block_diag(*[torch.ones(2, 2)] * 3).bool()
    assert cosines[same].min() > 0.55
    assert cosines[~same].max() < 0.2


@pytest.mark.models
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/captions")
def test_minilm_finds_the_other_caption_of_a_picture(real_model: Callable[[str], str]) -> None:
    """Figures of the model's own description: 0.615 for two captions of a picture, 0.089 for others, nearest 64 %."""
    encoder = Text(real_model("all-minilm-l6-v2"))
    lines = (SHARED / "data" / "captions" / "coco_val2017.jsonl").read_text().splitlines()[:200]
    captions = [json.loads(line)["captions"][:2] for line in lines]
    with torch.inference_mode():
        first, second = (
            torch.cat([features_of(encoder, *texts[start : start + 50]).pooled for start in range(0, 200, 50)])
            for texts in zip(*captions, strict=True)
        )
    cosines = first @ second.T
    others = ~torch.eye(200, dtype=torch.bool)
    assert cosines.diagonal().mean().item() == pytest.approx(0.615, abs=0.005)
    assert cosines[others].mean().item() == pytest.approx(0.089, abs=0.005)
    assert (cosines.argmax(1) == torch.arange(200)).float().mean().item() == pytest.approx(0.64, abs=0.02)
