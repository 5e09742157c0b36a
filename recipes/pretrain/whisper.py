"""Train a small Whisper on speech manifests alone, where no large one can be had.

Model and tokens are those of Radford et al. 2022 (https://arxiv.org/abs/2212.04356); the folder loads as
WhisperForConditionalGeneration. An hour of speech does not teach a decoder where to attend, so the encoder also learns
to spell by CTC (Watanabe et al. 2017, https://arxiv.org/abs/1609.06773); that head is dropped at the end. Where the
text is slot values, which the speaker may name in another order, the encoder learns which words occur instead. Only rows of split `train` are trained on; weights are averaged over the last steps.

Where a run ends too early, another one with --start goes on from it.

    python recipes/pretrain/whisper.py --manifest fsdd/manifest.jsonl speech_commands_mini/manifest.jsonl --window 1.5 --clips 1 --easy 1.5 --out runs/parts/whisper_words
    python recipes/pretrain/whisper.py --manifest wakewords/manifest.jsonl --window 5.5 --clips 2 --start runs/parts/whisper_words --out runs/parts/whisper_wake
    python recipes/pretrain/whisper.py --manifest slurp_tts/manifest.jsonl ddsd_tts/manifest.jsonl --window 7.5 --clips 2 --garbled 0.3 --out runs/parts/whisper_home
    python recipes/pretrain/whisper.py --manifest barista/manifest.jsonl --window 15 --text slots --head words --clips 1 --easy 1.5 --start runs/parts/whisper_home --out runs/parts/whisper_orders
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.text import word_error_rate
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from mmprefix.errors import InputError
from mmprefix.media.audio import read_waveform
from mmprefix.recipes.pretrain import whisper_tokens
from mmprefix.recipes.pretrain.encoder import Row, read_rows
from mmprefix.recipes.pretrain.whisper_training import (
    HEADS,
    RATE,
    SEPARATOR,
    SmallWhisper,
    WhisperPlan,
    WindowSampler,
    fit,
)
from mmprefix.recipes.pretrain.whisper_windows import Filling, SpeechClip, power

log = logging.getLogger("pretrain_whisper")

HOP = 320  # samples: fifty columns, twenty-five frames a second


@dataclass(frozen=True)
class SpeechSet:
    """Rows of the manifests that have a text, by split, and their sounds."""

    rows: dict[str, list[Row]]
    waves: dict[str, list[Tensor]]
    texts: dict[str, list[str]]
    origins: dict[str, list[str]]  # the folder that each row's manifest is in


# ---------------------------------------------------------------------------------------------------------- texts


def text_of(row: Row, field: str) -> str | None:
    """Transcript of ``row`` in small letters, or its slot values in the order of the slots' names."""
    if field == "transcript":
        return row["transcript"].lower() if row.get("transcript") else None
    slots = dict(row.get("slots") or {})
    return SEPARATOR.join(slots[name].lower() for name in sorted(slots)) or None


def questions(rows: Sequence[Row]) -> list[str]:
    """Questions that may stand before a window: general ones, and one for each name of a slot in ``rows``."""
    names = sorted({name for row in rows for name in dict(row.get("slots") or {})})
    spoken = [re.sub("(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").lower() for name in names]
    return [*whisper_tokens.QUESTIONS, *(f"what is the {name}?" for name in spoken)]


def read_speech(manifests: Sequence[Path], field: str, window: float) -> SpeechSet:
    """Read the rows with a text; training clips that do not fit the window are left out.

    Raises InputError when none is left to train on.
    """
    rows: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
    waves: dict[str, list[Tensor]] = {split: [] for split in rows}
    origins: dict[str, list[str]] = {split: [] for split in rows}
    for index, manifest in enumerate(manifests):
        again = manifest in manifests[:index]
        for row in read_rows(manifest):
            split = row.get("split", "train")
            if split not in rows or text_of(row, field) is None or (again and split != "train"):
                continue
            wave = read_waveform(manifest.parent / row["audio"], RATE, row.get("start") or 0.0, row.get("end"))
            if split != "train" or len(wave) <= window * RATE:
                rows[split].append(row)
                waves[split].append(wave)
                origins[split].append(manifest.resolve().parent.name)
    if not rows["train"]:
        named = ", ".join(map(str, manifests))
        raise InputError(f"{named}: no row of split train has --text {field} and fits into --window {window} s")
    texts = {split: [text_of(row, field) or "" for row in own] for split, own in rows.items()}
    return SpeechSet(rows, waves, texts, origins)


