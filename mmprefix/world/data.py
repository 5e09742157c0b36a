"""The tiny world as a data module: its files are made at the first start and used again at the next."""

from __future__ import annotations

from pathlib import Path

from mmprefix.data.pairs import PairData
from mmprefix.world.generate import SPLITS, make, make_samples
from mmprefix.world.scenes import Medium


class WorldData(PairData):
    """Scenes written to ``directory`` as png, wav and manifests, then read like any other data.

    Args:
        directory: folder of manifests and files; those already made with the same numbers are used again.
        samples: folder of a dozen held-out scenes of each kind to try the model on; None: no such folder.
        kinds: "image", "audio" or both; one for each branch of the model.
        scenes: scenes of each kind to train on.
        val_scenes: scenes of each kind to validate on; of known combinations.
        test_scenes: scenes of each kind to test on; of held-out combinations.
        captions_each: captions of each scene to train on.
        batch_size: scenes a batch in training.
        eval_batch_size: scenes a batch elsewhere; None: as in training.
        num_workers: processes that read files; 0: the main process does.
        seed: of the scenes and of their order.
        max_captions: captions a scene and epoch, drawn anew each epoch; None: all.
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
        train, val, test = ([str(Path(directory) / f"{split}.jsonl")] for split in SPLITS)
        super().__init__(
            train=train,
            val=val,
            test=test,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            max_captions=max_captions,
        )
        self.directory, self.samples, self.kinds = directory, samples, kinds
        self.counts = (scenes, val_scenes, test_scenes)
        self.captions_each = captions_each

    def source_names(self) -> list[str]:
        """Folder of the scenes, for the model card."""
        return [self.directory]

    def prepare_data(self) -> None:
        """Make the scenes that are missing; Lightning calls this in one process only."""
        train, val, test = self.counts
        options = {"captions_each": self.captions_each, "seed": self.seed}
        make(self.directory, self.kinds, train=train, val=val, test=test, **options)
        if self.samples is not None:
            make_samples(self.samples, self.kinds, seed=self.seed)
