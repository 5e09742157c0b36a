"""CaptionScores: captions spread over batches and processes are scored as one set."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import pytest
from lightning.pytorch import LightningModule
from torch.multiprocessing.spawn import start_processes

from mmprefix.errors import InputError
from mmprefix.metrics import CaptionScores
from mmprefix.metrics.caption import caption
from tiny.caption_sets import random_set


def test_collected_scores_are_those_of_the_set() -> None:
    predictions, references = random_set(random.Random(4), 9)
    ids = [f"id{index}" for index in range(9)]
    scores = CaptionScores("none")
    scores.update(ids[5:], predictions[5:], references[5:])
    scores.update(ids[:6], predictions[:6], references[:6])  # id5 comes again
    assert scores.compute() == caption(predictions, references, "none")
    assert scores.items() == [*map(tuple, zip(ids, predictions, references, strict=True))]
    again = pickle.loads(pickle.dumps(scores))
    assert again.compute() == scores.compute()
    alone = scores(["new"], ["a dog"], [["a dog"]])
    assert alone == caption(["a dog"], [["a dog"]], "none")
    assert len(scores.items()) == 10
    scores.reset()
    assert scores.items() == []
    scores.update(["x"], ["a dog"], [["a dog"]])
    assert scores.compute()["exact_match"] == 1
    with pytest.raises(InputError, match="2 ids, 1 predictions"):
        scores.update(["x", "y"], ["a"], [["a"]])


def _process(rank: int, folder: str) -> None:
    """One of two processes: validate its share of seven examples with Lightning's sampler, twice."""
    import torch.distributed as dist
    from torch.utils.data.distributed import DistributedSampler

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    predictions, references = random_set(random.Random(6), 7)
    model = _Validating()
    ids = [f"id{index}" for index in range(7)]
    sampler = DistributedSampler(ids, num_replicas=2, rank=rank, shuffle=False)  # pyright: ignore[reportArgumentType]
    seen = []
    for _ in range(2):
        model.on_validation_epoch_start()
        for index in sampler:  # 2 x 4 places for 7 examples: one comes twice
            model.validation_step(([ids[index]], [predictions[index]], [references[index]]))
        items = model.scores.items()
        seen.append({"scores": model.scores.compute(), "ids": [item.id for item in items], "own": len(sampler)})
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


class _Validating(LightningModule):
    """LightningModule that scores the captions of its validation batches."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = CaptionScores("none")

    def on_validation_epoch_start(self) -> None:
        self.scores.reset()

    def validation_step(self, batch: tuple[list[str], list[str], list[list[str]]]) -> None:
        self.scores.update(*batch)


@pytest.mark.slow
def test_two_processes_score_every_example_once(tmp_path: Path) -> None:
    start_processes(_process, args=(str(tmp_path),), nprocs=2, start_method="fork")  # new ones would import torch
    predictions, references = random_set(random.Random(6), 7)
    whole = caption(predictions, references, "none")
    for rank in range(2):
        for epoch in json.loads((tmp_path / f"{rank}.json").read_text()):
            assert epoch["own"] == 4
            assert epoch["ids"] == [f"id{index}" for index in range(7)]
            assert epoch["scores"] == pytest.approx(whole, abs=1e-12)