# ---------------------------------------------------------------------------------------------------------- model


def build(tokenizer: WhisperTokenizer, options: argparse.Namespace) -> SmallWhisper:
    """Build a network of the sizes in ``options``, with random weights."""
    frames = round(options.window * RATE / HOP / 2)
    extractor = WhisperFeatureExtractor(
        feature_size=options.mels, sampling_rate=RATE, hop_length=HOP, chunk_length=math.ceil(options.window)
    )
    generation = whisper_tokens.generation(tokenizer, options.positions)
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=options.mels,
        d_model=options.width,
        encoder_layers=options.encoder_layers,
        decoder_layers=options.decoder_layers,
        encoder_attention_heads=options.heads,
        decoder_attention_heads=options.heads,
        encoder_ffn_dim=4 * options.width,
        decoder_ffn_dim=4 * options.width,
        max_source_positions=frames,
        max_target_positions=options.positions,
        dropout=options.dropout,
        init_std=options.width**-0.5,
        bos_token_id=generation.bos_token_id,
        eos_token_id=generation.eos_token_id,
        pad_token_id=generation.pad_token_id,
        decoder_start_token_id=generation.decoder_start_token_id,
    )
    network = WhisperForConditionalGeneration(config)
    network.generation_config = generation
    return SmallWhisper(network, extractor, tokenizer)


def start_from(model: SmallWhisper, folder: Path) -> int:
    """Copy the weights of another Whisper wherever the shapes agree; returns how many tensors that were.

    The embeddings of tokens are left out, unless both have the same tokens.
    """
    learnt = WhisperForConditionalGeneration.from_pretrained(folder).state_dict()
    same = WhisperTokenizer.from_pretrained(folder).get_vocab() == model.tokenizer.get_vocab()
    copied = 0
    with torch.no_grad():
        for name, value in model.network.state_dict().items():
            tokens = name.endswith(("embed_tokens.weight", "proj_out.weight"))
            if name in learnt and learnt[name].shape == value.shape and (same or not tokens):
                value.copy_(learnt[name])
                copied += 1
    return copied


# ------------------------------------------------------------------------------------------------------ measuring


def measure(model: SmallWhisper, speech: SpeechSet, split: str, most: int = 200) -> dict[str, Any]:
    """Word error rate and share of texts that are right, also per manifest; of split train only ``most`` rows count.

    Of slot values also the accuracy of each slot, and that of always answering its commonest value.
    """
    indices = list(range(len(speech.texts[split])))
    if split == "train":
        indices = sorted(random.Random(0).sample(indices, min(most, len(indices))))
    outputs = model.transcribe([speech.waves[split][index] for index in indices])
    rows = [speech.rows[split][index] for index in indices]
    texts = [speech.texts[split][index] for index in indices]
    result: dict[str, Any] = {"rows": len(outputs), **scores(outputs, texts)}
    origins = [speech.origins[split][index] for index in indices]
    for origin in sorted(set(origins)):
        own = [index for index, other in enumerate(origins) if other == origin]
        result[origin] = scores([outputs[index] for index in own], [texts[index] for index in own])
    if all(isinstance(row.get("slots"), dict) for row in rows):
        result["slots"] = slot_accuracy(outputs, rows, speech.rows["train"])
    return result


