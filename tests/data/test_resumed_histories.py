"""A file of earlier texts that changes between a checkpoint and the run that goes on from it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from mmprefix.data.histories import add_histories
from mmprefix.data.manifest import Example
from mmprefix.data.pairs import PairData
from mmprefix.data.resume import RunPosition, order_fingerprint
from mmprefix.errors import InputError
from mmprefix.prompt_template import PromptTemplate
from tiny.pairs import Learner, quietly, trainer, write_sounds

pytestmark = [*quietly, pytest.mark.filterwarnings("ignore:.*KeyboardInterrupt")]
WORDING = PromptTemplate(context="{context}\n", history="{history}\n")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sounds(tmp_path_factory.mktemp("sounds"))
    manifest = folder / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps({**row, "user": "ann"}) + "\n" for row in rows))
    return folder


def learner(stop_after: int | None = None) -> Learner:
    module = Learner(stop_after=stop_after)
    module.inputs = replace(module.inputs, wording=WORDING)
    return module


def data_of(sounds: Path, file: Path, *texts: str, **options: float) -> PairData:
    file.write_text(json.dumps({"user": "ann", "history": texts}) + "\n")
    return PairData(root=str(sounds), batch_size=4, seed=3, histories=str(file), **options)  # type: ignore[arg-type]


def stopped(folder: Path, sounds: Path, *texts: str, every: int) -> Path:
    """Checkpoint of a run that stopped in the third step of its second epoch of five."""
    save = ModelCheckpoint(folder, every_n_train_steps=every, save_last=True, save_top_k=0)
    with pytest.raises(SystemExit):
        trainer(folder, save).fit(learner(7), datamodule=data_of(sounds, folder / "users.jsonl", *texts))
    return folder / "last.ckpt"


def test_changed_texts_are_refused_within_an_epoch(tmp_path: Path, sounds: Path) -> None:
    checkpoint = stopped(tmp_path, sounds, "a dog", "a cat", every=2)
    changed = data_of(sounds, tmp_path / "users.jsonl", "a dog", "a cow")
    message = r"data\.histories .*users\.jsonl: was 38 texts \(\w+\), is 38 texts \("
    with pytest.raises(InputError, match=message) as error:
        trainer(tmp_path).fit(learner(), datamodule=changed, ckpt_path=checkpoint)
    assert "give what was, or a checkpoint from an epoch's end" in str(error.value)
    other = data_of(sounds, tmp_path / "users.jsonl", "a dog", "a cat", history_dropout=0.5)
    with pytest.raises(InputError, match=r"data\.history_dropout was 0\.0, is 0\.5"):
        trainer(tmp_path).fit(learner(), datamodule=other, ckpt_path=checkpoint)
    again = learner()
    moved = data_of(sounds, tmp_path / "moved.jsonl", "a dog", "a cat")  # the same texts in another file
    trainer(tmp_path).fit(again, datamodule=moved, ckpt_path=checkpoint)
    assert len(again.steps) == 15 - 6


def test_changed_texts_are_read_from_an_epochs_end_on(
    tmp_path: Path, sounds: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = stopped(tmp_path, sounds, "a dog", every=5)
    changed, module = data_of(sounds, tmp_path / "users.jsonl", "a cow"), learner()
    with caplog.at_level(logging.WARNING, "mmprefix"):
        trainer(tmp_path).fit(module, datamodule=changed, ckpt_path=checkpoint)
    assert len(module.steps) == 10
    (line,) = [record.getMessage() for record in caplog.records if "other data" in record.getMessage()]
    assert "users.jsonl: was 19 texts" in line


def test_checkpoints_of_earlier_versions_go_on() -> None:
    """They do not say what the earlier texts were."""
    rows = add_histories([Example("a", {}, ("one",), user="ann", line=1)], {"ann": ("a dog",)})
    now = order_fingerprint(rows, 1, {"history_dropout": 0.0})
    assert now["data.histories"].startswith("1 texts (")
    assert now["content"] == order_fingerprint([Example("a", {}, ("one",), line=1)], 1, {})["content"]
    before = {name: value for name, value in now.items() if not name.startswith("data.")}
    position = RunPosition()
    position.load_state_dict({"epoch": 1, "batches": 2, "total": 7, "content": before})

    class Batches:
        def __len__(self) -> int:
            return 5

        def __iter__(self) -> Iterator[int]:
            return iter(range(5))

        def set_epoch(self, epoch: int, skip: int = 0) -> None:
            self.first = (epoch, skip)

    batches = Batches()
    sampler = position.sampler(batches, trainer(Path(".")), now)
    assert sampler.position() == (1, 2)
