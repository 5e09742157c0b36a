"""Streaming of shards: contents, each row read once by any number of workers and processes, resuming."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from filelock import FileLock

from mmprefix.data.manifest import read_manifest
from mmprefix.data.sample import SampleOptions, sample_of_row
from mmprefix.encoders.cnn import Cnn
from mmprefix.errors import InputError
from mmprefix.features.store import FeatureStore, store_description
from mmprefix.features.streaming import (
    Stream,
    StreamedRow,
    StreamOptions,
    TarShard,
    decode_row,
    read_index,
    read_tars,
)
from mmprefix.features.webdataset import write_webdataset
from mmprefix.interrupt import Stopped, stop_signals
from mmprefix.trust.modules import allow_modules
from mmprefix.types import Batch, FeatureRow, Features
from tiny.captioning_system import (
    CaptioningSystem,
    error_message,
    metric_values,
    quietly,
    run,
    same_tensors,
    training_record,
)
from tiny.disk import full_disk

pytestmark = quietly


@pytest.fixture(scope="module")
def shards(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("encoded")
    recipe, options = tiny.recipe(tiny.config(), root), {"cache": root / "cache", "cache_dtype": "float32"}
    assert run("encode", recipe, **options, to="webdataset", out=root / "shards", shard_rows=2) == 0
    return root / "shards"


def rows(shards: Path, split: str) -> dict[str, StreamedRow]:
    """Rows of a split by id, read by webdataset, which defines the format."""
    files = sorted(str(file) for file in shards.glob(f"{split}-*.tar"))
    streamed = [decode_row(row) for row in webdataset.WebDataset(files, shardshuffle=False)]  # pyright: ignore
    assert len({row.example.id for row in streamed}) == len(streamed)
    return {row.example.id: row for row in streamed}


def test_shards_hold_rows_and_features(tiny: CaptioningSystem, shards: Path) -> None:
    sounds = Cnn(tiny.path("sounds"))
    store = FeatureStore(shards.parent / "cache", store_description(sounds, "float32"))
    for split in ("train", "val", "test"):
        expected, _ = read_manifest(tiny.folder / f"{split}.jsonl")
        rows_by_id = rows(shards, split)
        assert rows_by_id.keys() == {row.id for row in expected}
        for row in expected:
            assert rows_by_id[row.id].example.captions == row.captions
            ((name, entry),) = rows_by_id[row.id].inputs.items()
            assert name in row.inputs
            assert isinstance(entry, FeatureRow)
            if name == "audio":
                assert any(torch.equal(entry.frames, store[key].frames) for key in store)
    index = json.loads((shards / "index.json").read_text())
    assert {tar["rows"] for tars in index["splits"].values() for tar in tars} == {1, 2}
    assert not list(shards.glob(".*"))


# ------------------------------------------------------------------------------------------------- stopped and damaged


def write(folder: Path, tiny: CaptioningSystem, encoders: dict[str, Any] | None = None, stop_in: int = 0) -> None:
    """Write tars of two rows of the pictures in the training data; a stop signal comes with input ``stop_in``."""
    rows = [row for row in read_manifest(tiny.folder / "train.jsonl")[0] if "image" in row.inputs]
    reads: list[str] = []

    def read(source: Any, start: float, end: float | None) -> FeatureRow:
        reads.append(source)
        if len(reads) == stop_in:
            os.kill(os.getpid(), signal.SIGTERM)
        return FeatureRow(torch.full((2, 3), float(len(source))), torch.ones(1))

    with stop_signals():
        write_webdataset(folder, {"train": rows}, {"image": read}, encoders=encoders or {}, rows=2, seed=0)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("stop_in", [1, 3, 6])
def test_stopped_writing_goes_on_to_the_same_bits(tiny: CaptioningSystem, tmp_path: Path, stop_in: int) -> None:
    write(tmp_path / "whole", tiny)
    with pytest.raises(Stopped, match=rf"SIGTERM; the shards so far are in {tmp_path / 'shards'}; the same command"):
        write(tmp_path / "shards", tiny, stop_in=stop_in)
    kept = {name: content for name, content in files(tmp_path / "shards").items() if name.endswith(".tar")}
    assert len(kept) == (stop_in - 1) // 2
    assert not list(tmp_path.rglob("*.tmp"))
    if kept:
        with pytest.raises(InputError, match="holds shards of an unfinished run with other rows, encoders or options"):
            write(tmp_path / "shards", tiny, {"image": {"widths": [3, 1]}})
    times = {name: (tmp_path / "shards" / name).stat().st_mtime_ns for name in kept}
    write(tmp_path / "shards", tiny)
    assert files(tmp_path / "shards") == files(tmp_path / "whole")
    assert {name: (tmp_path / "shards" / name).stat().st_mtime_ns for name in kept} == times


def test_two_processes_do_not_write_one_folder(tiny: CaptioningSystem, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".writing.lock"), pytest.raises(InputError, match="another process writes shards there"):
        write(tmp_path, tiny)
    write(tmp_path, tiny)
    with pytest.raises(InputError, match="holds shards already"):
        write(tmp_path, tiny)


def test_a_full_disk_keeps_whole_shards(tiny: CaptioningSystem, tmp_path: Path) -> None:
    with full_disk(4000), pytest.raises(InputError, match=r"train-000000.tar: could not be written \(File too large\)"):
        write(tmp_path / "shards", tiny)
    assert not list(tmp_path.rglob("*.tar"))
    assert not list(tmp_path.rglob("*.tmp"))
    write(tmp_path / "shards", tiny)


def tar_of(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


ROW = json.dumps({"id": "a", "captions": ["x"], "prompt": None, "context": None, "contexts": [], "user": None}).encode()
FRAMES, POOLED = npy(np.zeros((2, 3), np.float32)), npy(np.zeros(1, np.float32))
HUGE = npy(np.zeros(1)).replace(b"(1,)", b"(9999999999999,)")


def row(*, json: bytes = ROW, **parts: bytes) -> bytes:
    """Tar of one row of branch image, with its parts as they are, or as ``parts`` says."""
    features = {"frames": FRAMES, "pooled": POOLED} | parts
    return tar_of(("0.json", json), *((f"0.image.{name}.npy", content) for name, content in features.items()))


BAD_TARS = {
    "zero bytes": b"",
    "no tar": b"\x89PNG" + bytes(3000),
    "cut off": row()[:1400],
    "cut between files": tar_of(("0.json", ROW))[:1024],
    "another program's": tar_of(("0.jpg", b"picture"), ("0.txt", b"caption")),
    "no row": tar_of(("0.image.frames.npy", FRAMES), ("0.image.pooled.npy", POOLED)),
    "row that is a list": row(json=b"[1]"),
    "no features": tar_of(("0.json", ROW)),
    "no numbers": row(frames=b"words"),
    "words": row(frames=npy(np.array([["a"]]))),
    "integers": row(frames=npy(np.zeros((2, 3), int))),
    "one side": row(frames=POOLED),
    "other widths": row(frames=npy(np.zeros((2, 4), np.float32))),
    "another branch": tar_of(("0.json", ROW), ("0.audio.frames.npy", FRAMES), ("0.audio.pooled.npy", POOLED)),
    "huge array": row(frames=HUGE),
    "fewer rows": row(),
}


@pytest.mark.parametrize("kind", BAD_TARS)
def test_a_bad_tar_is_one_line_that_names_it(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "train-000000.tar"
    file.write_bytes(BAD_TARS[kind])
    tar = TarShard(str(file), 2, ("image",), {"image": (3, 1)})
    with pytest.raises(InputError) as error:
        list(read_tars([tar], 4, random.Random(0)))
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    assert message.endswith("writes it anew, into another folder")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"format": 2}, "it is of format 2"),
        ({"splits": {"train": [{"file": "../secret.tar", "rows": 1, "branches": []}]}}, "file '../secret.tar'"),
        ({"splits": {"train": [{"file": "a.tar", "rows": "many", "branches": []}]}}, "a.tar: 'many' rows"),
        ({"splits": {"train": [{"file": "a.tar", "rows": 1}]}}, "KeyError 'branches'"),
        ({"splits": []}, "AttributeError"),
        ({"encoders": {"image": {"widths": ["wide", 2]}}}, "widths"),
        ({"encoders": {"image": 3}}, "not subscriptable"),
    ],
)
def test_a_bad_index_is_one_line(change: dict[str, Any], fault: str, tmp_path: Path) -> None:
    index = {"format": 1, "encoders": {}, "splits": {}} | change
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"index\.json cannot be read") as error:
        read_index(str(tmp_path))
    assert fault in str(error.value)
    for text in ("", "[]", "3", "[" * 100_000, '{"format": 1}'):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(InputError, match=r"index\.json cannot be read"):
            read_index(str(tmp_path))


# -------------------------------------------------------------------------------------------------------------- reading


def stream(shards: Path, workers: int, rank: int = 0, world: int = 1, size: int = 2) -> Stream:
    entries = json.loads((shards / "index.json").read_text())["splits"]["train"]
    tars = [TarShard(str(shards / entry["file"]), entry["rows"], tuple(entry["branches"])) for entry in entries]
    return Stream(tars, StreamOptions(size, 4, SampleOptions()), workers=workers, rank=rank, world=world)


def batches_of(shards: Path, workers: int, rank: int, world: int, epoch: int = 0, skip: int = 0) -> list[Batch]:
    """Batches of one process from a loader of ``workers`` workers."""
    from mmprefix.features.stream_data import StreamLoader

    tar_stream = stream(shards, workers, rank, world)
    tar_stream.set_epoch(epoch, skip)
    batches = list(StreamLoader(tar_stream, None, num_workers=workers))
    assert len(batches) == len(tar_stream) - skip
    return batches


@pytest.mark.parametrize(("workers", "world"), [(0, 1), (2, 1), (3, 1), (0, 2), (2, 2), (0, 3)])
def test_each_row_is_read_once(shards: Path, workers: int, world: int) -> None:
    batches = [batches_of(shards, workers, rank, world) for rank in range(world)]
    assert len({len(mine) for mine in batches}) == 1
    ids = [name for mine in batches for batch in mine for name in batch.ids]
    assert len(set(ids)) == len(ids)
    if 6 % (world * max(1, workers)) == 0:
        assert len(ids) == 12
    for batch in (batch for mine in batches for batch in mine):
        (value,) = batch.inputs.values()
        assert isinstance(value, Features)
        assert len({name[0] for name in batch.ids}) == 1  # pictures and sounds share no batch


def test_epochs_differ_and_can_be_repeated(shards: Path) -> None:
    first, second = ([batch.ids for batch in batches_of(shards, 2, 0, 1, epoch)] for epoch in (0, 1))
    assert first != second
    assert first == [batch.ids for batch in batches_of(shards, 2, 0, 1, 0)]
    for skip in (1, 3, 5):
        rest = {tuple(batch.ids) for batch in batches_of(shards, 2, 0, 1, 0, skip)}
        assert rest == {tuple(ids) for ids in first[skip:]}


def streaming(tiny: CaptioningSystem, root: Path, shards: str, callbacks: Sequence[Any] = (), **options: Any) -> Path:
    config = tiny.config()
    config["trainer"]["callbacks"] = list(callbacks)
    arguments = {"shards": shards, "batch_size": 3, "val": config["data"]["init_args"]["val"], **options}
    config["data"] = {"class_path": "mmprefix.features.StreamData", "init_args": arguments}
    return tiny.recipe(config, root)


def test_fit_streams(tiny: CaptioningSystem, shards: Path, tmp_path: Path) -> None:
    recipe = streaming(tiny, tmp_path, str(shards), num_workers=1)
    assert run("fit", recipe, trainer__max_epochs=4) == 0
    steps = training_record(tmp_path).steps
    for epoch in range(4):
        ids = [name for number, batch in steps if number == epoch for name in batch]
        assert len(set(ids)) == len(ids) == 12
    losses = metric_values(tmp_path, "train/loss")
    assert min(losses[-4:]) < losses[0]
    assert metric_values(tmp_path, "val/loss")


def test_an_interrupted_run_is_resumed(tiny: CaptioningSystem, shards: Path, tmp_path: Path) -> None:
    """Stopped at any step, it ends with the bits of the uninterrupted run."""
    assert run("fit", streaming(tiny, tmp_path / "whole", str(shards))) == 0
    keep = {"every_n_train_steps": 1, "save_last": True}
    callbacks = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keep},
        {"class_path": "tiny.captioning_system.Crash", "init_args": {"at": 6}},
    ]
    assert run("fit", streaming(tiny, tmp_path / "broken", str(shards), callbacks)) == 1
    assert run("fit", streaming(tiny, tmp_path / "broken", str(shards), callbacks[:1]), ckpt_path="last") == 0
    whole, broken = training_record(tmp_path / "whole"), training_record(tmp_path / "broken")
    assert broken.steps == whole.steps[-len(broken.steps) :]
    assert broken.rates == whole.rates[-len(broken.steps) :]
    assert same_tensors(whole.after, broken.after)


@pytest.mark.slow
def test_two_processes_share_the_shards(tiny: CaptioningSystem, shards: Path, tmp_path: Path) -> None:
    recipe = streaming(tiny, tmp_path, str(shards))
    more = {"trainer__devices": 2, "trainer__strategy": "ddp_fork", "data__num_workers": 1}
    assert run("fit", recipe, **more) == 0
    first, second = training_record(tmp_path, 0), training_record(tmp_path, 1)
    assert len(first.steps) == len(second.steps) > 0
    for epoch in range(2):
        ids = [name for seen in (first, second) for number, batch in seen.steps if number == epoch for name in batch]
        assert len(ids) == len(set(ids)) >= 6
    assert same_tensors(first.after, second.after)


def test_shards_of_another_encoder_are_refused(
    tiny: CaptioningSystem, shards: Path, tmp_path: Path, capfd: Any
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    index = json.loads((shards / "index.json").read_text())
    index["encoders"]["audio"]["weights"] = "0" * 64
    (folder / "index.json").write_text(json.dumps(index))
    message = error_message("fit", streaming(tiny, tmp_path / "run", str(folder)), capfd)
    assert "the features of branch 'audio' were made by another encoder: weights was 000" in message
    index["encoders"]["video"] = index["encoders"].pop("audio")
    (folder / "index.json").write_text(json.dumps(index))
    assert "has features for branch 'video', which this model has not" in error_message(
        "fit", streaming(tiny, tmp_path / "run", str(folder)), capfd
    )


def test_shards_without_the_frames_that_a_mapper_reads_are_refused(
    tiny: CaptioningSystem, shards: Path, tmp_path: Path, capfd: Any
) -> None:
    index = json.loads((shards / "index.json").read_text())
    index["encoders"]["audio"]["widths"][0] = 0
    (tmp_path / "index.json").write_text(json.dumps(index))
    message = error_message("fit", streaming(tiny, tmp_path / "run", str(tmp_path)), capfd)
    assert "has no frames for branch 'audio', which its mapper reads; encode anew" in message


@pytest.mark.parametrize(("options", "words"), [
    ({"train": "train.jsonl"}, "data.train: shards are read as they come; leave it out"),
    ({"bucket": False}, "data.bucket false: shards are read as they come"),
    ({"buffer": 0}, "data.buffer 0: give a number from 1 on"),
    ({"batch_size": 7}, "6 shards of 12 rows make no batch of 7 for each of 1 processes with 1 workers"),
    ({"shards": "nowhere"}, "data.shards nowhere: index.json cannot be read"),
])  # fmt: skip
def test_bad_options_are_refused(
    options: dict[str, Any], words: str, tiny: CaptioningSystem, shards: Path, tmp_path: Path, capfd: Any
) -> None:
    recipe = streaming(tiny, tmp_path, **{"shards": str(shards), **options})
    assert words in error_message("fit", recipe, capfd)


def test_encode_names_missing_options(tiny: CaptioningSystem, shards: Path, tmp_path: Path, capfd: Any) -> None:
    recipe = tiny.recipe(tiny.config(), tmp_path)
    for options in ({"to": "webdataset"}, {"out": "x"}):
        message = error_message("encode", recipe, capfd, cache=tmp_path / "cache", **options)
        assert "give --to webdataset --out FOLDER, or neither" in message
    with pytest.raises(InputError, match="holds shards already; give another folder"):
        write_webdataset(shards, {}, {}, encoders={}, rows=10, seed=0)


def test_a_streamed_row_gives_the_sample_of_its_manifest_row(tiny: CaptioningSystem, tmp_path: Path) -> None:
    """Prompt, captions, context and user are equal in each epoch."""
    rows = [json.loads(line) for line in (tiny.folder / "train.jsonl").read_text().splitlines()]
    for n, row in enumerate(rows):
        row |= {"context": [f"{n} first", f"{n} second", f"{n} third"], "image": f"{tiny.folder}/0.png"}
        row |= {"user": f"user {n % 3}"} if n else {}
        row.pop("audio", None)
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples, _ = read_manifest(manifest)
    write_webdataset(tmp_path / "shards", {"train": examples}, {}, encoders={}, rows=5, seed=3)
    files = sorted(str(file) for file in (tmp_path / "shards").glob("*.tar"))
    streamed = [decode_row(row) for row in webdataset.WebDataset(files, shardshuffle=False)]  # pyright: ignore
    assert sorted(row.number for row in streamed) == list(range(len(examples)))
    assert [row.number for row in streamed] != list(range(len(examples)))
    options = SampleOptions(prompt="say:", max_captions=1, seed=5)
    drawn_texts = set[tuple[str, ...]]()
    for row in streamed:
        for epoch in range(4):
            samples = [
                sample_of_row(example, {}, options, row=row.number, epoch=epoch, source="x")
                for example in (row.example, examples[row.number])
            ]
            assert samples[0] == samples[1]
            assert samples[0].user == (f"user {row.number % 3}" if row.number else "")
            drawn_texts.add((samples[0].context, *samples[0].targets))
    assert len(drawn_texts) > 2 * len(examples)  # drawn again each epoch


def test_a_pipe_runs_nothing_unless_allowed(tmp_path: Path) -> None:
    """``shards: pipe:COMMAND`` of a stranger's recipe is refused; webdataset would give it to a shell."""
    mark = tmp_path / "ran"
    for shards in (f"pipe:touch {mark}; echo ", f" pipe:touch {mark}; echo "):
        with pytest.raises(InputError, match="--allow pipe"):
            read_index(shards)
        assert not mark.exists()
    with allow_modules(["pipe"]), pytest.raises(InputError, match="cannot be read"):
        read_index(f"pipe:touch {mark}; echo ")
    assert mark.exists()
