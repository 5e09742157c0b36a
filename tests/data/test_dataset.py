"""Rows → batches: padding, kinds of input, captions and users."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmprefix.data.collate import collate
from mmprefix.data.sample import Sample
from mmprefix.data.samplers import BucketSampler
from mmprefix.types import Media
from tiny.pairs import alone, quietly, write_sounds

pytestmark = quietly


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("sounds"))


def test_collate_pads_sounds_and_stacks_pictures() -> None:
    samples = [
        Sample({"audio": torch.ones(5), "image": torch.zeros(3, 2, 2)}, "p", ["a", "b"], "", "x", "x.wav", user="u"),
        Sample({"audio": torch.ones(3), "image": torch.ones(3, 2, 2)}, "", [], "c", "y", "y.wav"),
    ]
    batch = collate(samples)
    audio, image = batch.inputs["audio"], batch.inputs["image"]
    assert isinstance(audio, Media)
    assert isinstance(image, Media)
    assert audio.values.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert audio.lengths.tolist() == [5, 3]
    assert image.values.shape == (2, 3, 2, 2)
    assert image.lengths.tolist() == [1, 1]
    assert (batch.prompts, batch.targets, batch.contexts) == (["p", ""], [["a", "b"], []], ["", "c"])
    assert (batch.ids, batch.sources, batch.users) == (["x", "y"], ["x.wav", "y.wav"], ["u", ""])


def test_pictures_and_sounds_in_one_manifest(tmp_path: Path, sounds: Path) -> None:
    lines = []
    for number in range(12):
        row: dict[str, Any] = {"target": "t", "split": "train", "audio": str(sounds / f"{number}.wav")}
        if number % 3 == 0:
            row["image"] = f"{number}.png"
        if number % 3 == 1:
            row = {"target": "t", "split": "train", "image": f"{number}.png", "prompt": "look:"}
        lines.append(json.dumps(row))
        Image.new("RGB", (9, 9), "red").save(tmp_path / f"{number}.png")
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    batches = list(alone(tmp_path, ("image", "audio"), prompt="say:", batch_size=3).train_dataloader())
    assert sorted(tuple(sorted(batch.inputs)) for batch in batches) == [
        ("audio",), ("audio",), ("audio", "image"), ("audio", "image"), ("image",), ("image",),
    ]  # fmt: skip
    assert {prompt for batch in batches for prompt in batch.prompts if "audio" in batch.inputs} == {"say:"}
    assert {prompt for batch in batches for prompt in batch.prompts if "audio" not in batch.inputs} == {"look:"}
    only = alone(tmp_path, ("image",))
    assert len(only.rows["train"].examples) == 8  # rows that are sound alone have nothing for this model


def test_captions_are_drawn_each_epoch_and_equally_in_workers(sounds: Path) -> None:
    def drawn(workers: int) -> list[dict[str, list[str]]]:
        loader: Any = alone(sounds, max_captions=1, num_workers=workers).train_dataloader()
        epochs = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            batches = list(loader)
            epochs.append(
                {name: text for batch in batches for name, text in zip(batch.ids, batch.targets, strict=True)}
            )
        return epochs

    alike, first = drawn(2), drawn(0)
    assert alike == first
    assert first[0] != first[1]
    assert all(len(texts) == 1 for epoch in first for texts in epoch.values())


def test_loader_and_dataset_are_pickled_to_spawned_workers(sounds: Path) -> None:
    pairs = alone(sounds)
    copy = pickle.loads(pickle.dumps(pairs.train_dataloader().dataset))
    draw = BucketSampler(pairs.rows["train"].keys, 4).batches(0)[0]
    assert copy[draw].ids == [pairs.rows["train"].examples[row].id for row in draw.rows]


def test_the_column_user_reaches_the_batch(tmp_path: Path, sounds: Path) -> None:
    rows = [{"id": str(n), "audio": str(sounds / f"{n}.wav"), "target": "t", "split": "train"} for n in range(6)]
    rows = [row | ({"user": f"user {n}"} if n % 2 else {}) for n, row in enumerate(rows)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    batches = list(alone(tmp_path, batch_size=3).train_dataloader())
    users = {name: user for batch in batches for name, user in zip(batch.ids, batch.users, strict=True)}
    assert users == {str(n): f"user {n}" if n % 2 else "" for n in range(6)}
