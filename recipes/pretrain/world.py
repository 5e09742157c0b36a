"""Trains the frozen parts of the embedded world: an eye, an ear and a tongue that have never met.

The eye is a `SegformerModel` (https://arxiv.org/abs/2105.15203; its overlapping patches learn shapes from a third of
the pictures that a plain ViT wants), the ear the encoder of a `WhisperModel`. Each patch and each 40 ms learn to name
the attributes of the thing or event that they belong to, and its rank from left to right, top to bottom or early to
late; their mean learns to name all of it at once. The linear heads that named it are then thrown away. The tongue is a
`GPT2LMHeadModel` that has read captions, and the same in key words, and nothing else (pretrain_decoder.py). Every
fourth scene holds a combination that mappers are never trained on (mmprefix.world.held_out): frozen parts have met
much, and what is tested is what the mapper makes of them.

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
from mmprefix.recipes.pretrain.decoder import train_decoder
from mmprefix.world.audio import LONGEST, RATE, render, spans
from mmprefix.world.grammar import captions, notes
from mmprefix.world.images import SIDE, circles, draw
from mmprefix.world.scenes import (
    COLOURS,
    KINDS,
    LENGTHS,
    PITCHES,
    PLACES,
    SHAPES,
    SIZES,
    Medium,
    Picture,
    Scene,
    Sound,
    sample,
)

PATCH = 8  # pixels
FRAME = 0.04  # seconds: two hops of the spectrogram
BANDS = 64
WIDTH, LAYERS, HEADS = 128, 3, 4
log = logging.getLogger("pretrain_world")

# The numbers of classes of a frame's heads: first attribute, second, third, and rank (0: nothing there).
EYE_HEADS = (len(SIZES), len(COLOURS), len(SHAPES), 3)
EAR_HEADS = (len(LENGTHS), len(PITCHES), len(KINDS), 3)
# Those of the summary's heads: the attributes of the first and of the second, and how they stand.
HOW = (*PLACES, "row", "column", "sound 1", "sound 2")
Look = Callable[[list[Scene]], tuple[Tensor, Tensor]]
"""Scenes → the frames (B T D) that a network has for them, and their summary (B D), the mean of the real frames."""


def picture_labels(scene: Picture) -> Tensor:
    """For each patch of ``scene``, row by row: size, colour, shape (-100 where nothing is) and rank: (64 4)."""
    grid = SIDE // PATCH
    labels = torch.tensor([-100, -100, -100, 0]).repeat(grid * grid, 1)
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    for rank, (thing, (x, y, r)) in enumerate(zip(scene.things, circles(scene), strict=True), start=1):
        apart = np.hypot(columns * PATCH + PATCH / 2 - x, rows * PATCH + PATCH / 2 - y)
        here = torch.from_numpy(apart < max(r, 0.8 * PATCH))
        row = [SIZES.index(thing.size), COLOURS.index(thing.colour), SHAPES.index(thing.shape), rank]
        labels[here] = torch.tensor(row)
    return labels


def sound_labels(scene: Sound) -> Tensor:
    """For each 40 ms of ``scene`` up to LONGEST: length, pitch, kind (-100 in silence) and rank: (50 4)."""
    labels = torch.tensor([-100, -100, -100, 0]).repeat(round(LONGEST / FRAME), 1)
    for rank, (event, (start, end)) in enumerate(zip(scene.events, spans(scene), strict=True), start=1):
        row = [LENGTHS.index(event.length), PITCHES.index(event.pitch), KINDS.index(event.kind), rank]
        labels[round(start / FRAME) : round(end / FRAME)] = torch.tensor(row)
    return labels


def summary_labels(scene: Scene) -> list[int]:
    """The attributes of the first and the second thing or event (-100 where there is none), and how they stand."""
    if isinstance(scene, Picture):
        parts = [(SIZES.index(t.size), COLOURS.index(t.colour), SHAPES.index(t.shape)) for t in scene.things]
        how = HOW.index(scene.place or scene.layout)
    else:
        parts = [(LENGTHS.index(e.length), PITCHES.index(e.pitch), KINDS.index(e.kind)) for e in scene.events]
        how = HOW.index(f"sound {len(parts)}")
    second = parts[1] if len(parts) > 1 else (-100,) * 3
    return [*parts[0], *second, how]


@dataclass(frozen=True)
class Course:
    """How eye and ear are taught: ``steps`` of ``batch`` scenes; ``measure`` scenes tell at the end what was learnt."""

    steps: int
    batch: int
    lr: float
    seed: int
    measure: int


def teach_eye(folder: Path, course: Course) -> dict[str, float]:
    """Trains the vision model and writes it with its image processor; gives what ``_teach`` measures."""
    torch.manual_seed(course.seed)
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
    eye = SegformerModel(config)

    def look(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        pixels = [np.asarray(draw(scene)) for scene in scenes if isinstance(scene, Picture)]
        values = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1  # as the processor below
        frames = eye(pixel_values=values).last_hidden_state.flatten(2).transpose(1, 2)  # (B D Y X) → (B T D)
        return frames, frames.mean(1)

    def labels(scenes: list[Scene]) -> Tensor:
        return torch.stack([picture_labels(scene) for scene in scenes if isinstance(scene, Picture)])

    found = _teach(eye, look, labels, EYE_HEADS, "image", course)
    eye.half().save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return found


def teach_ear(folder: Path, course: Course) -> dict[str, float]:
    """Trains the encoder of a Whisper with a window of two seconds; what is written has no decoder."""
    torch.manual_seed(course.seed)
    config = WhisperConfig(
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
    model = WhisperModel(config)
    extractor = WhisperFeatureExtractor(
        feature_size=BANDS, hop_length=round(FRAME / 2 * RATE), chunk_length=round(LONGEST)
    )
    mel = LogMel(extractor)

    def look(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        sounds = [torch.from_numpy(render(scene)) for scene in scenes if isinstance(scene, Sound)]
        waves = torch.zeros(len(sounds), round(LONGEST * RATE))
        for row, wave in zip(waves, sounds, strict=True):
            row[: len(wave)] = wave
        frames = model.encoder(mel(waves)).last_hidden_state
        heard = torch.tensor([math.ceil(len(wave) / (FRAME * RATE)) for wave in sounds])
        real = (torch.arange(frames.shape[1]) < heard[:, None]).float()[..., None]
        return frames, (frames * real).sum(1) / real.sum(1)

    def labels(scenes: list[Scene]) -> Tensor:
        return torch.stack([sound_labels(scene) for scene in scenes if isinstance(scene, Sound)])

    found = _teach(model.encoder, look, labels, EAR_HEADS, "audio", course)
    model.half()
    weights = {name: value for name, value in model.state_dict().items() if name.startswith("encoder.")}
    model.save_pretrained(folder, state_dict=weights)
    extractor.save_pretrained(folder)
    return found


def _teach(
    network: nn.Module,
    look: Look,
    labels: Callable[[list[Scene]], Tensor],
    classes: Sequence[int],
    medium: Medium,
    course: Course,
) -> dict[str, float]:
    """Teaches ``network`` and linear heads the ``labels`` of frames and of the summary; every scene is seen once.

    Gives the share of frames, and of summaries, that are named right in all their attributes, on new scenes without
    (``known``) and with (``held_out``) combinations that mappers never see.
    """
    heads = nn.Linear(WIDTH, sum(classes))
    told = (*classes[:3], *classes[:3], len(HOW))
    teller = nn.Linear(WIDTH, sum(told))
    values = [*network.parameters(), *heads.parameters(), *teller.parameters()]

    def summaries(scenes: list[Scene]) -> Tensor:
        return torch.tensor([summary_labels(scene) for scene in scenes])[:, None]

    optimiser = torch.optim.AdamW(values, lr=course.lr, weight_decay=0.05)
    steps, warm = course.steps, max(1, course.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, 0.51 + 0.49 * math.cos(math.pi * step / steps))
    )
    scenes, began = _mixed(medium, course.seed), time.monotonic()
    network.train()
    for step in range(steps):
        some = list(islice(scenes, course.batch))
        frames, summary = look(some)
        loss = _naming_loss(heads(frames), labels(some), classes)
        loss = loss + _naming_loss(teller(summary)[:, None], summaries(some), told)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(values, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            log.info("%s step %5d/%d  loss %.3f  %.0f s", medium, step, steps, loss.item(), time.monotonic() - began)
    network.eval()
    shares = {}
    for name, new in (("known", False), ("held_out", True)):
        some = list(islice(sample(medium, course.seed + 1, new), course.measure))
        with torch.no_grad():
            frames, summary = look(some)
        named = labels(some)
        shares[name] = _named_right(heads(frames), named, classes, named[..., -1] > 0)
        told_of = summaries(some)
        shares[f"{name}, summary"] = _named_right(teller(summary)[:, None], told_of, told, told_of[..., -1] >= 0)
    log.info("%s named right: %s", medium, shares)
    return shares


def _naming_loss(scores: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Cross-entropies of the heads, added up: scores (B T sum of classes), labels (B T heads)."""
    parts = scores.flatten(0, 1).split(list(classes), dim=-1)
    losses = [F.cross_entropy(part, labels[..., head].flatten()) for head, part in enumerate(parts)]
    return torch.stack(losses).sum()


