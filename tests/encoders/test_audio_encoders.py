"""Audio encoders against Transformers and torchaudio: equal weights called directly, with their extractors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio
import transformers as hf
from torch import Tensor
from torch.testing import assert_close
from torchaudio.models.wav2vec2.utils import import_huggingface_model
from torchaudio.pipelines import Wav2Vec2Bundle

from mmprefix.encoders.ast import AST, Fbank
from mmprefix.encoders.clap import Clap, Decibels
from mmprefix.encoders.speech import Speech
from mmprefix.encoders.whisper import LogMel, Whisper
from mmprefix.errors import InputError
from mmprefix.media.source import Waveform
from mmprefix.types import Features, Media
from tiny import encoders as tiny


def _clip(length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(length) / 16000
    return 0.3 * torch.sin(2 * torch.pi * 300 * time) + 0.1 * torch.randn(length, generator=generator)


def _features_of(encoder: Any, clip: Tensor) -> Features:
    return encoder(Media(clip[None], torch.tensor([len(clip)])))


def test_whispers_spectrogram_is_the_extractors():
    extractor = hf.WhisperFeatureExtractor()
    clips = [_clip(480000, 1), _clip(70001, 2) * 0.01]
    expected = extractor([clip.numpy() for clip in clips], sampling_rate=16000, return_tensors="pt")["input_features"]
    values = torch.zeros(2, 480000)
    for row, clip in zip(values, clips, strict=True):
        row[: len(clip)] = clip
    assert expected.shape == (2, 80, 3000)
    assert_close(LogMel(extractor)(values), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [960080, 1000000, 2000001])
def test_the_spectrogram_of_a_recording_is_the_extractors(length: int):
    """The spectrogram is computed piece by piece, and its loudest 80 dB are those of the whole recording."""
    extractor, clip = hf.WhisperFeatureExtractor(), _clip(length)
    clip[:300000] *= 1e-3
    long = {"truncation": False, "padding": "longest", "return_tensors": "pt"}
    expected = extractor(clip.numpy(), sampling_rate=16000, **long)["input_features"][0]
    assert_close(LogMel(extractor).recording(clip), expected, atol=1e-4, rtol=0)


def test_whisper_is_the_encoder_of_transformers(tmp_path: Path):
    folder = tiny.save_whisper(tmp_path / "whisper")
    model = hf.WhisperModel.from_pretrained(folder).eval()
    extractor = hf.WhisperFeatureExtractor.from_pretrained(folder)
    clip = _clip(75000)  # two windows of 32000 samples and a rest
    expected, counts = [], []
    for start in range(0, 75000, 32000):
        one = extractor(
            clip[start : start + 32000].numpy(), sampling_rate=16000, return_tensors="pt", return_attention_mask=True
        )
        with torch.no_grad():
            expected.append(model.encoder(one["input_features"]).last_hidden_state[0])
        counts.append(int(model._get_feat_extract_output_lengths(one["attention_mask"].sum())))
    features = _features_of(Whisper(str(folder)), clip)
    states = torch.cat([window[:count] for window, count in zip(expected, counts, strict=True)])
    assert counts == [100, 100, 35]
    assert_close(features.frames[0], states, atol=1e-4, rtol=1e-4)
    assert_close(features.pooled[0], states.mean(0), atol=1e-4, rtol=1e-4)
    whole = _features_of(Whisper(str(folder), window="whole", long="cut"), clip)
    assert_close(whole.frames[0], expected[0], atol=1e-4, rtol=1e-4)
    assert not any("decoder" in name for name, _ in Whisper(str(folder)).named_parameters())
    bare = tmp_path / "bare"  # a folder without a preprocessor: sizes follow from the model
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("preprocessor_config.json"))
    assert_close(_features_of(Whisper(str(bare)), clip).frames, features.frames)


@pytest.mark.numeric
def test_a_layer_half_way_is_that_of_transformers(tmp_path: Path):
    folder = tiny.save_whisper(tmp_path / "whisper")
    model, clip = hf.WhisperModel.from_pretrained(folder).eval().encoder, _clip(32000)  # a whole window
    mel = LogMel(hf.WhisperFeatureExtractor.from_pretrained(folder))(clip[None])
    with torch.no_grad():
        states = model(mel, output_hidden_states=True).hidden_states  # of the positions, layer 1, layer 2 normalised
    encoder = Whisper(str(folder), layer=1)
    assert len(encoder.network.layers) == 1
    assert_close(_features_of(encoder, clip).frames, states[1])
    short = _features_of(Whisper(str(folder), layer=1, silence=0.0), clip[:16000]).frames  # half a window
    whole = _features_of(encoder, clip[:16000]).frames
    assert short.shape == whole.shape
    assert not torch.equal(short, whole)
    for wrong in (0, 3, -1):
        with pytest.raises(InputError, match=rf"layer {wrong}: .* has 2; give 1 to 2"):
            Whisper(str(folder), layer=wrong)


@pytest.mark.numeric
def test_a_shorter_window_is_that_of_a_whisper_with_fewer_positions(tmp_path: Path):
    """0.7 s of sound and 0.2 s of silence are one second, as Transformers' encoder with such a window reads it."""
    folder = tiny.save_whisper(tmp_path / "whisper")
    model = hf.WhisperModel.from_pretrained(folder).eval().encoder
    model.config.max_source_positions = 50
    positions = torch.nn.Embedding.from_pretrained(model.embed_positions.weight[:50])
    model.embed_positions = positions
    clip, extractor = _clip(11200), hf.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    with torch.no_grad():
        inputs = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt")["input_features"]
        expected = model(inputs).last_hidden_state[0]
    whole = _features_of(Whisper(str(folder), window="whole", silence=0.2), clip)
    assert_close(whole.frames[0], expected, atol=1e-4, rtol=1e-4)
    sound = _features_of(Whisper(str(folder), silence=0.2), clip)
    assert_close(sound.frames[0], expected[:35], atol=1e-4, rtol=1e-4)
    assert_close(sound.pooled[0], expected[:35].mean(0), atol=1e-4, rtol=1e-4)


