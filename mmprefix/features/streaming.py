"""Training on shards that are read from end to end: a data set larger than memory, or than the disk.

``mmprefix encode --to webdataset`` writes the shards. Each process takes some of them, each of its workers some of
those, so that no row is read twice; rows are shuffled by the order of the shards and within a buffer. Each epoch is a
function of seed and epoch: a run that was broken off goes on behind the batches it has done.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from mmprefix.data.collate import Sample, collate, draw_captions
from mmprefix.data.dataset import BatchLoader
from mmprefix.data.pairs import PairData, Split
from mmprefix.data.samplers import ResumingSampler
from mmprefix.errors import InputError
from mmprefix.features.store import store_description
from mmprefix.features.webdataset import FORMAT, INDEX
from mmprefix.types import Batch, FeatureRow


@dataclass(frozen=True)
class TarShard:
    """A file of so many rows, all with the same branches."""

    url: str
    rows: int
    branches: tuple[str, ...]


@dataclass(frozen=True)
class StreamOptions:
    """How rows become batches."""

    batch_size: int
    buffer: int
    seed: int
    prompt: str
    max_captions: int | None


class Stream(IterableDataset[Batch]):
    """The batches of one process: those of its workers in turn, each from tars of its own.

    ``set_epoch`` says which epoch is read next, and how many of its batches are left out because they are done.
    """

    def __init__(self, tars: list[TarShard], reading: StreamOptions, workers: int, rank: int, world: int) -> None:
        self.tars, self.reading, self.rank, self.world = tars, reading, rank, world
        self.workers = max(1, workers)
        self.epoch = self.skip = 0
        counts = [self._steps(rank) for rank in range(world)]
        self._length = min(counts)  # all processes make the same number of steps

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """The epoch that is read next, from the batch after ``skip``."""
        self.epoch, self.skip = epoch, skip

    def share(self, rank: int, worker: int) -> list[TarShard]:
        """The tars of one worker of one process."""
        return self.tars[rank :: self.world][worker :: self.workers]

    def _batches(self, tars: list[TarShard]) -> dict[tuple[str, ...], int]:
        """Whole batches of each kind of row."""
        rows: dict[tuple[str, ...], int] = {}
        for tar in tars:
            rows[tar.branches] = rows.get(tar.branches, 0) + tar.rows
        return {branches: count // self.reading.batch_size for branches, count in rows.items()}

    def _steps(self, rank: int) -> int:
        return sum(sum(self._batches(self.share(rank, worker)).values()) for worker in range(self.workers))

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker = 0 if info is None else info.id
        mine = self.share(self.rank, worker)
        counts = self._batches(mine)
        draw = random.Random(f"{self.reading.seed} {self.epoch} {self.rank} {worker}")
        kinds = [kind for kind, count in counts.items() for _ in range(count)]
        draw.shuffle(kinds)
        streams = {}
        for kind in counts:
            files = [tar.url for tar in mine if tar.branches == kind]
            draw.shuffle(files)
            streams[kind] = rows(files, self.reading, self.epoch, random.Random(draw.random()))
        done = self._done(worker)
        for number, kind in enumerate(kinds):
            samples = list(islice(streams[kind], self.reading.batch_size))
            if number >= done:
                yield collate([self._sample(row) for row in samples])

    def _done(self, worker: int) -> int:
        """How many of this worker's batches are among the first ``skip`` of the process, which takes them in turn."""
        left = [sum(self._batches(self.share(self.rank, number)).values()) for number in range(self.workers)]
        done = [0] * self.workers
        number = 0
        for _ in range(self.skip):
            while done[number] >= left[number]:
                number = (number + 1) % self.workers
            done[number] += 1
            number = (number + 1) % self.workers
        return done[worker]

    def _sample(self, row: Mapping[str, Any]) -> Sample:
        told, seed = row["json"], [self.reading.seed, self.epoch, row["row"]]
        captions = draw_captions(told["captions"], self.reading.max_captions, seed)
        prompt = self.reading.prompt if told["prompt"] is None else told["prompt"]
        texts = [told["context"], *told["contexts"]]
        context = texts[int(np.random.default_rng([*seed, 1]).integers(len(texts)))]
        return Sample(row["inputs"], prompt, captions, context, told["id"], row["place"])


def rows(urls: list[str], reading: StreamOptions, epoch: int, draw: random.Random) -> Iterator[dict[str, Any]]:
    """The rows of some tars, shuffled within a buffer."""
    import webdataset

    found = webdataset.WebDataset(urls, shardshuffle=False, nodesplitter=None, workersplitter=None)  # pyright: ignore
    if reading.buffer > 1:
        found = found.shuffle(reading.buffer, initial=reading.buffer, rng=draw)
    for files in found:
        yield decoded(files)


