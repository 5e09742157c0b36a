"""Scenes written to files: png, wav and manifests. A seed determines the bytes; a folder is written whole or not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile

from mmprefix.world.audio import RATE, render
from mmprefix.world.grammar import captions
from mmprefix.world.images import draw
from mmprefix.world.make_once import make_once
from mmprefix.world.scenes import Medium, Picture, Scene, sample

SPLITS = ("train", "val", "test")


def make(
    directory: str | Path,
    kinds: Sequence[Medium] = ("image", "audio"),
    *,
    train: int = 1500,
    val: int = 100,
    test: int = 150,
    captions_each: int = 2,
    seed: int = 0,
) -> Path:
    """Write ``train``, ``val`` and ``test`` scenes of each kind to ``directory``, and return it.

    There are ``train.jsonl``, ``val.jsonl`` and ``test.jsonl`` (``id``, ``image`` or ``audio``, ``captions``,
    ``split``) and a folder of files for each. Training and validation show known combinations, the test held-out
    ones. A training row has ``captions_each`` of its captions, every other row all. A directory that was finished
    with the same numbers stays as it is; one with other numbers is made anew.

    Raises InputError when ``directory`` holds other files.
    """
    counts = {"train": train, "val": val, "test": test}

    def write(fresh: Path) -> None:
        for split, count in counts.items():
            rows: list[dict[str, object]] = []
            for kind in kinds:
                scenes = islice(sample(kind, 3 * seed + SPLITS.index(split), new=split == "test"), count)
                most = captions_each if split == "train" else None
                rows += _write(scenes, fresh, f"{split}/{kind}", split=split, most=most)
            _write_manifest(rows, fresh / f"{split}.jsonl")

    plan = {"kinds": list(kinds), **counts, "captions_each": captions_each, "seed": seed}
    return make_once(directory, "world.json", plan, write, what="world")


def make_samples(
    directory: str | Path, kinds: Sequence[Medium] = ("image", "audio"), count: int = 12, seed: int = 0
) -> Path:
    """Write ``count`` held-out scenes of each kind and their ``manifest.jsonl`` to ``directory``, and return it."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for kind in kinds:
        scenes = islice(sample(kind, 3 * seed + SPLITS.index("test"), new=True), count)
        rows += _write(scenes, directory, kind, split="test", most=None)
    _write_manifest(rows, directory / "manifest.jsonl")
    return directory


def _write(
    scenes: Iterable[Scene], directory: Path, stem: str, *, split: str, most: int | None
) -> Iterator[dict[str, object]]:
    """Write each scene to ``directory/stem-NUMBER`` and yield its row, with at most ``most`` captions (None: all)."""
    (directory / stem).parent.mkdir(exist_ok=True)
    for number, scene in enumerate(scenes):
        texts = captions(scene)
        if most is not None:
            order = np.random.default_rng(scene.seed).permutation(len(texts))
            texts = [texts[index] for index in order[:most]]
        kind, ending = ("image", "png") if isinstance(scene, Picture) else ("audio", "wav")
        file = f"{stem}-{number:04d}.{ending}"
        if isinstance(scene, Picture):
            draw(scene).save(directory / file, compress_level=1)
        else:
            soundfile.write(directory / file, render(scene), RATE, subtype="PCM_16")
        yield {"id": f"{split}-{kind}-{number:04d}", kind: file, "captions": texts, "split": split}


def _write_manifest(rows: Iterable[dict[str, object]], file: Path) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