@pytest.mark.numeric
def test_a_filled_window_goes_on_with_a_window_of_silence(tmp_path: Path):
    """One second is encoded of the first clip; its second one is that of silence. Two windows of the other clip."""
    folder = str(tiny.save_whisper(tmp_path / "whisper"))
    silent = _features_of(Whisper(folder, window="whole"), torch.zeros(32000)).frames[0]
    short, filled = (Whisper(folder, window=window, silence=0.2) for window in ("whole", "filled"))
    features = _features_of(filled, _clip(11200))
    assert_close(features.frames[0], torch.cat([_features_of(short, _clip(11200)).frames[0], silent[50:]]))
    assert bool(features.mask.all())
    assert_close(features.pooled, _features_of(short, _clip(11200)).pooled)
    long = _features_of(filled, _clip(40000)).frames[0]
    assert_close(long[:100], _features_of(short, _clip(40000)).frames[0, :100])
    assert_close(long[150:], silent[50:])
    both = filled(Media(torch.stack([_clip(40000), _clip(40000)]), torch.tensor([40000, 11200])))
    assert_close(both.frames[1, :100], features.frames[0])
    assert both.mask.sum(1).tolist() == [200, 100]


def test_silence_behind_the_sound_makes_whole_seconds_up_to_the_window(tmp_path: Path):
    folder = tiny.save_whisper(tmp_path / "whisper")  # its window has two seconds of 50 frames
    for silence, length, frames in (
        (0.0, 300, 50),
        (0.0, 16000, 50),
        (0.0, 16001, 100),
        (1.0, 300, 100),
        (9.0, 300, 100),
        (0.5, 33000, 150),  # a whole window, and one of 1000 samples
        (None, 300, 100),
    ):
        features = _features_of(Whisper(str(folder), window="whole", silence=silence), _clip(length))
        assert features.frames.shape[1] == frames, (silence, length)
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match=r"silence .*: give seconds from 0 on, or null for the whole window"):
            Whisper(str(folder), silence=wrong)


def test_asts_spectrogram_is_the_extractors():
    extractor = hf.ASTFeatureExtractor()
    clips = [_clip(200000, 1), _clip(70001, 2)]
    expected = extractor([clip.numpy() for clip in clips], sampling_rate=16000, return_tensors="pt")["input_values"]
    values = torch.zeros(2, 200000)
    for row, clip in zip(values, clips, strict=True):
        row[: len(clip)] = clip
    level, counts = Fbank(extractor)(Media(values, torch.tensor([200000, 70001])))
    assert expected.shape == (2, 1024, 128)
    assert counts.tolist() == [1024, 436]
    assert_close(level, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [9000, 40000])