def decoded(files: Mapping[str, Any]) -> dict[str, Any]:
    """The files of one row → what they say."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, data in files.items():
        if name.endswith(".npy"):
            branch, part, _ = name.split(".")
            parts.setdefault(branch, {})[part] = torch.from_numpy(np.load(io.BytesIO(data)))
    inputs = {
        branch: some.get("values", FeatureRow(**some) if "frames" in some else None) for branch, some in parts.items()
    }
    return {
        "json": json.loads(files["json"]),
        "inputs": inputs,
        "row": int(files["__key__"]),
        "place": f"{files.get('__url__', '')}:{files['__key__']}",
    }


class StreamLoader(BatchLoader):
    """A loader of one process's batches, from where the run stands."""

    def __init__(self, stream: Stream, order: ResumingSampler | None, **options: Any) -> None:
        super().__init__(stream, batch_size=None, collate_fn=_as_it_is, **options)
        self.stream, self.order = stream, order

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Any:
        if self.order is not None:
            self.stream.set_epoch(*self.order.position())
        return islice(super().__iter__(), len(self.stream) - self.stream.skip)


class StreamData(PairData):
    """``PairData`` whose training rows stream from the shards of ``mmprefix encode --to webdataset``.

    Validation and test rows come from manifests as ever. With several processes each makes as many steps as the one
    that has fewest whole batches; rows left over take no part in an epoch.

    Args:
        shards: the folder of the shards, or its address (what WebDataset opens), with the ``index.json`` in it.
        buffer: rows among which the next one is drawn.
        more: those of ``PairData``; ``train``, ``bucket``, ``drop_last`` and ``max_tokens`` are not for shards.
    """

    def __init__(self, shards: str, buffer: int = 1000, **more: Any) -> None:
        self.shards, self.buffer = shards.rstrip("/"), buffer
        super().__init__(**more)
        if buffer < 1:
            raise InputError(f"data.buffer {buffer}: give a number from 1 on")
        refused = {
            "train": self.manifests["train"],
            "max_tokens": self.max_tokens,
            "bucket false": not self.bucket,
            "drop_last true": self.drop_last,
        }
        for name, given in refused.items():
            if given:
                raise InputError(f"data.{name}: shards are read as they come; leave it out")
        self.index = read_index(self.shards)

    has_source = True  # pyright: ignore

    def _files(self, split: Split) -> list[tuple[str, str | None]]:
        return [] if split == "train" else super()._files(split)

    def setup(self, stage: str) -> None:
        """As for ``PairData``. Raises InputError for shards whose features are not those of the model's encoders."""
        super().setup(stage)
        if self.trainer is not None:
            self._compare(cast(Any, self.trainer.lightning_module).model)

    def _compare(self, model: Any) -> None:
        for name, told in self.index["encoders"].items():
            if name not in model.encoders:
                raise InputError(f"{self.shards}: has features for branch {name!r}, which this model has not")
            frames = bool(told["widths"][0])
            if model.reads_frames(name) and model.encoder(name).dim and not frames:
                raise InputError(
                    f"{self.shards}: has no frames for branch {name!r}, which its mapper reads; encode anew"
                )
            now = store_description(model.encoder(name), told["dtype"], frames)
            if now != told:
                what = next(key for key in now if now[key] != told.get(key))
                raise InputError(
                    f"{self.shards}: the features of branch {name!r} were made by another encoder: {what} was "
                    f"{told.get(what)}, is {now[what]}; encode anew, into another folder"
                )

    def train_dataloader(self) -> BatchLoader:
        """Batches of the shards, from where the run stopped if it is resumed."""
        rank, world = self._processes()
        told = self.index["splits"].get("train", [])
        tars = [TarShard(f"{self.shards}/{one['file']}", one["rows"], tuple(one["branches"])) for one in told]
        reading = StreamOptions(self.batch_size, self.buffer, self.seed, self.prompt, self.max_captions)
        stream = Stream(tars, reading, self.num_workers, rank, world)
        if not len(stream):
            count = sum(tar.rows for tar in tars)
            raise InputError(
                f"{self.shards}: {len(tars)} shards of {count} rows make no batch of {self.batch_size} for each of "
                f"{world} processes with {max(1, self.num_workers)} workers: give fewer of them, smaller batches or "
                "(mmprefix encode --shard_rows) smaller shards"
            )
        self._content = {"shards": hashlib.sha256(json.dumps(self.index).encode()).hexdigest()[:16], "processes": world}
        self._content |= {f"data.{name}": getattr(self, name) for name in _ORDER}
        order = None if self.trainer is None else self._resuming(stream)
        return StreamLoader(stream, order, num_workers=self.num_workers)


_ORDER = ("batch_size", "buffer", "seed", "num_workers", "max_captions")


def read_index(shards: str) -> dict[str, Any]:
    """What ``index.json`` of some shards says; InputError where it is not there."""
    try:
        import webdataset
    except ImportError as error:
        raise InputError('shards: webdataset is not installed; pip install "mmprefix[data]"') from error
    try:
        with webdataset.gopen(f"{shards}/{INDEX}") as stream:  # pyright: ignore
            found = json.loads(stream.read())
        if found["format"] != FORMAT:
            raise ValueError(f"it is of format {found['format']}, this is for {FORMAT}")
        return found
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"data.shards {shards}: {INDEX} cannot be read ({error}); mmprefix encode --to webdataset makes one"
        ) from error


def _as_it_is(batch: Any) -> Any:
    return batch
