"""Train the frozen parts of the embedded world: a vision model, an audio model and a decoder that have never met.

The vision model is a `SegformerModel` (https://arxiv.org/abs/2105.15203; its overlapping patches learn shapes from a
third of the pictures that a plain ViT wants), the audio model the encoder of a `WhisperModel`. Each patch and each
40 ms learn to name the attributes of the thing or event that they belong to, and its rank from left to right, top to
bottom or early to late; their mean learns to name all of it at once. The linear heads that named it are then thrown
away. The decoder is a `GPT2LMHeadModel` that has read captions, and the same in key words, and nothing else
(decoder.py). Every fourth scene holds a combination that mappers are never trained on
(mmprefix.world.held_out): frozen parts have met much, and the test is of the mapper alone.

    python recipes/pretrain/world.py --folder mmprefix/world/frozen    # about ten minutes on two cores

The shipped models were made by this program with these settings, one part a run (``--only``).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    SegformerConfig,
    SegformerModel,
    ViTImageProcessor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from mmprefix.encoders.whisper import LogMel
from mmprefix.recipes.pretrain.decoder import DecoderPlan, train_decoder
from mmprefix.recipes.pretrain.loop import LogLines, every_hundred, train
from mmprefix.world.audio import LONGEST, RATE, render
from mmprefix.world.grammar import captions, notes
from mmprefix.world.images import SIDE, draw
from mmprefix.world.labels import (
    FRAME,
    FRAME_CLASSES,
    NOTHING,
    PATCH,
    frame_labels,
    summary_classes,
    summary_labels,
)
from mmprefix.world.scenes import Medium, Picture, Scene, Sound, sample

BANDS = 64
WIDTH, LAYERS, HEADS = 128, 3, 4
log = logging.getLogger("pretrain_world")

Encode = Callable[[list[Scene]], tuple[Tensor, Tensor]]
"""Scenes → the frames (B T D) that a network has for them, and their summary (B D), the mean of the real frames."""


@dataclass(frozen=True)
class ScenePlan:
    """Training settings: ``steps`` of ``batch`` scenes; ``measure`` scenes to measure on at the end."""

    steps: int
    batch: int
    lr: float
    seed: int
    measure: int


def train_vision(folder: Path, plan: ScenePlan) -> dict[str, float]:
    """Train the vision model and write it with its image processor; returns the measures of ``_train_naming``."""
    torch.manual_seed(plan.seed)
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, LAYERS],
        hidden_sizes=[WIDTH // 4, WIDTH],
        patch_sizes=[7, 3],
        strides=[4, PATCH // 4],
        sr_ratios=[4, 1],
        num_attention_heads=[1, HEADS],
        mlp_ratios=[3, 3],
        drop_path_rate=0.0,
    )
    model = SegformerModel(config)

    def encode(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        pixels = [np.asarray(draw(scene)) for scene in scenes if isinstance(scene, Picture)]
        values = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1  # as the processor below
        frames = model(pixel_values=values).last_hidden_state.flatten(2).transpose(1, 2)  # (B D Y X) → (B T D)
        return frames, frames.mean(1)

    shares = _train_naming(model, encode, "image", plan)
    model.half().save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return shares


def train_audio(folder: Path, plan: ScenePlan) -> dict[str, float]:
    """Train the encoder of a Whisper with a window of two seconds and write it, without a decoder.

    Returns the measures of ``_train_naming``.
    """
    torch.manual_seed(plan.seed)
    model = WhisperModel(_audio_config())
    extractor = WhisperFeatureExtractor(
        feature_size=BANDS, hop_length=round(FRAME / 2 * RATE), chunk_length=round(LONGEST)
    )
    mel = LogMel(extractor)

    def encode(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        sounds = [torch.from_numpy(render(scene)) for scene in scenes if isinstance(scene, Sound)]
        waves = torch.zeros(len(sounds), round(LONGEST * RATE))
        for row, wave in zip(waves, sounds, strict=True):
            row[: len(wave)] = wave
        frames = model.encoder(mel(waves)).last_hidden_state
        lengths = torch.tensor([math.ceil(len(wave) / (FRAME * RATE)) for wave in sounds])
        real = (torch.arange(frames.shape[1]) < lengths[:, None]).float()[..., None]
        return frames, (frames * real).sum(1) / real.sum(1)

    shares = _train_naming(model.encoder, encode, "audio", plan)
    model.half()
    weights = {name: value for name, value in model.state_dict().items() if name.startswith("encoder.")}
    model.save_pretrained(folder, state_dict=weights)
    extractor.save_pretrained(folder)
    return shares


def _audio_config() -> WhisperConfig:
    return WhisperConfig(
        num_mel_bins=BANDS,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * WIDTH,
        max_source_positions=round(LONGEST / FRAME),
        decoder_layers=1,
        decoder_attention_heads=HEADS,
        decoder_ffn_dim=WIDTH,
        max_target_positions=8,
        vocab_size=8,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
    )


def _train_naming(network: nn.Module, encode: Encode, medium: Medium, plan: ScenePlan) -> dict[str, float]:
    """Train ``network`` and linear heads to name the labels of frames and of the summary; every scene is seen once.

    Returns the share of frames, and of summaries, that are named right in all their attributes, on new scenes without
    (``known``) and with (``held_out``) combinations that mappers never see.
    """
    classes, whole = FRAME_CLASSES[medium], summary_classes(medium)
    heads, summary_heads = nn.Linear(WIDTH, sum(classes)), nn.Linear(WIDTH, sum(whole))
    model = nn.ModuleList([network, heads, summary_heads])

    def named(scenes: list[Scene]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Logits and labels of frames (B T ...), and of summaries (B 1 ...)."""
        frames, summary = encode(scenes)
        labels = torch.stack([frame_labels(scene) for scene in scenes])
        summaries = torch.tensor([summary_labels(scene) for scene in scenes])[:, None]
        return (heads(frames), labels), (summary_heads(summary)[:, None], summaries)

    def loss(scenes: list[Scene]) -> Tensor:
        frames, summaries = named(scenes)
        return _naming_loss(*frames, classes) + _naming_loss(*summaries, whole)

    scenes = _mixed(medium, plan.seed)
    batches = iter(lambda: list(islice(scenes, plan.batch)), None)  # without end
    lines = LogLines(log, every_hundred(plan.steps, f"{medium} "))
    train(model, loss, batches, steps=plan.steps, schedule=_schedule(model, plan), max_norm=1.0, callbacks=[lines])
    shares = {}
    for name, new in (("known", False), ("held_out", True)):
        with torch.no_grad():
            frames, summaries = named(list(islice(sample(medium, plan.seed + 1, new), plan.measure)))
        shares[name] = _named_right(*frames, classes, counts=frames[1][..., -1] > 0)
        shares[f"{name}, summary"] = _named_right(*summaries, whole, counts=summaries[1][..., -1] >= 0)
    log.info("%s named right: %s", medium, shares)
    return shares