def test_ast_is_the_model_of_transformers(length: int, tmp_path: Path):
    folder = tiny.save_ast(tmp_path / "ast")
    model = hf.ASTModel.from_pretrained(folder).eval()
    clip = _clip(length)
    level = hf.ASTFeatureExtractor.from_pretrained(folder)(clip.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = model(level["input_values"])
    features = _features_of(AST(str(folder)), clip)
    assert_close(features.frames, expected.last_hidden_state, atol=1e-4, rtol=1e-4)
    assert_close(features.pooled, expected.pooler_output, atol=1e-4, rtol=1e-4)
    # 2 bands x 12 times; 9000 samples are 54 frames, and 6 patches begin within them
    assert features.mask.sum() == (26 if length == 40000 else 2 + 2 * 6)


def test_asts_mask_marks_patches_within_the_clip(tmp_path: Path):
    folder = tiny.save_ast(tmp_path / "ast")
    extractor, encoder = hf.ASTFeatureExtractor.from_pretrained(folder), AST(str(folder))
    level, _ = encoder.fbank(Media(_clip(9000)[None], torch.tensor([9000])))
    nothing = torch.full_like(level, -extractor.mean / (2 * extractor.std))
    with torch.no_grad():
        patches, empty = (encoder.network.embeddings.patch_embeddings(picture) for picture in (level, nothing))
    holds = (patches - empty).abs().amax(2) > 1e-6
    assert torch.equal(_features_of(encoder, _clip(9000)).mask[:, 2:], holds)


def test_ast_refuses_contradicting_options(tmp_path: Path):
    folder = tiny.save_ast(tmp_path / "ast")
    hf.ASTFeatureExtractor(num_mel_bins=32, max_length=1024).save_pretrained(folder)
    with pytest.raises(InputError, match=r"max_length is 128 in config\.json but 1024"):
        AST(str(folder))


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("fused", [False, True])
def test_claps_spectrogram_is_the_extractors(padding: str, fused: bool):
    extractor = hf.ClapFeatureExtractor(padding=padding, truncation="fusion" if fused else "rand_trunc")
    clips = [_clip(480000, 1), _clip(100001, 2)]
    expected = extractor([clip.numpy() for clip in clips], sampling_rate=48000, return_tensors="pt")["input_features"]
    ours = Decibels(extractor, fused)
    values = torch.zeros(2, 480000)
    for row, clip in zip(values, clips, strict=True):
        row[: len(clip)] = clip
    level = ours(ours.repeated(values, torch.tensor([480000, 100001])))
    assert level.shape == (2, 1001, 64)
    assert_close(level, expected[:, 0].float(), atol=1e-3, rtol=0)


def _reference_clap(folder: Path, clip: Tensor, longer: bool) -> Any:
    model = hf.ClapAudioModelWithProjection.from_pretrained(folder).eval()
    extractor = hf.ClapFeatureExtractor.from_pretrained(folder)
    level = extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt")["input_features"].float()
    with torch.no_grad():
        return model(level, is_longer=torch.tensor([[longer]]))


@pytest.mark.parametrize("fused", [False, True])
def test_clap_is_the_model_of_transformers(fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tiny.save_clap(tmp_path / "clap", fused)
    encoder = Clap(str(folder))
    for length in (7000, 16000):
        expected = _reference_clap(folder, _clip(length), longer=False)
        features = _features_of(encoder, _clip(length))
        assert_close(features.pooled, expected.audio_embeds, atol=1e-4, rtol=1e-4)
        states = expected.last_hidden_state[0]  # (D bands times)
        order = [states[:, band, time] for time in range(states.shape[2]) for band in range(states.shape[1])]
        assert_close(features.frames[0], torch.stack(order)[: features.frames.shape[1]], atol=1e-4, rtol=1e-4)
        assert features.frames.shape[1] == -(-length * states.shape[2] // 16000) * states.shape[1]
    if fused:  # a longer clip: the excerpts that the extractor draws, drawn in the middle
        monkeypatch.setattr(np.random, "choice", lambda places: places[len(places) // 2])
        for length, longer in ((50000, True), (16100, False), (16200, True)):
            expected = _reference_clap(folder, _clip(length), longer)
            assert_close(_features_of(encoder, _clip(length)).pooled, expected.audio_embeds, atol=1e-4, rtol=1e-4)
    else:
        windows = [_reference_clap(folder, _clip(40000)[at : at + 16000], False) for at in (0, 16000, 32000)]
        mean = sum(window.audio_embeds * share for window, share in zip(windows, (0.4, 0.4, 0.2), strict=True))
        assert_close(_features_of(encoder, _clip(40000)).pooled, mean, atol=1e-4, rtol=1e-4)
        cut = _features_of(Clap(str(folder), long="cut"), _clip(40000))
        assert_close(cut.pooled, windows[0].audio_embeds, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_speech_is_the_model_of_transformers(kind: str, norm: str, tmp_path: Path):
    folder = tiny.save_speech(tmp_path / kind, kind, norm)
    model = hf.AutoModel.from_pretrained(folder).eval()
    clip = _clip(9000) + 0.2
    inputs = hf.AutoFeatureExtractor.from_pretrained(folder)(clip.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        expected = model(inputs["input_values"]).last_hidden_state
    features = _features_of(Speech(str(folder)), clip)
    assert_close(features.frames, expected, atol=1e-5, rtol=1e-4)
    assert_close(features.pooled, expected.mean(1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("params", "normalize"), [(tiny.SPEECH, False), (tiny.SPEECH_LAYER, True), (tiny.WAVLM, False)]
)
def test_speech_is_the_bundle_of_torchaudio(
    params: dict[str, Any], normalize: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kind = "WavLM" if params is tiny.WAVLM else "Wav2Vec2"
    home = tmp_path / "hub" / "checkpoints"
    home.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file, config = tiny.save_speech_file(home / "tiny_whisper.pth", kind, params, normalize)
    bundle = Wav2Vec2Bundle("tiny_whisper.pth", params, 16000, normalize, kind)
    monkeypatch.setattr(torchaudio.pipelines, "TINY", bundle, raising=False)
    clip = _clip(9000) + 0.2
    with torch.no_grad():
        expected = bundle.get_model()(clip[None])[0]
    encoder = Speech("TINY")
    assert_close(_features_of(encoder, clip).frames, expected, atol=1e-5, rtol=1e-4)
    for loaded in (Speech(str(file), config=str(config)), Speech(str(file), config="TINY")):
        assert_close(_features_of(loaded, clip).frames, _features_of(encoder, clip).frames)
        assert loaded.identity.sha256 == encoder.identity.sha256


def test_both_libraries_load_the_same_speech_model(tmp_path: Path):
    folder = tiny.save_speech(tmp_path / "hubert", "hubert", "group")
    imported = import_huggingface_model(hf.HubertModel.from_pretrained(folder))
    clip = _clip(9000)
    with torch.no_grad():
        expected = imported.eval()(clip[None])[0]
    assert_close(_features_of(Speech(str(folder)), clip).frames, expected, atol=1e-5, rtol=1e-4)


def test_speech_errors_name_the_remedy(tmp_path: Path):
    file, config = tiny.save_speech_file(tmp_path / "weights.pt", "Wav2Vec2", tiny.SPEECH)
    wrong = json.loads(config.read_text())
    wrong["params"]["encoder_embed_dims"] = 3
    (tmp_path / "misspelt.json").write_text(json.dumps(wrong))
    (tmp_path / "other.json").write_text(json.dumps({"type": "Conformer", "params": {}}))
    for path, option, message in (
        (file, None, "need one"),
        (file, "WAV2VEC2_BOSE", "WAV2VEC2_BOSE"),
        (file, str(tmp_path / "misspelt.json"), "encoder_embed_dims"),
        (file, str(tmp_path / "other.json"), "Wav2Vec2, WavLM"),
        (file, "HUBERT_BASE", "HUBERT_BASE"),
        (tmp_path / "absent.pt", str(config), "absent.pt"),
    ):
        with pytest.raises(InputError, match=message) as error:
            Speech(str(path), config=option)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="near it: WAV2VEC2_BASE"):
        Speech("WAV2VEC2_BOSE")


@pytest.mark.parametrize(("kind", "write"), [(Whisper, tiny.save_whisper), (AST, tiny.save_ast)])
def test_weights_that_are_not_used_are_not_loaded(kind: Any, write: Any, tmp_path: Path):
    folder = write(tmp_path / "model")
    encoder = Whisper(str(folder), long="cut") if kind is Whisper else AST(str(folder))
    long = Waveform(_clip(16000 * 20).numpy(), 16000)
    read = encoder.preprocess(long, 1.0, None)
    assert len(read) < 16000 * 2.2
    part, whole = _features_of(encoder, read), _features_of(encoder, _clip(16000 * 20)[16000:])
    assert_close(part.frames, whole.frames, atol=1e-6, rtol=1e-6)
    assert len(encoder.preprocess(long, 1.0, 1.5)) == 8000


def test_options_that_do_not_exist_are_refused(tmp_path: Path):
    wrong: Any = "loop"
    with pytest.raises(InputError, match="long: 'loop' is none of join, cut"):
        Whisper(str(tmp_path), long=wrong)
    with pytest.raises(InputError, match="window: 'loop' is none of sound, whole, filled"):
        Whisper(str(tmp_path), window=wrong)
    with pytest.raises(InputError, match="long: 'loop'"):
        Clap(str(tmp_path), long=wrong)
