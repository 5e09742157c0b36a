"""Training on shards that are read from end to end: for a data set larger than memory, or than the disk.

``mmprefix encode --to webdataset`` writes the shards. Each process takes some of them, each of its workers some of
those, so that no row is read twice; rows are shuffled by the order of the shards and within a buffer. Each epoch is a
function of seed and epoch, so that a resumed run goes on behind the batches it has done.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from mmprefix.data.collate import collate
from mmprefix.data.histories import BRANCH, Histories, add_histories
from mmprefix.data.manifest import Example, InputRef
from mmprefix.data.sample import SampleOptions, sample_of_row
from mmprefix.errors import InputError
from mmprefix.features.webdataset import FORMAT, INDEX
from mmprefix.trust.modules import allowed_modules
from mmprefix.types import Batch, FeatureRow

_REMEDY = "mmprefix encode --to webdataset writes it anew, into another folder"


@dataclass(frozen=True)
class TarShard:
    """Address of a tar file, its number of rows, and the branches that all of them have.

    ``widths`` of frames and summaries are those of the branches that are encoded.
    """

    url: str
    rows: int
    branches: tuple[str, ...]
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamOptions:
    """Rows a batch, rows in the shuffle buffer, and what is drawn for each row.

    ``histories`` are earlier texts by user, for prompts of rows that bring none.
    """

    batch_size: int
    buffer: int
    sample: SampleOptions
    histories: Histories = field(default_factory=dict[str, tuple[str, ...]])


class StreamedRow(NamedTuple):
    """Row of a shard: its number in the manifest, its fields, its inputs by branch, and its place, for messages."""

    number: int
    example: Example
    inputs: dict[str, Tensor | FeatureRow]
    place: str


class Stream(IterableDataset[Batch]):
    """Batches of one process: those of its workers in turn, each from tars of its own.

    ``set_epoch`` sets the epoch that is read next, and the number of its batches to leave out because they are done.
    """

    def __init__(
        self, tars: list[TarShard], options: StreamOptions, *, workers: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.tars, self.options, self.rank, self.world = tars, options, rank, world
        self.workers = max(1, workers)
        self.epoch = self.skip = 0
        counts = [self._steps(rank) for rank in range(world)]
        self._length = min(counts)  # all processes make the same number of steps

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Set the epoch that is read next, from the batch after ``skip``."""
        self.epoch, self.skip = epoch, skip

    def share(self, rank: int, worker: int) -> list[TarShard]:
        """Tars of one worker of one process."""
        return self.tars[rank :: self.world][worker :: self.workers]

    def _batches(self, tars: list[TarShard]) -> dict[tuple[str, ...], int]:
        """Number of whole batches, by the branches of their rows."""
        rows: dict[tuple[str, ...], int] = {}
        for tar in tars:
            rows[tar.branches] = rows.get(tar.branches, 0) + tar.rows
        return {branches: count // self.options.batch_size for branches, count in rows.items()}

    def _steps(self, rank: int) -> int:
        return sum(sum(self._batches(self.share(rank, worker)).values()) for worker in range(self.workers))

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker = 0 if info is None else info.id
        mine = self.share(self.rank, worker)
        counts = self._batches(mine)
        draw = random.Random(f"{self.options.sample.seed} {self.epoch} {self.rank} {worker}")
        kinds = [kind for kind, count in counts.items() for _ in range(count)]
        draw.shuffle(kinds)
        streams: dict[tuple[str, ...], Iterator[StreamedRow]] = {}
        for kind in counts:
            files = [tar for tar in mine if tar.branches == kind]
            draw.shuffle(files)
            streams[kind] = read_tars(files, self.options.buffer, random.Random(draw.random()))
        done = self._done(worker)
        for number, kind in enumerate(kinds):
            rows = list(islice(streams[kind], self.options.batch_size))
            if number >= done:
                yield self._collate(rows)

    def _collate(self, rows: Sequence[StreamedRow]) -> Batch:
        options, epoch = self.options.sample, self.epoch
        examples = add_histories([row.example for row in rows], self.options.histories)
        return collate(
            [
                sample_of_row(example, row.inputs, options, row=row.number, epoch=epoch, source=row.place)
                for row, example in zip(rows, examples, strict=True)
            ]
        )

    def _done(self, worker: int) -> int:
        """Number of this worker's batches among the first ``skip`` of the process, which takes its workers in turn."""
        left = [sum(self._batches(self.share(self.rank, number)).values()) for number in range(self.workers)]
        done = [0] * self.workers
        number = 0
        for _ in range(self.skip):
            while done[number] >= left[number]:
                number = (number + 1) % self.workers
            done[number] += 1
            number = (number + 1) % self.workers
        return done[worker]


def read_tars(tars: list[TarShard], buffer: int, draw: random.Random) -> Iterator[StreamedRow]:
    """Rows of the tars, shuffled by ``draw`` within a buffer of so many rows. Raises InputError for a damaged tar."""
    import webdataset

    rows = chain.from_iterable(map(rows_of_tar, tars))
    return iter(webdataset.shuffle(buffer, initial=buffer, rng=draw)(rows)) if buffer > 1 else rows  # pyright: ignore


def rows_of_tar(tar: TarShard) -> Iterator[StreamedRow]:
    """Rows of one tar, in order. Raises InputError where it has other rows than the index says, or is no such tar."""
    import webdataset

    count = 0
    try:
        for files in webdataset.WebDataset([tar.url], shardshuffle=False, nodesplitter=None, workersplitter=None):  # pyright: ignore
            row = decode_row(files)
            _require_parts(row, tar)
            count += 1
            yield row
    except Exception as error:  # whatever tarfile, numpy or json make of another program's bytes
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(f"{tar.url}: cannot be read behind row {count} ({reason}); {_REMEDY}") from error
    if count != tar.rows:
        raise InputError(f"{tar.url}: has {count} rows, and {INDEX} lists {tar.rows}; {_REMEDY}")


def _require_parts(row: StreamedRow, tar: TarShard) -> None:
    """Raise ValueError unless the row has the branches of its tar, with features of their widths."""
    if set(row.inputs) != set(tar.branches):
        raise ValueError(f"inputs {sorted(row.inputs)} where {INDEX} says {sorted(tar.branches)}")
    for branch, value in row.inputs.items():
        parts = value if isinstance(value, FeatureRow) else FeatureRow(value.new_zeros(0, 0), value)
        if not all(part.is_floating_point() for part in parts):
            raise ValueError(f"branch {branch} has numbers of {', '.join(str(part.dtype) for part in parts)}")
        if isinstance(value, FeatureRow) and (value.frames.ndim, value.pooled.ndim) != (2, 1):
            raise ValueError(f"branch {branch} has features of shape {[list(part.shape) for part in parts]}")
        if isinstance(value, FeatureRow) and branch in tar.widths:
            widths = (value.frames.shape[1], len(value.pooled))
            if widths != tar.widths[branch]:
                raise ValueError(f"branch {branch} has features of widths {widths}, not {tar.widths[branch]}")


def decode_row(files: Mapping[str, Any]) -> StreamedRow:
    """Files of one row, by the ending of their names → the row."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, content in files.items():
        if name.endswith(".npy"):
            branch, part, _ = name.split(".")
            parts.setdefault(branch, {})[part] = torch.from_numpy(np.load(io.BytesIO(content)))
    fields, key = json.loads(files["json"]), str(files["__key__"])
    texts = tuple(map(str, fields.get(BRANCH, ())))  # shards of earlier versions have none
    example = Example(
        id=fields["id"],
        inputs={BRANCH: InputRef("", texts=texts)} if texts else {},
        captions=tuple(fields["captions"]),
        prompt=fields["prompt"],
        context=fields["context"],
        contexts=tuple(fields["contexts"]),
        user=fields.get("user"),  # shards of earlier versions have none
    )
    inputs: dict[str, Tensor | FeatureRow] = {
        branch: FeatureRow(**tensors) if "frames" in tensors else tensors["values"] for branch, tensors in parts.items()
    }
    return StreamedRow(int(key), example, inputs, f"{files.get('__url__', '')}:{key}")


def read_index(shards: str) -> dict[str, Any]:
    """Content of ``index.json`` beside the shards.

    Raises InputError where it cannot be read, and for ``pipe:``, which runs a shell, unless the user allows it.
    """
    if shards.strip().startswith("pipe:") and "pipe" not in allowed_modules():
        raise InputError(f"data.shards {shards}: would run a shell command; if you trust it, allow it: --allow pipe")
    try:
        import webdataset
    except ImportError as error:
        raise InputError('shards: webdataset is not installed; pip install "mmprefix[data]"') from error
    try:
        with webdataset.gopen(f"{shards}/{INDEX}") as stream:  # pyright: ignore
            index = json.loads(stream.read())
        _require_index(index)
        return index
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__} {error}" if isinstance(error, KeyError | AttributeError) else str(error)
        raise InputError(
            f"data.shards {shards}: {INDEX} cannot be read ({reason}); mmprefix encode --to webdataset makes one"
        ) from error


def _require_index(index: Any) -> None:
    """Raise an error that names what is not as ``write_webdataset`` writes it."""
    if index["format"] != FORMAT:
        raise ValueError(f"it is of format {index['format']}, this is for {FORMAT}")
    for description in index["encoders"].values():
        if [type(width) for width in description["widths"]] != [int, int]:
            raise ValueError(f"widths {description['widths']}")
    for tar in chain.from_iterable(index["splits"].values()):
        name, rows, branches = tar["file"], tar["rows"], tar["branches"]
        if not isinstance(name, str) or name != name.replace("\\", "/").rpartition("/")[2] or not name.endswith(".tar"):
            raise ValueError(f"file {name!r}: give the name of a tar beside it")
        if type(rows) is not int or rows < 1 or not all(isinstance(branch, str) for branch in branches):
            raise ValueError(f"{name}: {rows!r} rows of branches {branches!r}")


def index_fingerprint(index: Mapping[str, Any]) -> str:
    """Sixteen hex digits that change with any entry of ``index.json``."""
    return hashlib.sha256(json.dumps(index).encode()).hexdigest()[:16]
