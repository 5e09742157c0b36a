"""Valid inputs that are mutated: media, a model between the package's own frozen parts, a run and its shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from PIL import Image

import mmprefix
from mmprefix.cli.main import main
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.vit import ViT
from mmprefix.encoders.whisper import Whisper
from mmprefix.generation.options import GenerateOptions
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.mlp import MLP
from mmprefix.model import Branch, PrefixLM
from mmprefix.saved_model import ModelSettings

RATE, SECONDS = 16000, 1.0
SOUNDS = {  # name → container and encoding of soundfile
    "pcm.wav": ("WAV", "PCM_16"), "float.wav": ("WAV", "FLOAT"), "alaw.wav": ("WAV", "ALAW"),
    "gsm.wav": ("WAV", "GSM610"), "adpcm.wav": ("WAV", "IMA_ADPCM"), "a.flac": ("FLAC", "PCM_16"),
    "a.mp3": ("MP3", "MPEG_LAYER_III"),
    "a.ogg": ("OGG", "VORBIS"), "a.opus": ("OGG", "OPUS"), "a.aiff": ("AIFF", "PCM_16"), "a.au": ("AU", "PCM_16"),
    "a.rf64": ("RF64", "PCM_16"), "a.w64": ("W64", "PCM_16"), "a.caf": ("CAF", "PCM_16"),
}  # fmt: skip
PICTURES = {
    "a.png": "PNG", "a.jpg": "JPEG", "a.webp": "WEBP", "a.gif": "GIF", "a.bmp": "BMP", "a.tif": "TIFF", "a.ppm": "PPM",
    "a.jp2": "JPEG2000", "a.ico": "ICO",
}  # fmt: skip


def make(folder: Path) -> None:
    """Write all seeds below ``folder``: media, model, packed, run, store, shards."""
    folder.mkdir(parents=True, exist_ok=True)
    _media(folder / "media")
    parts = {kind: f"mmprefix:world/frozen/{name}" for kind, name in (("image", "vision"), ("audio", "audio"))}
    save_model(parts, "mmprefix:world/frozen/decoder", folder / "model", pack=False)
    shutil.copytree(Path(mmprefix.__file__).parent / "world" / "frozen", folder / "frozen")
    parts = {kind: str(folder / "frozen" / Path(name).name) for kind, name in parts.items()}
    save_model(parts, str(folder / "frozen" / "decoder"), folder / "packed", pack=True)
    _manifests(folder)
    _run(folder)


def save_model(parts: dict[str, str], decoder: str, directory: Path, *, pack: bool) -> None:
    """Save an untrained model between ``parts`` (image, audio) and ``decoder``."""
    torch.manual_seed(0)
    mapper = partial(MLP, length=2, hidden=8)
    branches = {"image": Branch(ViT(parts["image"]), mapper), "audio": Branch(Whisper(parts["audio"]), mapper)}
    model = PrefixLM(branches, CausalDecoder(decoder))
    Predictor(model, ModelSettings(GenerateOptions(max_new_tokens=3))).save(directory, pack=pack)


def _media(folder: Path) -> None:
    folder.mkdir()
    time = np.arange(int(RATE * SECONDS)) / RATE
    values = (0.4 * np.sin(2 * np.pi * 440 * time) + 0.1 * np.random.default_rng(0).standard_normal(len(time))).clip(
        -1, 1
    )
    for name, (container, encoding) in SOUNDS.items():
        rate = 48000 if encoding == "OPUS" else RATE
        soundfile.write(folder / name, np.tile(values, rate // RATE), rate, format=container, subtype=encoding)
    blocks = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1))
    for name, form in PICTURES.items():
        picture.save(folder / name, form)


def _manifests(folder: Path) -> None:
    files = [("1", "audio", "pcm.wav"), ("2", "audio", "a.flac"), ("3", "image", "a.png"), ("4", "image", "a.jpg")]
    rows = [{"id": id_, kind: f"media/{name}", "caption": f"caption, of {id_}"} for id_, kind, name in files]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ("id", "audio", "image", "caption")
    for name, mark in (("rows.csv", ","), ("rows.tsv", "\t")):
        lines = [mark.join(f'"{row.get(key, "")}"' for key in columns) for row in rows]
        (folder / name).write_text("\n".join([mark.join(columns), *lines]) + "\n")
    (folder / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if "image" in row))


def recipe(folder: Path) -> dict[str, Any]:
    """Recipe of a training of two steps on two pictures."""
    vision, decoder = "mmprefix:world/frozen/vision", "mmprefix:world/frozen/decoder"
    rows = [str(folder / "pictures.jsonl")]
    return {
        "seed_everything": 0,
        "model": {
            "branches": {
                "image": {
                    "encoder": {"class_path": "mmprefix.encoders.vit.ViT", "init_args": {"model": vision}},
                    "mapper": {"class_path": "mmprefix.mappers.mlp.MLP", "init_args": {"length": 2, "hidden": 8}},
                }
            },
            "decoder": {"class_path": "mmprefix.decoders.CausalDecoder", "init_args": {"model": decoder}},
            "generate": {"max_new_tokens": 3},
        },
        "data": {
            "class_path": "mmprefix.data.PairData",
            "init_args": {"train": rows, "val": rows, "batch_size": 1, "num_workers": 0},
        },
        "trainer": {
            "max_epochs": 1, "accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "logger": False,
            "enable_progress_bar": False, "enable_model_summary": False,
        },
    }  # fmt: skip


def warm_up(base: Path, folder: Path) -> None:
    """Run commands over the seeds in ``base`` once: what is forked from this process then finds its imports done."""
    must(lambda: main(["caption", str(base / "model"), str(base / "media" / "a.png"), "--device", "cpu"]))
    must(lambda: main(["check-data", str(base / "pictures.jsonl"), "--workers", "1"]))
    places = ("--trainer.default_root_dir", str(folder), "--save_to", str(folder / "warm"))
    must(lambda: main(["fit", "--config", str(base / "recipe.yaml"), "--dry_run=true", *places]))


def _run(folder: Path) -> None:
    run = recipe(folder)
    run["trainer"]["default_root_dir"] = str(folder / "run")
    run["save_to"] = str(folder / "run" / "model")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(run, sort_keys=False))
    config = ("--config", str(folder / "recipe.yaml"))
    must(lambda: main(["fit", *config]))
    must(lambda: main(["encode", *config, "--cache", str(folder / "store")]))
    must(
        lambda: main(
            ["encode", *config, "--cache", str(folder / "store"), "--to", "webdataset", "--out", str(folder / "shards")]
        )
    )
    (folder / "last.ckpt").write_bytes(max((folder / "run").rglob("*.ckpt")).read_bytes())


def must(run: Callable[[], int]) -> str:
    """Standard output of ``run``; RuntimeError unless its exit code is 0."""
    out = StringIO()
    with redirect_stdout(out):
        code = run()
    if code:
        raise RuntimeError(f"a seed ended with exit code {code}: {out.getvalue()}")
    return out.getvalue()


def sound_seconds(content: bytes) -> float | None:
    """Seconds that soundfile's header reading gives for ``content``; None where it opens no sound."""
    try:
        with soundfile.SoundFile(BytesIO(content)) as sound:
            return sound.frames / sound.samplerate
    except (RuntimeError, TypeError, ValueError):
        return None


def decoded_seconds(content: bytes) -> float | None:
    """Seconds that soundfile decodes of ``content``; None where it fails."""
    try:
        values, rate = soundfile.read(BytesIO(content))
    except (RuntimeError, TypeError, ValueError, MemoryError):
        return None
    return len(values) / rate
