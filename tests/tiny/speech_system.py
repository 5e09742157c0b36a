"""Small speech system on disk: a Whisper that may be trained on four tones, a GPT-2, sounds, and recipes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import soundfile
import torch
import transformers as hf
from torch import Tensor

from tiny import decoders as tiny_decoders
from tiny import whisper as tiny_whisper
from tiny.captioning_system import QUIET_TRAINER, CaptioningSystem
from tiny.copies import copy_of

RATE = 16000
PHRASES = {"a dog barks": 200.0, "the cat runs over": 700.0, "rain falls": 1800.0, "a bell rings twice": 4000.0}
BEGINS = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")


def tone(pitch: float, seconds: float) -> np.ndarray:
    """Sine (S,), float32."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * pitch * time)).astype(np.float32)


@dataclass(frozen=True)
class SpeechSystem:
    """Folder of whisper, decoder and data; each row has a sound, three numbers, a target and a context."""

    folder: Path

    def path(self, name: str) -> str:
        """Path of a file or model in the folder: whisper, decoder, 0.wav ..."""
        return str(self.folder / name)

    def config(self, **model: Any) -> dict[str, Any]:
        """Recipe, as plain data, of a training of one step on all 8 rows; ``model`` are options of the model."""
        files = {split: [self.path(f"{split}.jsonl")] for split in ("train", "val")}
        optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
        return {
            "seed_everything": 1,
            "model": {"optimizer": optimizer, "generate": {"max_new_tokens": 4}, **model},
            "data": {"class_path": "mmprefix.data.PairData", "init_args": {**files, "batch_size": 8}},
            "trainer": {**QUIET_TRAINER, "max_epochs": 1},
        }

    def recipe(self, config: dict[str, Any], root: Path) -> Path:
        """Write ``config`` to ``root``/recipe.yaml, as ``CaptioningSystem.recipe`` does."""
        return CaptioningSystem(self.folder).recipe(config, root)


def recipe_part(name: str, **init_args: Any) -> dict[str, Any]:
    """Recipe entry of the class ``mmprefix.NAME``."""
    return {"class_path": f"mmprefix.{name}", "init_args": init_args}


def build(folder: Path, taught: bool = False) -> SpeechSystem:
    """Make parts and data in ``folder``; ``taught`` trains Whisper on ``PHRASES`` and ``noise_and_silence``."""
    copy_of(f"speech-{'taught' if taught else 'untaught'}", folder, lambda place: _make(place, taught))
    return SpeechSystem(folder)


def _make(folder: Path, taught: bool) -> None:
    tiny_whisper.save_whisper(folder / "whisper", sharp=1.0)
    tiny_decoders.save_decoder(folder / "decoder")
    rows: list[dict[str, Any]] = []
    for n in range(8):
        text, pitch = list(PHRASES.items())[n % 4]
        soundfile.write(folder / f"{n}.wav", tone(pitch * (1 + n / 100), 0.4 + 0.2 * n), RATE)
        signals = [-2.0 + n, 10.0 * (n % 3), 7.0]
        rows.append({"id": str(n), "audio": f"{n}.wav", "signals": signals, "target": text, "context": f"it is {n}"})
    for split in ("train", "val"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if taught:
        _teach(SpeechSystem(folder))


def noise_and_silence() -> dict[str, np.ndarray]:
    """Noise and silence, by the text that a taught Whisper writes for them."""
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    return {"some rain": noise, "a hill": np.zeros(RATE // 2, dtype=np.float32)}


def _teach(spoken: SpeechSystem) -> None:
    torch.manual_seed(0)
    model = cast(Any, hf.WhisperForConditionalGeneration.from_pretrained(spoken.path("whisper")))
    clips = [(text, tone(pitch, seconds)) for text, pitch in PHRASES.items() for seconds in (0.4, 1.0, 2.0)]
    clips += noise_and_silence().items()
    inputs, ids, labels = whisper_tensors(spoken, [clip for _, clip in clips], [text for text, _ in clips])

    def run() -> tuple[Tensor, float]:
        return tiny_whisper.loss_and_lead(model(input_features=inputs, decoder_input_ids=ids).logits, labels)

    tiny_whisper.train_until_clear(model, run, rate=3e-3)
    model.save_pretrained(spoken.path("whisper"))


def whisper_tensors(spoken: SpeechSystem, sounds: list[np.ndarray], texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Training input of Transformers' Whisper: spectrograms (B M F), tokens (B N), labels (B N, -100 for none)."""
    extractor = hf.WhisperFeatureExtractor.from_pretrained(spoken.path("whisper"))
    words = hf.AutoTokenizer.from_pretrained(spoken.path("whisper"))
    inputs = extractor(sounds, sampling_rate=RATE, return_tensors="pt").input_features
    begins = cast(list[int], words.convert_tokens_to_ids(list(BEGINS)))
    rows = [[*begins, *cast(list[int], words(f" {text}")["input_ids"]), 0] for text in texts]
    width = max(map(len, rows)) - 1
    ids = torch.tensor([row[:-1] + [0] * (width + 1 - len(row)) for row in rows])
    masked = [[-100] * (len(begins) - 1) + row[len(begins) :] for row in rows]
    return inputs, ids, torch.tensor([row + [-100] * (width - len(row)) for row in masked])