def scores(outputs: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Word error rate of ``outputs``, and the share of texts that are right as a whole."""
    right = sum(a == b for a, b in zip(outputs, texts, strict=True))
    rate = float(word_error_rate(list(outputs), list(texts)))
    return {"word_error_rate": rate, "accuracy": right / max(1, len(texts))}


def slot_accuracy(outputs: Sequence[str], rows: Sequence[Row], train: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Share of ``rows`` whose value (or its absence) is right in ``outputs``, for each slot of ``train``.

    A value in an output belongs to the slot that has it in ``train``; ``majority`` is that of its commonest value.
    """
    result = {}
    for name in sorted({name for row in train for name in row["slots"]}):
        known = Counter(row["slots"].get(name) for row in train)
        common = known.most_common(1)[0][0]
        predicted = [next((part for part in text.split(SEPARATOR) if part in known), None) for text in outputs]
        true = [row["slots"].get(name) for row in rows]
        right = sum(a == b for a, b in zip(predicted, true, strict=True)) / len(true)
        result[name] = {"accuracy": right, "majority": true.count(common) / len(true)}
    return result


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Round denormal numbers to zero, which is faster, while the block runs."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def train_whisper(options: argparse.Namespace) -> dict[str, Any]:
    """Train the model that the command line asks for, write ``options.out``, and return its `training.json`."""
    plan = WhisperPlan(**{field.name: getattr(options, field.name) for field in fields(WhisperPlan)})
    torch.manual_seed(plan.seed)
    began = time.monotonic()
    speech = read_speech(options.manifest, options.text, options.window)
    train = speech.texts["train"]
    tokenizer = whisper_tokens.make_tokenizer([*train, *(questions(speech.rows["train"]) * 5)], options.vocab_size)
    model = build(tokenizer, options)
    if options.start:
        log.info("%d tensors from %s", start_from(model, options.start), options.start)
    parameters = sum(value.numel() for value in model.network.parameters())
    log.info("%d clips to train on, %d tokens, %d parameters", len(train), len(tokenizer), parameters)
    filling = Filling(columns=model.columns, clips=options.clips, silent=options.silent)
    clips = [
        SpeechClip(power(wave, model.extractor), text) for wave, text in zip(speech.waves["train"], train, strict=True)
    ]
    clips.sort(key=lambda clip: clip.power.shape[1])
    before = [*train, *(questions(speech.rows["train"]) * 8)]
    sampler = WindowSampler(clips, before, filling, plan.garbled, model)

    def snapshot(average: SmallWhisper, step: int) -> None:
        if options.snapshot and step % options.snapshot == 0 and step < plan.steps:
            average.save(options.out)
            rate = scores(average.transcribe(speech.waves["val"]), speech.texts["val"])
            log.info("step %d: on val %s", step, json.dumps(rate))

    with flushed_denormals():
        fit(model, sampler, plan, snapshot)
    model.save(options.out)
    result = {
        "plan": asdict(plan),
        "filling": asdict(filling),
        "inputs": len(train),
        "parameters": parameters,
        "seconds": round(time.monotonic() - began),
    }
    for split in speech.rows:
        if speech.rows[split]:
            result[split] = measure(model, speech, split)
    (options.out / "training.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--manifest", type=Path, nargs="+", required=True, help="JSON lines; one named twice counts twice"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--text", choices=["transcript", "slots"], default="transcript", help="what is to be written")
    parser.add_argument("--window", type=float, required=True, help="seconds that the model hears")
    parser.add_argument("--start", type=Path, help="another small Whisper, whose weights to start from")
    parser.add_argument("--clips", type=int, default=Filling.clips, help="most clips that share a window in training")
    parser.add_argument("--silent", type=float, default=Filling.silent, help="share of windows where nobody speaks")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--encoder-layers", type=int, default=4)
    parser.add_argument("--decoder-layers", type=int, default=3)
    parser.add_argument("--mels", type=int, default=80)
    parser.add_argument("--positions", type=int, default=192, help="most tokens: previous text and what is written")
    parser.add_argument("--vocab-size", type=int, default=512)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--snapshot", type=int, default=0, help="steps after which the model so far is written, too")
    parser.add_argument(
        "--head", choices=sorted(HEADS), default=WhisperPlan.head, help="letters: CTC; words: in any order"
    )
    for field in fields(WhisperPlan):
        if field.name == "head":
            continue
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(json.dumps(train_whisper(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
