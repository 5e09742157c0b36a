"""Earlier texts of users in shards: in the rows, or from the file of the recipe; drawn as for manifests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mmprefix.data.model_inputs import ModelInputs
from mmprefix.data.pairs import PairData
from mmprefix.data.samplers import BatchRows
from mmprefix.errors import InputError
from mmprefix.features.stream_data import StreamData
from mmprefix.features.webdataset import write_webdataset
from mmprefix.media.source import Texts
from mmprefix.prompt_template import PromptTemplate
from tiny.captioning_system import quietly

pytest.importorskip("webdataset")
pytestmark = quietly
WORDING = PromptTemplate(context="{context}\ngoal: ", history="{history}\n--\n", history_texts=2)
OWN = [f"ann wrote {number}" for number in range(6)]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows of ann, whose captions are among her texts, one with texts of its own, of bo and of nobody."""
    ann = [{"context": f"plan {number}", "user": "ann", "captions": [OWN[number]]} for number in range(3)]
    ann += [{"context": "plan 3", "user": "ann", "captions": ["x"], "history": ["of", "its", "own"]}]
    others = [{"context": "plan b", "user": "bo", "captions": ["b"]}, {"context": "plan c", "captions": ["c"]}]
    write(tmp_path / "train.jsonl", [*ann, *others])
    write(tmp_path / "users.jsonl", [{"user": "ann", "history": OWN}])
    return tmp_path


def inputs(load: Mapping[str, Any] | None = None) -> ModelInputs:
    return ModelInputs(load or {}, kinds=dict.fromkeys(load or {}, "text"), reads_text=True, wording=WORDING)


def rows_of(folder: Path, histories: str | None, **options: Any) -> PairData:
    data = PairData(train=str(folder / "train.jsonl"), histories=histories, batch_size=3, seed=4, **options)
    data.inputs = inputs()
    data.setup("fit")
    return data


def streamed(shards: Path, epoch: int, **options: Any) -> dict[str, str]:
    """Context of each row of the shards, by id."""
    data = StreamData(str(shards), batch_size=3, seed=4, **options)
    data.inputs = inputs()
    data.setup("fit")
    loader: Any = data.train_dataloader()
    loader.stream.set_epoch(epoch)
    return {name: context for batch in loader for name, context in zip(batch.ids, batch.contexts, strict=True)}


@pytest.mark.parametrize("when", ["encoded", "streamed"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_streamed_rows_show_what_rows_of_manifests_show(folder: Path, when: str, dropout: float) -> None:
    """The file is given where the shards are written, or where they are read; a row's own column goes before it."""
    file = str(folder / "users.jsonl")
    data = rows_of(folder, file, history_dropout=dropout)
    examples = rows_of(folder, file if when == "encoded" else None).rows["train"].examples
    write_webdataset(folder / "shards", {"train": examples}, {}, encoders={}, rows=3, seed=1)
    options = {"history_dropout": dropout, **({"histories": file} if when == "streamed" else {})}
    loaded: Any = data.train_dataloader()
    shown: set[str] = set()
    for epoch in range(4):
        expected = loaded.dataset[BatchRows(epoch, [*range(6)])]
        contexts = dict(zip(expected.ids, expected.contexts, strict=True))
        assert streamed(folder / "shards", epoch, **options) == contexts
        shown |= set(contexts.values())
    assert len(shown) > 8
    assert dropout or any("own\n--\nplan 3" in context for context in shown)


def test_shards_without_users_texts_are_as_they_were(folder: Path) -> None:
    examples = rows_of(folder, None).rows["train"].examples
    write_webdataset(folder / "shards", {"train": examples[4:]}, {}, encoders={}, rows=3, seed=1)
    assert b"history" not in b"".join(file.read_bytes() for file in (folder / "shards").glob("*.tar"))


def test_a_branch_that_no_shard_feeds_is_one_line(folder: Path) -> None:
    file, load = str(folder / "users.jsonl"), {"history": read}
    examples = rows_of(folder, file).rows["train"].examples
    for name, readers in (("without", {}), ("with", load)):
        write_webdataset(folder / name, {"train": examples}, readers, encoders={}, rows=2, seed=1)
        data = StreamData(str(folder / name), batch_size=1, histories=file)
        data.inputs = inputs(load)
        if readers:
            data.setup("fit")
            assert any("history" in batch.inputs for batch in data.train_dataloader())
        else:
            with pytest.raises(
                InputError, match=r"hold nothing for the branch history; give data\.histories to mmprefix"
            ):
                data.setup("fit")


def read(source: Any, start: float, end: float | None) -> torch.Tensor:
    assert isinstance(source, Texts)
    return torch.full((len(source.texts),), 1.0)
