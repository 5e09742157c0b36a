"""PairData in a Trainer: each row once an epoch, all rows in evaluation, bad rows and options refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from mmprefix.data.pairs import PairData
from mmprefix.errors import InputError
from mmprefix.types import Batch
from tiny.pairs import Learner, alone, data, quietly, trainer, write_sounds
from tiny.readers import RATE

pytestmark = quietly


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("sounds"))


class RecordingLearner(Learner):
    """Learner that writes its ids to a file per process; its buffer makes DDP communicate in evaluation too."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.register_buffer("scale", torch.ones(()))

    def note(self, kind: str, batch: Batch) -> None:
        with (self.folder / f"{kind}{self.global_rank}.jsonl").open("a") as stream:
            stream.write(json.dumps(batch.ids) + "\n")

    def training_step(self, batch: Batch, number: int) -> Tensor:
        self.note("train", batch)
        return super().training_step(batch, number)

    def validation_step(self, batch: Batch, number: int) -> None:
        self.note("val", batch)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_processes_share_the_rows(tmp_path: Path, sounds: Path) -> None:
    run = trainer(tmp_path, strategy="ddp_fork", devices=2, max_epochs=2)
    run.fit(RecordingLearner(tmp_path), datamodule=data(sounds, batch_size=3, eval_batch_size=2))

    def steps(kind: str, rank: int) -> list[list[str]]:
        return [json.loads(line) for line in (tmp_path / f"{kind}{rank}.jsonl").read_text().splitlines()]

    for kind, names in (("train", range(19)), ("val", range(19, 24))):
        both = [steps(kind, rank) for rank in (0, 1)]
        assert len(both[0]) == len(both[1])
        half = len(both[0]) // 2
        for epoch in (slice(0, half), slice(half, None)):
            seen = [name for share in both for ids in share[epoch] for name in ids]
            assert len(seen) == len(set(seen))
            left_out = {f"s{number}" for number in names} - set(seen)
            assert len(left_out) == (1 if kind == "train" else 0)  # 19 rows in steps of 6: the last would have one row


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lightnings_distributed_sampler_is_refused(tmp_path: Path, sounds: Path) -> None:
    run = trainer(tmp_path, strategy="ddp_fork", devices=2, use_distributed_sampler=True)
    with pytest.raises(Exception, match=r"trainer\.use_distributed_sampler true in several processes: give false"):
        run.fit(Learner(), datamodule=data(sounds))


def test_validation_test_and_prediction(tmp_path: Path, sounds: Path) -> None:
    module, run = Learner(), trainer(tmp_path)
    run.validate(module, datamodule=data(sounds), verbose=False)
    assert sorted(name for ids in module.evaluated for name in ids) == ["s19", "s20", "s21", "s22", "s23"]
    predicted: Any = run.predict(module, datamodule=PairData(predict=str(sounds / "manifest.jsonl"), batch_size=7))
    assert predicted is not None
    assert [name for ids in predicted for name in ids] == [f"s{number}" for number in range(24)]
    with pytest.raises(InputError, match=r"no row to test on: give data\.test FILE"):
        run.test(Learner(), datamodule=data(sounds), verbose=False)


def test_training_without_validation_rows(tmp_path: Path, sounds: Path) -> None:
    module = Learner()
    pairs = PairData(train=str(sounds / "manifest.jsonl"), where={"split": "train"}, batch_size=4)
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=pairs)
    assert len(module.steps) == 5


def test_training_draws_nothing_from_the_global_generators(sounds: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (0, 1):
        assert len(list(alone(sounds, num_workers=workers).train_dataloader())) == 5
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------------------------ faults


@pytest.fixture
def faulty(tmp_path: Path, sounds: Path) -> Path:
    """Ten rows: 3 is a text file, 5 has no caption, 7 no file, 9 broken samples (seen only in decoding)."""
    (tmp_path / "text.wav").write_text("no sound" * 50)
    soundfile.write(tmp_path / "late.flac", np.random.default_rng(0).uniform(-0.1, 0.1, 9000), RATE)
    flac = (tmp_path / "late.flac").read_bytes()
    (tmp_path / "late.flac").write_bytes(flac[: len(flac) // 2])
    files = {3: "text.wav", 7: "none.wav", 9: "late.flac"}
    lines = []
    for line in range(1, 11):
        row = {"id": f"r{line}", "audio": files.get(line, str(sounds / f"{line}.wav")), "split": "train"}
        lines.append(json.dumps(row if line == 5 else {**row, "captions": ["c"]}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_bad_rows_stop_before_the_first_step(faulty: Path) -> None:
    module = Learner()
    with pytest.raises(InputError) as caught:
        trainer(faulty).fit(module, datamodule=data(faulty))
    assert module.steps == []
    head, *lines = str(caught.value).splitlines()
    assert head.startswith("3 bad rows")
    manifest = faulty / "manifest.jsonl"
    assert [line.removeprefix(str(manifest))[:18] for line in lines] == [
        ":3: " + str(faulty)[:14],
        ":5: no caption",
        ":7: audio: " + str(faulty)[:7],
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_skipped_and_counted(faulty: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    module = Learner()
    with caplog.at_level("WARNING", logger="mmprefix"):
        trainer(faulty, max_epochs=2).fit(module, datamodule=data(faulty, on_bad="skip", num_workers=workers))
    for epoch in (module.steps[:2], module.steps[2:]):
        assert sorted(name for ids in epoch for name in ids) == ["r1", "r10", "r2", "r4", "r6", "r8"]
    assert "3 bad rows left out" in caplog.text
    assert "rows left out because their files could not be decoded: 1" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_decoding_is_reported_with_file_and_line(faulty: Path, workers: int) -> None:
    lines = (faulty / "manifest.jsonl").read_text().splitlines()
    (faulty / "manifest.jsonl").write_text("\n".join(line for line in lines if '"r9"' in line or '"r1"' in line))
    with pytest.raises(InputError, match=r"manifest\.jsonl:2: .*late\.flac") as caught:
        trainer(faulty).fit(Learner(), datamodule=data(faulty, num_workers=workers))
    assert "\n" not in str(caught.value)


def test_impossible_options_are_refused_by_name(tmp_path: Path, sounds: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 0}, "data.batch_size 0"),
        ({"eval_batch_size": -1}, "data.eval_batch_size -1"),
        ({"max_captions": 0}, "data.max_captions 0"),
        ({"num_workers": -2}, "data.num_workers -2"),
        ({"on_bad": "warn"}, "data.on_bad 'warn'"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            data(sounds, **options)
    with pytest.raises(InputError, match=r"no data: give data\.root"):
        PairData()
    with pytest.raises(InputError, match=r"there is no train\.jsonl, val\.jsonl, test\.jsonl or manifest\.jsonl"):
        alone(tmp_path)
    with pytest.raises(InputError, match=r"columns \(audio\) feed none of the model's branches \(image\)"):
        alone(sounds, ("image",))
    with pytest.raises(InputError, match=r"no row has split = train and label = dog"):
        alone(sounds, where={"label": "dog"})
    with pytest.raises(InputError, match="make no batch"):
        alone(sounds, drop_last=True, batch_size=20).train_dataloader()
    with pytest.raises(InputError, match=r"set data\.inputs"):
        data(sounds).setup("fit")
    with pytest.raises(InputError, match=r"overfit_batches.*limit_train_batches"):
        trainer(tmp_path, overfit_batches=2).fit(Learner(), datamodule=data(sounds))
