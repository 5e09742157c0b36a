"""Feature store: features of a frozen encoder, computed once for each input, kept on disk for all runs and processes.

Below the folder that a recipe names with ``cache``, each encoder has a folder of its own, named by a hash of its class
and options, its weights, its preprocessing and the dtype. It holds shards (``mmprefix.features.shard``), which are only
ever added, and an index of them (``mmprefix.features.index``). The key of an input is made of its content and the span
that is read (``mmprefix.features.keys``): a file that is moved keeps its features, a file that is changed does not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mmprefix.atomic import disk_errors_as_input_errors, write_atomically
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.features.index import open_index
from mmprefix.features.shard import Shard, write_shard
from mmprefix.features.tensor_file import DamagedError, ForeignError
from mmprefix.media.source import Source, name_of
from mmprefix.parts import to_recipe
from mmprefix.types import FeatureRow
from mmprefix.version import __version__
from mmprefix.weights.devices import dtype_of
from mmprefix.weights.source import read_json, settings

log = logging.getLogger(__name__)

FORMAT = 1
_ELSEWHERE = ("model", "revision", "long_lists")  # options that the hash of weights, or the key of an input, replaces
InputKey = tuple[Source, float, float | None]  # an input, with start and end of its span in seconds


def store_description(encoder: Encoder, dtype: str = "float16", frames: bool = True) -> dict[str, Any]:
    """Plain data that changes whenever stored features would; without ``frames`` only summaries are stored."""
    made = to_recipe(encoder)
    options = _without_source(made["init_args"])
    return {
        "format": FORMAT,
        "mmprefix": __version__,
        "encoder": made["class_path"],
        "options": options,
        "weights": encoder.identity.sha256,
        "settings": settings(encoder.identity),
        "preprocessing": repr(encoder.preprocess),
        "dtype": dtype,
        "widths": [encoder.dim if frames else 0, encoder.pooled_dim],
    }


def _without_source(options: dict[str, Any]) -> dict[str, Any]:
    """``options`` of an encoder and of one in it without the names of weights and what the keys of inputs tell."""
    kept = {name: value for name, value in options.items() if name not in _ELSEWHERE}
    wrapped = {name: value for name, value in kept.items() if isinstance(value, dict) and "class_path" in value}
    return kept | {name: {**part, "init_args": _without_source(part["init_args"])} for name, part in wrapped.items()}


class FeatureStore:
    """Features of one encoder by key. Opening reads keys only; an entry is read when it is looked up.

    ``root`` is the folder that all encoders share; ``description`` comes from ``store_description``. Raises InputError
    where the folder holds features of another encoder.
    """

    def __init__(self, root: str | Path, description: Mapping[str, Any]) -> None:
        self.description = dict(description)
        text = json.dumps(self.description, sort_keys=True)
        kind = str(description["encoder"]).rpartition(".")[2].lower()
        self.folder = Path(root).expanduser() / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self.dtype = dtype_of(str(description["dtype"]))
        self.shards: list[Shard] = []
        self.damaged: list[Path] = []
        self._claim_folder()
        self.refresh()

    def _claim_folder(self) -> None:
        file = self.folder / "encoder.json"
        text = json.dumps(self.description, indent=1, sort_keys=True) + "\n"
        if not file.exists():
            with disk_errors_as_input_errors(file):
                self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(file, lambda fresh: fresh.write_text(text, encoding="utf-8"))
        elif read_json(file) != json.loads(text):
            raise InputError(f"{file}: describes another encoder than the folder's name does; remove the folder")

    def refresh_if_changed(self) -> bool:
        """Take up shards that other processes have added or removed; returns False where there are none."""
        changed = set(self.folder.glob("*.safetensors")) != {shard.file for shard in self.shards} | set(self.damaged)
        if changed:
            self.refresh()
        return changed

    def list_anew(self) -> None:
        """Make a network file system that remembers the folder's content for some seconds ask for it again."""
        with suppress(OSError):
            os.utime(self.folder)

    def refresh(self) -> None:
        """Take up shards that were added since the last call, and drop those that were removed."""
        held = {shard.file: shard for shard in self.shards}
        self.shards, self.damaged = [], []
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                shard = held.get(file) or Shard(file)
            except ForeignError as error:
                raise InputError(f"{error}; move it out of the feature store") from error
            except DamagedError as error:
                log.warning("left out: %s; mmprefix encode makes it anew", error)
                self.damaged.append(file)
                continue
            if shard.widths != tuple(self.description["widths"]) or shard.dtype != self.dtype:
                raise InputError(f"{file}: holds features of other widths or dtype than its encoder makes; remove it")
            self.shards.append(shard)
        self._index = open_index(self.shards, self.folder / "index")

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over all keys, in order."""
        return (shard.key(row) for shard, row in self._index)

    def __contains__(self, key: bytes) -> bool:
        return self._index.find(key) is not None

    def __getitem__(self, key: bytes) -> FeatureRow:
        """Features of the input with ``key``, as views of the file; KeyError where it has none."""
        location = self._index.find(key)
        if location is None:
            raise KeyError(key.hex())
        shard, row = location
        return shard[row]

    def add(self, name: str, keys: Sequence[bytes], entries: Sequence[FeatureRow]) -> Path:
        """Write one more shard, called ``name``, and return its file.

        Raises InputError for numbers that the store's dtype cannot hold, and FileExistsError for a name that is taken.
        """
        kept = [FeatureRow(*(part.to(self.dtype) for part in entry)) for entry in entries]
        for key, entry in zip(keys, kept, strict=True):
            if not all(bool(part.isfinite().all()) for part in entry):
                raise InputError(
                    f"{self.folder}: features of input {key.hex()} are no finite numbers as {self.description['dtype']}"
                    + ("; give cache_dtype float32" if self.dtype == torch.float16 else "")
                )
        file = self.folder / f"{name}.safetensors"
        write_shard(file, keys, kept)
        return file

    def remove_damaged(self) -> int:
        """Remove shards whose content is not what was written; returns their number."""
        self.damaged += [shard.file for shard in self.shards if not shard.is_whole()]
        count = len(self.damaged)
        for file in self.damaged:
            log.warning("%s: is damaged; its inputs are encoded anew", file)
            with disk_errors_as_input_errors(file):
                file.unlink(missing_ok=True)
        self.refresh()
        return count

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.folder.parent, "description": self.description}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # a worker that was not forked maps the files itself


class CachedInputs:
    """Replacement of an encoder's preprocessing: looks up the features of an input instead of reading it."""

    def __init__(self, store: FeatureStore, keys: Mapping[InputKey, bytes], faults: Mapping[bytes, str]) -> None:
        self.store, self.keys, self.faults = store, keys, faults

    def __call__(self, source: Source, start: float = 0.0, end: float | None = None) -> FeatureRow:
        """Return the features of an input; InputError where it could not be read, or was never encoded."""
        key = self.keys.get((source, start, end), b"")
        if key in self.faults:
            raise InputError(self.faults[key])
        try:
            return self.store[key]
        except KeyError as error:
            raise InputError(f"{name_of(source)}: is not in the cache {self.store.folder}") from error
