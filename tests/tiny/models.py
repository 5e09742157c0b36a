"""Small whole models: random frozen parts of the real classes on disk and random mappers, joined in a PrefixLM."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.vit import ViT
from mmprefix.encoders.whisper import Whisper
from mmprefix.generation.options import GenerateOptions
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.resampler import Resampler
from mmprefix.model import Branch, PrefixLM
from mmprefix.saved_model import ModelSettings, TrainingRecord
from mmprefix.types import Candidate
from tiny import decoders as tiny_decoders
from tiny import encoders as tiny_encoders

RATE = 16000
OPTIONS = GenerateOptions(max_new_tokens=8)


def frozen_parts(folder: Path) -> dict[str, Path]:
    """Paths of a vision model (image), a Whisper (audio) and a GPT-2 (decoder), which are written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    parts = {
        "image": tiny_encoders.save_vision(folder / "image", "dinov2"),
        "audio": tiny_encoders.save_whisper(folder / "audio"),
    }
    tiny_decoders.save_decoder(folder / "decoder")
    return {**parts, "decoder": folder / "decoder"}


def build_model(parts: dict[str, Path], *names: str) -> PrefixLM:
    """Model with the branches ``names`` (image, audio); its mappers are random, from a fixed seed."""
    branches: dict[str, Branch] = {}
    torch.manual_seed(1)
    for name in names:
        encoder = ViT(str(parts[name])) if name == "image" else Whisper(str(parts[name]))
        image, audio = partial(Resampler, length=3, heads=2), partial(MLP, length=4, hidden=16)
        branches[name] = Branch(encoder, image if name == "image" else audio)
    model = PrefixLM(branches, CausalDecoder(str(parts["decoder"])))
    with torch.no_grad():
        for (
            parameter
        ) in model.mappers.parameters():  # newly initialised mappers give nearly the same prefix for all inputs
            parameter.add_(torch.randn(parameter.shape) * 0.4)
    return model


def save_model(directory: Path, parts: dict[str, Path], *names: str, options: GenerateOptions = OPTIONS) -> Path:
    """Save the model of ``build`` to ``directory`` as training does, and return ``directory``."""
    settings = ModelSettings(options, "", TrainingRecord(["train.jsonl"], figures={"cider_d": 1.25}))
    Predictor(build_model(parts, *names), settings).save(directory)
    return directory


def tone(seconds: float, pitch: float, rate: int = RATE) -> np.ndarray:
    """Two partials that rise and fall (S,), float32."""
    t = np.arange(round(seconds * rate)) / rate
    loudness = 0.6 * np.sin(np.pi * t / seconds)
    return (loudness * (np.sin(2 * np.pi * pitch * t) + 0.3 * np.sin(7 * pitch * t))).astype(np.float32)


def sound_bytes(values: np.ndarray, rate: int = RATE, container: str = "WAV") -> bytes:
    """Bytes of a sound file with ``values`` (S,)."""
    stream = io.BytesIO()
    soundfile.write(stream, values, rate, format=container)
    return stream.getvalue()


def random_picture(seed: int) -> Image.Image:
    """Random blocks of colour, 48 by 40 pixels."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1))


def media_files(folder: Path) -> list[Path]:
    """Five sounds of different lengths and four pictures, in mixed order."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for number, seconds in enumerate((0.31, 1.9, 0.8, 2.7, 1.2)):
        sound = folder / f"sound{number}.wav"
        sound.write_bytes(sound_bytes(tone(seconds, 200.0 + 170 * number)))
        files.append(sound)
        if number < 4:
            files.append(folder / f"picture{number}.png")
            random_picture(number).save(files[-1])
    return files


def assert_same_candidates(
    actual: list[list[Candidate]], expected: list[list[Candidate]], tolerance: float = 1e-4
) -> None:
    """Assert equal texts in equal order, and scores that differ by less than ``tolerance``."""
    assert [[c.text for c in row] for row in actual] == [[c.text for c in row] for row in expected]
    scores = [[[c.score for c in row] for row in rows] for rows in (actual, expected)]
    assert np.abs(np.array(scores[0]) - np.array(scores[1])).max() < tolerance
