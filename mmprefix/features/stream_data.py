"""StreamData: the data module whose training rows stream from shards (``mmprefix.features.streaming``)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Any, Protocol, cast

from mmprefix.data.collate import identity
from mmprefix.data.dataset import BatchLoader, leave_signals_to_main
from mmprefix.data.histories import BRANCH, read_histories
from mmprefix.data.pairs import PairData
from mmprefix.data.resume import HISTORIES, ResumingSampler, histories_fingerprint
from mmprefix.data.sample import SampleOptions
from mmprefix.data.samplers import rank_and_world
from mmprefix.data.sources import Split
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.features.store import store_description
from mmprefix.features.streaming import Stream, StreamOptions, TarShard, index_fingerprint, read_index

_ORDER_OPTIONS = ("batch_size", "buffer", "seed", "num_workers", "max_captions", "history_dropout")


class StreamLoader(BatchLoader):
    """Loader of one process's batches, from where the run stands."""

    def __init__(self, stream: Stream, order: ResumingSampler | None, *, num_workers: int = 0) -> None:
        super().__init__(
            stream, batch_size=None, collate_fn=identity, num_workers=num_workers, worker_init_fn=leave_signals_to_main
        )
        self.stream, self.order = stream, order

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Any:
        if self.order is not None:
            self.stream.set_epoch(*self.order.position())
        return islice(super().__iter__(), len(self.stream) - self.stream.skip)


class EncoderHolder(Protocol):
    """Encoders of a model, as the shards' index is compared with them."""

    @property
    def encoders(self) -> Iterable[str]: ...

    def encoder(self, name: str) -> Encoder: ...

    def reads_frames(self, name: str) -> bool: ...


class StreamData(PairData):
    """``PairData`` whose training rows stream from the shards of ``mmprefix encode --to webdataset``.

    Validation and test rows come from manifests. With several processes each makes as many steps as the one that has
    fewest whole batches; rows left over take no part in an epoch.

    Args:
        shards: the folder of the shards, or its address (what WebDataset opens), with the ``index.json`` in it.
        buffer: rows among which the next one is drawn.
        more: options of ``PairData``; ``train``, ``bucket``, ``drop_last`` and ``max_tokens`` are not for shards. In
            training ``histories`` are for prompts of rows that bring no texts; what a branch reads of them is in the
            shards, if they were given to ``mmprefix encode``.
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
        for name, value in refused.items():
            if value:
                raise InputError(f"data.{name}: shards are read as they come; leave it out")
        self.index = read_index(self.shards)

    def has_source(self) -> bool:
        """Return True: the shards hold the rows to train on."""
        return True

    def _files(self, split: Split) -> list[tuple[str, str | None]]:
        return [] if split == "train" else super()._files(split)

    def setup(self, stage: str) -> None:
        """Read the manifests of ``stage``; see ``PairData``.

        Raises InputError for shards whose features were not made by the model's encoders.
        """
        super().setup(stage)
        self._require_histories(self._model_inputs().branches)
        if self.trainer is not None:
            self._require_same_encoders(cast(Any, self.trainer.lightning_module).model)

    def _require_histories(self, branches: Collection[str]) -> None:
        """Raise InputError where earlier texts are to feed a branch of which no shard has anything."""
        train = self.index["splits"].get("train", [])
        if self.histories is not None and BRANCH in branches and not any(BRANCH in tar["branches"] for tar in train):
            raise InputError(
                f"data.histories {self.histories}: the shards {self.shards} hold nothing for the branch {BRANCH}; give "
                "data.histories to mmprefix encode --to webdataset too"
            )

    def _require_same_encoders(self, model: EncoderHolder) -> None:
        descriptions: Mapping[str, dict[str, Any]] = self.index["encoders"]
        for name, then in descriptions.items():
            if name not in model.encoders:
                raise InputError(f"{self.shards}: has features for branch {name!r}, which this model has not")
            frames = bool(then["widths"][0])
            if model.reads_frames(name) and model.encoder(name).dim and not frames:
                raise InputError(
                    f"{self.shards}: has no frames for branch {name!r}, which its mapper reads; encode anew"
                )
            now = store_description(model.encoder(name), then["dtype"], frames)
            if now != then:
                key = next(key for key in now if now[key] != then.get(key))
                raise InputError(
                    f"{self.shards}: the features of branch {name!r} were made by another encoder: {key} was "
                    f"{then.get(key)}, is {now[key]}; encode anew, into another folder"
                )

    def train_dataloader(self) -> BatchLoader:
        """Loader of batches of the shards; a resumed run goes on where it stopped."""
        rank, world = rank_and_world(self.trainer)
        shards = self.index["splits"].get("train", [])
        widths = {name: tuple(then["widths"]) for name, then in self.index["encoders"].items()}
        tars = [TarShard(f"{self.shards}/{tar['file']}", tar["rows"], tuple(tar["branches"]), widths) for tar in shards]
        options, histories = self._stream_options()
        stream = Stream(tars, options, workers=self.num_workers, rank=rank, world=world)
        if not len(stream):
            count = sum(tar.rows for tar in tars)
            raise InputError(
                f"{self.shards}: {len(tars)} shards of {count} rows make no batch of {self.batch_size} for each of "
                f"{world} processes with {max(1, self.num_workers)} workers: give fewer of them, smaller batches or "
                "(mmprefix encode --shard_rows) smaller shards"
            )
        order = None
        if self.trainer is not None:
            fingerprint = {"shards": index_fingerprint(self.index), "processes": world}
            fingerprint |= {f"data.{name}": getattr(self, name) for name in _ORDER_OPTIONS}
            fingerprint[HISTORIES] = histories
            order = self._position.sampler(stream, self.trainer, fingerprint, {HISTORIES: self.histories})
        return StreamLoader(stream, order, num_workers=self.num_workers)

    def _stream_options(self) -> tuple[StreamOptions, str]:
        """Options of the stream, and the fingerprint of the file of earlier texts."""
        inputs = self._model_inputs()
        histories = {} if self.histories is None else read_histories(self.histories)
        sample = SampleOptions(
            self.prompt,
            self.max_captions,
            self.seed,
            wording=inputs.wording,
            history_dropout=self.history_dropout,
        )
        options = StreamOptions(self.batch_size, self.buffer, sample, histories)
        return options, histories_fingerprint([(user, *texts) for user, texts in histories.items()])
