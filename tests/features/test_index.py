"""Index of a feature store: all processes map one file; an index of other shards is never used."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from mmprefix.errors import InputError
from mmprefix.features import index
from mmprefix.features.keys import feature_key
from mmprefix.features.shard import write_shard
from mmprefix.features.store import FeatureStore
from mmprefix.types import FeatureRow

WIDTHS = {"encoder": "some.Encoder", "dtype": "float16", "widths": [0, 1]}
MAPS = Path("/proc/self/maps")


def entry(number: float) -> FeatureRow:
    """Entry without frames, whose summary is ``number``."""
    return FeatureRow(torch.zeros(0, 0), torch.tensor([float(number)]))


def filled(root: Path, shards: int = 3, per_shard: int = 5) -> FeatureStore:
    """Store of entries 0, 1 ..., an entry under the key of its number, without an index."""
    store = FeatureStore(root, WIDTHS)
    for shard in range(shards):
        numbers = range(shard * per_shard, (shard + 1) * per_shard)
        store.add(f"{shard}", [feature_key(str(number)) for number in numbers], [entry(number) for number in numbers])
    (store.folder / "index").unlink()
    return store


def assert_entries(store: FeatureStore, count: int) -> None:
    """Assert that the store has all entries and no others."""
    assert len(store) == count
    assert list(store) == sorted(feature_key(str(number)) for number in range(count))
    assert [float(store[feature_key(str(number))].pooled) for number in range(count)] == list(range(count))
    for name in (feature_key(str(count)), b"", bytes(16), b"\xff" * 16, feature_key("0")[:8] + bytes(8)):
        assert name not in store
        with pytest.raises(KeyError):
            store[name]


def indexed_shards(store: FeatureStore) -> str:
    """Shards that the index file names."""
    with safe_open(store.folder / "index", "pt") as file:
        return file.metadata()["shards"]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 300])
def test_every_entry_is_read_and_no_other(count: int, tmp_path: Path) -> None:
    assert_entries(FeatureStore(filled(tmp_path, 1 if count else 0, count).folder.parent, WIDTHS), count)


def test_keys_with_a_common_beginning_are_distinguished(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, WIDTHS)
    names = [bytes(8) + number.to_bytes(8, "big") for number in range(20)]
    for number, name in enumerate(names):
        store.add(f"{number:02}", [name], [entry(number)])
    store.refresh_if_changed()
    assert list(store) == names
    assert [float(store[name].pooled) for name in names] == list(range(20))


def test_the_file_is_written_once_and_again_when_shards_are_added(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.refresh_if_changed()
    file = store.folder / "index"
    before, first = file.stat().st_ino, indexed_shards(store)
    assert_entries(FeatureStore(tmp_path, WIDTHS), 15)
    assert file.stat().st_ino == before
    store.add("3", [feature_key("15")], [entry(15)])
    assert_entries(FeatureStore(tmp_path, WIDTHS), 16)
    assert indexed_shards(store) != first
    assert_entries(store, 15)  # the old index is still mapped
    store.refresh_if_changed()
    assert_entries(store, 16)


def test_other_users_may_read_it(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.refresh_if_changed()
    for file in [store.folder / "index", *store.folder.glob("*.safetensors")]:
        assert file.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "flip", "older", "foreign", "folder"])
def test_an_index_of_other_shards_is_not_used(damage: str, tmp_path: Path) -> None:
    store = filled(tmp_path / "a", 2)
    store.refresh_if_changed()
    file = store.folder / "index"
    old = file.read_bytes()
    store.add("2", [feature_key(str(number)) for number in range(10, 15)], [entry(number) for number in range(10, 15)])
    store.refresh_if_changed()
    good = indexed_shards(store)
    whole, foreign = file.read_bytes(), filled(tmp_path / "b", 1, 15)
    foreign.refresh_if_changed()
    broken = {"cut": whole[:-3], "empty": b"", "header": b"\0" * 8 + whole[8:], "older": old}
    broken |= {"flip": whole[:-1] + bytes([whole[-1] ^ 1]), "foreign": (foreign.folder / "index").read_bytes()}
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        file.write_bytes(broken[damage])
    assert_entries(FeatureStore(tmp_path / "a", WIDTHS), 15)
    if damage != "folder":
        assert indexed_shards(store) == good
        mended = file.stat().st_ino
        assert_entries(FeatureStore(tmp_path / "a", WIDTHS), 15)
        assert file.stat().st_ino == mended


def test_a_shard_that_is_replaced_or_gone_needs_another_index(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.refresh_if_changed()
    (store.folder / "2.safetensors").unlink()
    zero = FeatureRow(*(part.half() for part in entry(0)))
    write_shard(store.folder / "2.safetensors", [feature_key(str(n)) for n in range(14, 9, -1)], [zero] * 5)
    assert {float(FeatureStore(tmp_path, WIDTHS)[feature_key(str(number))].pooled) for number in range(10, 15)} == {0}
    (store.folder / "2.safetensors").unlink()
    assert_entries(FeatureStore(tmp_path, WIDTHS), 10)


def test_a_damaged_key_is_not_found(tmp_path: Path) -> None:
    store = filled(tmp_path, 1)
    store.refresh_if_changed()
    file = store.folder / "0.safetensors"
    file.write_bytes(file.read_bytes().replace(feature_key("3"), feature_key("3")[:-1] + b"?"))
    store = FeatureStore(tmp_path, WIDTHS)
    assert feature_key("3") not in store
    assert float(store[feature_key("4")].pooled) == 4


def test_a_store_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise InputError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(index, "write_tensor_file", refuse)
        assert_entries(FeatureStore(tmp_path, WIDTHS), 15)

    def forbid(*_: Any, **__: Any) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(index, "FileLock", forbid)
        assert_entries(FeatureStore(tmp_path, WIDTHS), 15)
    assert not (store.folder / "index").exists()


def test_an_index_that_another_process_writes_meanwhile_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "a", 1, 15)
    other = FeatureStore(tmp_path / "a", WIDTHS).folder / "index"
    store = filled(tmp_path / "b")
    monkeypatch.setattr(index, "write_tensor_file", lambda file, *_, **__: shutil.copy(other, file))
    assert_entries(FeatureStore(tmp_path / "b", WIDTHS), 15)
    monkeypatch.undo()
    assert_entries(FeatureStore(tmp_path / "b", WIDTHS), 15)
    assert store.folder.joinpath("index").read_bytes() != other.read_bytes()


def test_the_file_of_a_killed_writer_is_no_index(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (store.folder / ".index.1.tmp").write_bytes(b"half of it")
    (store.folder / "index.lock").touch()
    assert_entries(FeatureStore(tmp_path, WIDTHS), 15)


# ---------------------------------------------------------------------------------------------------------- one for all


def mapped(process: str = "self") -> set[int]:
    """Inodes of all index files that a process has mapped."""
    lines = [line.split() for line in Path(f"/proc/{process}/maps").read_text().splitlines()]
    return {int(line[4]) for line in lines if line[-1].endswith("/index")}


@pytest.mark.skipif(not MAPS.exists(), reason="needs Linux's /proc")
def test_processes_that_open_a_store_at_once_map_one_file(tmp_path: Path) -> None:
    store = filled(tmp_path, 20, 50)
    forking = multiprocessing.get_context("fork")  # a new process would import torch first
    steps = [forking.Barrier(5, timeout=240) for _ in range(3)]
    processes = [forking.Process(target=_open_store, args=(tmp_path, steps)) for _ in range(4)]
    for process in processes:
        process.start()
    before = mapped()
    for step in steps[:2]:
        step.wait()
    own = [mapped(str(process.pid)) - before for process in processes]
    steps[2].wait()
    for process in processes:
        process.join()
    assert own == [{(store.folder / "index").stat().st_ino}] * 4
    assert [process.exitcode for process in processes] == [0] * 4


def _open_store(root: Path, steps: Sequence[Barrier]) -> None:
    """Open the store when all are ready, and keep it open until all have."""
    begin, opened, end = steps
    begin.wait()
    store = FeatureStore(root, WIDTHS)
    assert len(store) == 1000
    opened.wait()
    end.wait()


@pytest.mark.skipif(not MAPS.exists(), reason="needs Linux's /proc")
def test_a_forked_process_has_its_parents_index(tmp_path: Path) -> None:
    filled(tmp_path)
    store = FeatureStore(tmp_path, WIDTHS)
    (store.folder / "index").unlink()  # it stays mapped
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        inodes = mapped() if float(store[feature_key("7")].pooled) == 7 else set[int]()
        os.write(writer, repr(inodes).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 1000).decode() == repr(mapped())
