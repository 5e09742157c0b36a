"""Data module of the tiny world: its files are made at the first start and reused afterwards."""

from __future__ import annotations

from typing import Any

from mmprefix.world.generate import SPLITS, make, make_samples
from mmprefix.world.made_data import MadeData
from mmprefix.world.scenes import Medium


class WorldData(MadeData):
    """Scenes, written to ``directory`` as png, wav and manifests, and read like any other data.

    Args:
        directory: folder of manifests and files, reused if made with the same numbers.
        samples: folder of twelve held-out scenes of each kind to try the model on; None: no such folder.
        kinds: "image", "audio" or both: one for each branch of the model.
        scenes: training scenes of each kind.
        val_scenes: validation scenes of each kind, of known combinations.
        test_scenes: test scenes of each kind, of held-out combinations.
        captions_each: captions of each training scene.
        batch_size: scenes per batch in training.
        eval_batch_size: scenes per batch in evaluation; None: as in training.
        num_workers: processes that read files; 0: only the main process.
        seed: seed of the scenes and of their order.
        max_captions: captions per scene and epoch, drawn anew each epoch; None: all.
    """

    def __init__(  # noqa: PLR0913 (options of a recipe)
        self,
        *,
        directory: str = "runs/quickstart/data",
        samples: str | None = "runs/quickstart/samples",
        kinds: tuple[Medium, ...] = ("image", "audio"),
        scenes: int = 1500,
        val_scenes: int = 50,
        test_scenes: int = 150,
        captions_each: int = 4,
        batch_size: int = 16,
        eval_batch_size: int | None = 50,
        num_workers: int = 0,
        seed: int = 0,
        max_captions: int | None = None,
    ) -> None:
        batches: dict[str, Any] = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "seed": seed}
        batches |= {"num_workers": num_workers, "max_captions": max_captions}
        super().__init__(directory, SPLITS, **batches)
        self.samples, self.kinds, self.captions_each = samples, kinds, captions_each
        self.counts = (scenes, val_scenes, test_scenes)

    def prepare_data(self) -> None:
        """Make the scenes that are missing; Lightning calls this in one process only."""
        train, val, test = self.counts
        options = {"captions_each": self.captions_each, "seed": self.seed}
        make(self.directory, self.kinds, train=train, val=val, test=test, **options)
        if self.samples is not None:
            make_samples(self.samples, self.kinds, seed=self.seed)
