"""Notes of a scene told in a manner that the frozen decoder was not shown: the task that prefix methods share.

The decoder knows notes ("large red circle small blue square row") and plain captions of them. Here pictures are told
in the words of sounds and sounds in those of pictures: "first a large red circle and then a small blue square". All
skills are there; which of them to use is what a method has to bring out. ``benchmarks/studies/methods.py`` compares.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mmprefix.world.generate import SPLITS
from mmprefix.world.grammar import captions, notes
from mmprefix.world.made_data import MadeData
from mmprefix.world.make_once import make_once
from mmprefix.world.scenes import Medium, Picture, Scene, sample

MANNERS: dict[Medium, str] = {
    "image": "tell the picture like a sound",
    "audio": "tell the sound like a picture",
}
_FORMS = {
    ("image", 1): "there is {a} and nothing else",
    ("image", 2): "first {a} and then {b}",
    ("audio", 1): "{a} in the centre",
    ("audio", 2): "{a} on the left and {b} on the right",
}


def in_manner(scene: Scene) -> str:
    """Caption of ``scene`` in the manner of its medium."""
    if isinstance(scene, Picture):
        medium, parts = "image", [f"a {thing.size} {thing.colour} {thing.shape}" for thing in scene.things]
    else:
        medium, parts = "audio", [f"a {event.length} {event.pitch} {event.kind}" for event in scene.events]
    return _FORMS[medium, len(parts)].format(**dict(zip("ab", parts, strict=False)))


Manner = Literal["swapped", "plain"]


def rows(split: str, count: int, seed: int = 0, manner: Manner = "swapped") -> list[dict[str, Any]]:
    """Rows of a manifest, pictures and sounds in turn: notes as context, one caption; who tells it, how, and examples.

    Scenes of the test are of combinations that are in no other split. ``examples`` shows two other scenes told so.
    ``manner`` plain gives the first plain caption instead.
    """
    order = 3 * seed + SPLITS.index(split)
    media: tuple[Medium, Medium] = ("image", "audio")
    scenes = {medium: list(islice(sample(medium, order, new=split == "test"), count // 2 + 2)) for medium in media}
    shown = {medium: list(islice(sample(medium, 3 * seed + 10_000, new=False), 2)) for medium in media}
    result: list[dict[str, Any]] = []
    for number in range(count):
        medium = media[number % 2]
        scene = scenes[medium][number // 2]
        examples = "; ".join(f"{notes(other).strip()}: {in_manner(other)}" for other in shown[medium])
        result.append(
            {
                "id": f"{split}-{number:04d}",
                "context": notes(scene).strip(),
                "captions": [in_manner(scene) if manner == "swapped" else captions(scene)[0]],
                "user": medium,
                "description": MANNERS[medium],
                "instruction": MANNERS[medium],
                "examples": examples,
            }
        )
    return result


class MannersData(MadeData):
    """Scenes told in a manner of their medium, written to ``directory`` as manifests and read like any other data.

    Args:
        directory: folder of the manifests, reused if made with the same numbers.
        scenes: training rows.
        val_scenes: validation rows, of known combinations.
        test_scenes: test rows, of held-out combinations.
        manner: "swapped", or "plain" for another task of the same rows.
        batch_size: rows per batch in training.
        eval_batch_size: rows per batch in evaluation; None: as in training.
        bucket: rows of like length share a batch. Here length tells the medium and the number of things, so such a
            batch shows one kind of sentence only.
        seed: of the order of the rows.
        scenes_seed: of the scenes.
    """

    def __init__(  # noqa: PLR0913 (options of a recipe)
        self,
        *,
        directory: str = "runs/manners/data",
        scenes: int = 256,
        val_scenes: int = 64,
        test_scenes: int = 200,
        manner: Manner = "swapped",
        batch_size: int = 16,
        eval_batch_size: int | None = 50,
        bucket: bool = True,
        seed: int = 0,
        scenes_seed: int = 0,
    ) -> None:
        batches: dict[str, Any] = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "bucket": bucket}
        super().__init__(directory, SPLITS, seed=seed, **batches)
        self.counts, self.scenes_seed = (scenes, val_scenes, test_scenes), scenes_seed
        self.manner: Manner = manner

    def prepare_data(self) -> None:
        """Write the manifests that are missing; Lightning calls this in one process only."""

        def write(fresh: Path) -> None:
            for split, count in zip(SPLITS, self.counts, strict=True):
                lines = "".join(json.dumps(row) + "\n" for row in rows(split, count, self.scenes_seed, self.manner))
                (fresh / f"{split}.jsonl").write_text(lines, encoding="utf-8")

        plan = {"counts": list(self.counts), "seed": self.scenes_seed, "manner": self.manner}
        make_once(self.directory, "manners.json", plan, write, what="rows")