def _named_right(scores: Tensor, labels: Tensor, classes: Sequence[int], counts: Tensor) -> float:
    """The share of places (B T), where ``counts`` says so, that are named right by all heads that have a label."""
    best = torch.stack([part.argmax(-1) for part in scores.split(list(classes), dim=-1)], dim=-1)
    right = ((best == labels) | (labels == -100)).all(-1)
    return right[counts].float().mean().item()


def _mixed(medium: Medium, seed: int) -> Iterator[Scene]:
    """Scenes of which every fourth holds a combination that is held out from the mappers."""
    known, new = sample(medium, seed, new=False), sample(medium, seed, new=True)
    while True:
        yield from (next(known), next(known), next(known), next(new))


def texts(count: int, seed: int) -> Iterator[list[str]]:
    """Notes and three captions each of ``count`` scenes, pictures and sounds in turn, every fourth one held out.

    A tongue that has never read of a combination holds it impossible, and that would decide, not what was seen.
    """
    pick = random.Random(seed)
    pictures, sounds = _mixed("image", seed), _mixed("audio", seed)
    for index in range(count):
        scene = next(sounds if index % 2 else pictures)
        yield [notes(scene), *pick.sample(captions(scene), 3)]


def teach_tongue(folder: Path, steps: int, scenes: int, lr: float, seed: int) -> dict[str, float]:
    """Trains the decoder on captions alone."""
    return train_decoder(
        texts(scenes, seed),
        folder,
        layers=4,
        heads=HEADS,
        width=WIDTH,
        vocab_size=448,
        positions=96,
        steps=steps,
        batch_tokens=2048,
        lr=lr,
        seed=seed,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see ``--help``."""
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
            results[name] = teach_tongue(folder, args.tongue_steps, args.scenes, 3e-3, args.seed)
        elif name == "vision":
            results[name] = teach_eye(folder, Course(args.eye_steps, args.batch, 2e-3, args.seed, args.measure))
        else:
            results[name] = teach_ear(folder, Course(args.ear_steps, args.batch, 1.5e-3, args.seed, args.measure))
    print(json.dumps({**results, "seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
