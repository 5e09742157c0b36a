"""Columns of context and target; rows with only a text; rows of signals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmprefix.data.model_inputs import ModelInputs
from mmprefix.data.pairs import PairData
from mmprefix.encoders.signals import Signals
from mmprefix.errors import InputError
from mmprefix.types import Batch, Media
from tiny.pairs import quietly, write_sounds
from tiny.readers import LoadSound

pytestmark = quietly


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("sounds"))


def texts(folder: Path, *rows: dict[str, Any], stage: str = "fit", reads: bool = True, **options: Any) -> PairData:
    """PairData on ``rows`` for a model of sounds that ``reads`` a context or not."""
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = {"fit": "train", "validate": "val"}.get(stage, stage)
    pairs = PairData(**{split: str(file), "batch_size": 4, "seed": 3, **options})
    pairs.inputs = ModelInputs({"audio": LoadSound()}, reads_text=reads)
    pairs.setup(stage)
    return pairs


def drawn(pairs: PairData, epoch: int) -> dict[str, Batch]:
    """Row of each id in the batches of one training epoch."""
    loader: Any = pairs.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return {name: batch for batch in loader for name in batch.ids}


def test_rows_with_only_a_text_feed_a_model_that_reads_contexts(tmp_path: Path, sounds: Path) -> None:
    rows = [
        {"id": "both", "audio": str(sounds / "1.wav"), "context": "a dog", "target": "t"},
        {"id": "text", "context": "a cat", "target": "t"},
        {"id": "sound", "audio": str(sounds / "2.wav"), "target": "t"},
        {"id": "other", "transcript": "rain", "target": "t"},
    ]
    batches = drawn(texts(tmp_path, *rows), 0)
    assert set(batches) == {"both", "text", "sound"}  # a transcript is no context, unless data.context says so
    assert [list(batches[name].inputs) for name in ("both", "text", "sound")] == [["audio"], [], ["audio"]]
    assert batches["text"] is not batches["both"] is batches["sound"]
    contexts = {n: c for batch in batches.values() for n, c in zip(batch.ids, batch.contexts, strict=True)}
    assert contexts == {"both": "a dog", "text": "a cat", "sound": ""}
    assert batches["text"].sources == [f"{tmp_path / 'texts.jsonl'}:2"]
    assert batches["both"].questions == []
    assert set(drawn(texts(tmp_path, *rows, context=["transcript", "context"]), 0)) == {
        "both",
        "text",
        "sound",
        "other",
    }
    assert set(drawn(texts(tmp_path, *rows, reads=False), 0)) == {"both", "sound"}


def test_rows_with_only_a_text_are_refused_if_nothing_reads_them(tmp_path: Path) -> None:
    row = {"id": "text", "context": "a cat", "target": "t"}
    with pytest.raises(InputError, match=r"its rows of text alone feed none of the model's branches \(audio\)$"):
        texts(tmp_path, row, reads=False)
    with pytest.raises(
        InputError, match=r"none of the model's branches \(audio\), and no row has a text in asr or said"
    ):
        texts(tmp_path, row, context=["asr", "said"])


def test_the_first_field_that_has_a_text_is_the_context(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "asr": "one", "transcript": "two", "target": "t"},
        {"id": "b", "asr": "  ", "transcript": " two ", "target": "t"},
        {"id": "c", "asr": [], "transcript": "three", "target": "t"},
        {"id": "d", "asr": ["", "four", 5], "transcript": "x", "target": "t"},
    ]
    batches = drawn(texts(tmp_path, *rows, context=["asr", "transcript"]), 0)
    contexts = {n: c for batch in batches.values() for n, c in zip(batch.ids, batch.contexts, strict=True)}
    assert contexts == {"a": "one", "b": "two", "c": "three", "d": "four"}


@pytest.mark.parametrize("field", ["asr", "context"])
def test_training_draws_one_of_several_texts_each_epoch(tmp_path: Path, field: str) -> None:
    row = {"transcript": "r", field: ["one", "two", "three"], "target": "t"}
    rows = [row | {"id": str(n)} for n in range(8)]
    pairs = texts(tmp_path, *rows, context=field)

    def contexts(data: PairData, epoch: int) -> dict[str, str]:
        batches = drawn(data, epoch)
        return {n: c for batch in batches.values() for n, c in zip(batch.ids, batch.contexts, strict=True)}

    epochs = [contexts(pairs, epoch) for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert {text for epoch in epochs for text in epoch.values()} == {"one", "two", "three"}
    assert contexts(texts(tmp_path, *rows, context=field), 1) == epochs[1]
    assert contexts(texts(tmp_path, *rows, context=field, seed=4), 1) != epochs[1]
    first = texts(tmp_path, *rows, context=field, stage="validate")
    assert {c for batch in first.val_dataloader() for c in batch.contexts} == {"one"}


def test_the_target_may_be_another_field(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "context": "x", "wake": True, "captions": ["no"]},
        {"id": "b", "context": "x", "wake": False},
        {"id": "c", "context": "x", "wake": 3},
        {"id": "d", "context": "x", "wake": 0},
        {"id": "e", "context": "x", "wake": " a word "},
    ]
    batches = drawn(texts(tmp_path, *rows, target="wake"), 0)
    written = {n: t for batch in batches.values() for n, t in zip(batch.ids, batch.targets, strict=True)}
    assert written == {"a": ["true"], "b": ["false"], "c": ["3"], "d": ["0"], "e": ["a word"]}
    labels = drawn(texts(tmp_path, *({**row, "label": row["wake"]} for row in rows), target="label"), 0)
    assert [t for batch in labels.values() for t in batch.targets] == [t for b in batches.values() for t in b.targets]


@pytest.mark.parametrize("column", ["caption", "captions", "target"])
def test_the_target_may_be_named_by_the_column_of_captions(column: str, tmp_path: Path) -> None:
    row = {"id": "a", "context": "x", column: ["no"] if column == "captions" else "no"}
    (batch,) = drawn(texts(tmp_path, row, target=column), 0).values()
    assert batch.targets == [["no"]]
    with pytest.raises(InputError, match=f"{column}: holds no text"):
        texts(tmp_path, {"id": "a", "context": "x"}, target=column)


def test_a_row_without_a_target_is_bad(tmp_path: Path) -> None:
    wrong = [{}, {"wake": None}, {"wake": " "}, {"wake": ["a"]}, {"wake": {"a": 1}}]
    rows = [{"id": str(n), "context": "x", **row} for n, row in enumerate([{"wake": True}, *wrong])]
    with pytest.raises(InputError) as error:
        texts(tmp_path, *rows, target="wake")
    first, *lines = str(error.value).splitlines()
    assert first == "5 bad rows (data.on_bad skip would leave them out)"
    message = "wake: holds no text, number or truth value to be written"
    assert lines == [f"{tmp_path / 'texts.jsonl'}:{n}: {message}" for n in range(2, 7)]
    assert len(texts(tmp_path, *rows, target="wake", on_bad="skip").rows["train"].examples) == 1
    (batch,) = texts(tmp_path, *rows, target="wake", stage="predict", batch_size=9).predict_dataloader()
    assert batch.targets == [["true"], [], [], [], [], []]


def test_signals_are_in_the_row_or_in_a_file(tmp_path: Path, sounds: Path) -> None:
    (tmp_path / "n.json").write_text("[3, 4]")
    np.save(tmp_path / "n.npy", np.array([5.0, 6.0]))
    (tmp_path / "three.json").write_text("[1, 2, 3]")
    (tmp_path / "words.json").write_text('["a", "b"]')
    good = [[1, 2], "n.json", "n.npy"]
    rows = [{"id": str(n), "signals": value, "target": "t"} for n, value in enumerate(good)]
    encoder = Signals(["first", "second"])

    def read(*more: dict[str, Any], **options: Any) -> PairData:
        (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *more]))
        pairs = PairData(train=str(tmp_path / "m.jsonl"), batch_size=9, **options)
        pairs.inputs = ModelInputs({"signals": encoder.preprocess})
        pairs.setup("fit")
        return pairs

    (batch,) = read().train_dataloader()
    media = batch.inputs["signals"]
    assert isinstance(media, Media)
    assert dict(zip(batch.ids, media.values.tolist(), strict=True)) == {"0": [1, 2], "1": [3, 4], "2": [5, 6]}
    places = {"0": f"{tmp_path / 'm.jsonl'}:1", "1": str(tmp_path / "n.json"), "2": str(tmp_path / "n.npy")}
    assert dict(zip(batch.ids, batch.sources, strict=True)) == places
    with pytest.raises(InputError, match=r"m\.jsonl:4: .*words\.json: holds no list of numbers"):
        read({"signals": "words.json", "target": "t"})
    for value, message in (([1, 2, 3], "the given numbers"), ("three.json", r".*three\.json")):
        pairs = read({"id": "bad", "signals": value, "target": "t"})
        with pytest.raises(InputError, match=rf"m\.jsonl:4: {message}: holds 3 numbers, expected 2: first, second"):
            list(pairs.train_dataloader())
    header = (tmp_path / "n.npy").read_bytes()[:128]
    (tmp_path / "huge.npy").write_bytes(header.replace(b"(2,)", b"(1000000000000000,)")[:128] + bytes(16))
    with pytest.raises(InputError, match=r"m\.jsonl:4: .*huge\.npy: holds no list of numbers \(Unable to allocate"):
        read({"signals": "huge.npy", "target": "t"})
    pairs = read({"id": "bad", "signals": [1, 2, 3], "target": "t"}, on_bad="skip")
    assert [len(batch) for batch in pairs.train_dataloader()] == [3]