def _naming_loss(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Cross-entropies of all labels, added up: logits (B T sum of classes), labels (B T number of labels)."""
    parts = logits.flatten(0, 1).split(list(classes), dim=-1)
    losses = [F.cross_entropy(part, labels[..., index].flatten()) for index, part in enumerate(parts)]
    return torch.stack(losses).sum()


def _named_right(logits: Tensor, labels: Tensor, classes: Sequence[int], counts: Tensor) -> float:
    """Share of the frames (B T) in the mask ``counts`` of which every attribute that has a label is named right."""
    best = torch.stack([part.argmax(-1) for part in logits.split(list(classes), dim=-1)], dim=-1)
    right = ((best == labels) | (labels == NOTHING)).all(-1)
    return right[counts].float().mean().item()


def _schedule(model: nn.Module, plan: ScenePlan) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm-up of AdamW's learning rate over a twentieth of the steps, and a cosine down to a fiftieth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr, weight_decay=0.05)
    steps, warm = plan.steps, max(1, plan.steps // 20)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.51 + 0.49 * math.cos(math.pi * step / steps))
    )


def _mixed(medium: Medium, seed: int) -> Iterator[Scene]:
    """Scenes of which every fourth holds a combination that is held out from the mappers."""
    known, new = sample(medium, seed, new=False), sample(medium, seed, new=True)
    while True:
        yield from (next(known), next(known), next(known), next(new))


def texts(count: int, seed: int) -> Iterator[list[str]]:
    """Draw ``count`` scenes and write notes and three captions of each.

    Pictures and sounds take turns; every fourth scene of each is held out from the mappers, but not from the decoder:
    one that has never read of a combination holds it impossible, and that would decide, not the prefix.
    """
    pick = random.Random(seed)
    pictures, sounds = _mixed("image", seed), _mixed("audio", seed)
    for index in range(count):
        scene = next(sounds if index % 2 else pictures)
        yield [notes(scene), *pick.sample(captions(scene), 3)]


def train_language(folder: Path, *, steps: int, scenes: int, seed: int) -> dict[str, float]:
    """Train the decoder on captions alone."""
    plan = DecoderPlan(
        layers=4,
        heads=HEADS,
        width=WIDTH,
        vocab_size=448,
        positions=96,
        steps=steps,
        batch_tokens=2048,
        lr=3e-3,
        seed=seed,
    )
    return train_decoder(texts(scenes, seed), folder, plan)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="gets the folders vision, audio and decoder")
    parser.add_argument("--only", choices=("vision", "audio", "decoder"), help="train one of the three")
    parser.add_argument("--eye-steps", type=int, default=1600)
    parser.add_argument("--ear-steps", type=int, default=1200)
    parser.add_argument("--tongue-steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32, help="scenes a step for eye and ear")
    parser.add_argument("--measure", type=int, default=256, help="scenes that tell what eye and ear have learnt")
    parser.add_argument("--scenes", type=int, default=40_000, help="scenes whose captions the tongue reads")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    began, results = time.monotonic(), {}
    for name in (args.only,) if args.only else ("vision", "audio", "decoder"):
        folder = args.folder / name
        if name == "decoder":
            results[name] = train_language(folder, steps=args.tongue_steps, scenes=args.scenes, seed=args.seed)
        elif name == "vision":
            results[name] = train_vision(folder, ScenePlan(args.eye_steps, args.batch, 2e-3, args.seed, args.measure))
        else:
            results[name] = train_audio(folder, ScenePlan(args.ear_steps, args.batch, 1.5e-3, args.seed, args.measure))
    print(json.dumps({**results, "seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
