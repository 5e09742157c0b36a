"""Feature store: entries equal to the bit, damage detected, keys by content, folders by encoder."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmprefix.encoders.clip import Clip
from mmprefix.encoders.cnn import Cnn
from mmprefix.errors import InputError
from mmprefix.features.keys import content_hashes, feature_key
from mmprefix.features.shard import Shard, write_shard
from mmprefix.features.store import FeatureStore, store_description
from mmprefix.features.tensor_file import DamagedError
from mmprefix.types import FeatureRow
from tiny.captioning_system import CaptioningSystem, quietly
from tiny.logs import collect_warnings

pytestmark = quietly
WIDTHS = {"encoder": "some.Encoder", "dtype": "float16", "widths": [3, 2]}


def entry(number: int, length: int, kind: torch.dtype = torch.float16) -> FeatureRow:
    draw = torch.Generator().manual_seed(number)
    return FeatureRow(torch.randn(length, 3, generator=draw).to(kind), torch.randn(2, generator=draw).to(kind))


# ----------------------------------------------------------------------------------------------------------- the store


def test_entries_are_read_back(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, WIDTHS)
    lengths = [4, 0, 7, 1, 2]
    entries = {feature_key(f"file {n}"): entry(n, length) for n, length in enumerate(lengths)}
    names = list(entries)
    assert len(store) == 0
    assert names[0] not in store
    store.add("a", names[:3], [entries[name] for name in names[:3]])
    store.add("b", names[3:], [entries[name] for name in names[3:]])
    assert len(store) == 0  # an open store does not change by itself
    store.refresh_if_changed()
    for opened in (store, FeatureStore(tmp_path, WIDTHS), pickle.loads(pickle.dumps(store))):
        assert sorted(opened) == sorted(names)
        for name in names:
            assert torch.equal(opened[name].frames, entries[name].frames)
            assert torch.equal(opened[name].pooled, entries[name].pooled)
    with pytest.raises(KeyError):
        store[feature_key("another file")]
    clash = names[0][:8] + bytes(8)  # keys are told apart by all their bytes
    assert clash not in store
    store.add("c", [clash], [entry(9, 1)])
    store.refresh_if_changed()
    assert torch.equal(store[clash].frames, entry(9, 1).frames)
    assert torch.equal(store[names[0]].frames, entries[names[0]].frames)


@pytest.mark.parametrize(("widths", "shape"), [([0, 2], (0, 0)), ([3, 0], (4, 3))], ids=["summary", "frames"])
def test_features_of_one_kind_alone(widths: list[int], shape: tuple[int, int], tmp_path: Path) -> None:
    row = FeatureRow(torch.ones(shape), torch.ones(widths[1]))
    store = FeatureStore(tmp_path, {**WIDTHS, "widths": widths, "dtype": "float32"})
    store.add("a", [feature_key("x"), feature_key("y")], [row, row])
    store.refresh_if_changed()
    assert torch.equal(store[feature_key("y")].frames, row.frames)
    assert torch.equal(store[feature_key("y")].pooled, row.pooled)


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    half, full = (FeatureStore(tmp_path, {**WIDTHS, "dtype": dtype}) for dtype in ("float16", "float32"))
    assert half.folder != full.folder
    large = FeatureRow(torch.full((1, 3), 70000.0), torch.zeros(2))
    with pytest.raises(InputError, match=r"no finite numbers as float16; give cache_dtype float32"):
        half.add("a", [feature_key("x")], [large])
    full.add("a", [feature_key("x")], [large])
    full.refresh_if_changed()
    assert torch.equal(full[feature_key("x")].frames, large.frames)
    with pytest.raises(InputError, match="cache_dtype 'bfloat16': give float16 or float32"):
        FeatureStore(tmp_path, {**WIDTHS, "dtype": "bfloat16"})


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "flip"])
def test_a_damaged_shard_is_detected_and_written_again(damage: str, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, WIDTHS)
    for name in ("a", "b"):
        store.add(name, [feature_key(name)], [entry(ord(name), 5)])
    file = store.folder / "a.safetensors"
    whole = file.read_bytes()
    broken = {"cut": whole[:-3], "empty": b"", "header": b"\0" * 8 + whole[8:], "flip": whole[:-1] + b"?"}[damage]
    file.write_bytes(broken)
    store = FeatureStore(tmp_path, WIDTHS)
    if damage != "flip":
        assert feature_key("a") not in store
        with pytest.raises(DamagedError):
            Shard(file)
    assert store.remove_damaged() == 1
    assert feature_key("a") not in store
    assert feature_key("b") in store
    assert not file.exists()
    assert store.remove_damaged() == 0


def header(**changes: Any) -> bytes:
    """Shard of one entry whose header was changed; a change to None leaves a tensor out."""
    tensors = {
        "keys": {"dtype": "U8", "shape": [1, 16], "data_offsets": [0, 16]},
        "ends": {"dtype": "I64", "shape": [1], "data_offsets": [16, 24]},
        "frames": {"dtype": "F16", "shape": [1, 3], "data_offsets": [24, 30]},
        "pooled": {"dtype": "F16", "shape": [1, 2], "data_offsets": [30, 34]},
    }
    content = bytes(16) + (1).to_bytes(8, "little") + bytes(10)
    table = {name: {**part, **changes.pop(name, {})} for name, part in tensors.items()}
    text = json.dumps({"__metadata__": {"sha256": hashlib.sha256(content).hexdigest()}, **table, **changes}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content


BAD_SHARDS = {
    "zero bytes": b"",
    "a few bytes": b"abc",
    "no safetensors": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "cut off": header()[:-3],
    "longer than it says": header() + b"?",
    "header longer than the file": (1 << 62).to_bytes(8, "little") + b"{}",
    "huge header": (2 << 20).to_bytes(8, "little") + b" " * (2 << 20),
    "deep header": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "header that is a list": (8).to_bytes(8, "little") + b"[1, 2]  ",
    "header of bytes": (8).to_bytes(8, "little") + b"\xff" * 8,
    "metadata that are a number": header(__metadata__=3),
    "another dtype": header(frames={"dtype": "BF16"}),
    "keys as numbers": header(keys={"dtype": "I64", "shape": [1, 2]}),
    "ends as floats": header(ends={"dtype": "F32", "shape": [2]}),
    "two rows of ends": header(ends={"dtype": "U8", "shape": [8]}),
    "negative shape": header(frames={"shape": [-1, -3]}),
    "shape of words": header(frames={"shape": ["one", "three"]}),
    "shape that is larger": header(frames={"shape": [1 << 40, 3]}),
    "shape of three sides": header(frames={"shape": [1, 3, 1]}),
    "bytes of another tensor": header(frames={"data_offsets": [26, 32]}),
    "bytes behind the end": header(frames={"data_offsets": [1 << 40, (1 << 40) + 6]}),
    "bytes backwards": header(frames={"data_offsets": [30, 24]}),
    "odd place": header(ends={"data_offsets": [15, 23]}),
    "offsets of words": header(frames={"data_offsets": ["a", "b"]}),
}


@pytest.mark.parametrize("kind", BAD_SHARDS)
def test_a_bad_shard_is_one_line_and_its_inputs_are_encoded_anew(kind: str, tmp_path: Path) -> None:
    file = FeatureStore(tmp_path, WIDTHS).folder / "a.safetensors"
    file.write_bytes(BAD_SHARDS[kind])
    with collect_warnings() as messages:
        store = FeatureStore(tmp_path, WIDTHS)
    if kind != "bytes of another tensor":  # only the hash tells
        (message,) = messages
        assert message.startswith(f"left out: {file}: ")
        assert "\n" not in message
        assert len(message) < 500
        assert len(store) == 0
    assert store.remove_damaged() == 1
    assert not file.exists()


def test_a_whole_shard_is_read(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, WIDTHS)
    (store.folder / "a.safetensors").write_bytes(header())
    store.refresh()
    assert list(store) == [bytes(16)]
    assert store[bytes(16)].frames.shape == (1, 3)


def test_another_program_s_file_is_not_removed(tmp_path: Path) -> None:
    file = FeatureStore(tmp_path, WIDTHS).folder / "model.safetensors"
    save_file({"weight": torch.ones(3)}, file)
    with pytest.raises(InputError, match=r"model.safetensors: is another program's, .*; move it out of the feature"):
        FeatureStore(tmp_path, WIDTHS)
    assert file.exists()


def test_a_shard_is_never_overwritten(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, WIDTHS)
    store.add("a", [feature_key("x")], [entry(1, 1)])
    with pytest.raises(FileExistsError):
        store.add("a", [feature_key("y")], [entry(2, 1)])


def test_features_of_another_dtype_are_refused(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, WIDTHS)
    write_shard(store.folder / "a.safetensors", [feature_key("x")], [entry(1, 1, torch.float32)])
    with pytest.raises(InputError, match=r"a.safetensors: holds features of other widths or dtype"):
        store.refresh()


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, WIDTHS)
    write_shard(store.folder / "a.safetensors", [feature_key("x")], [FeatureRow(torch.zeros(1, 4), torch.zeros(2))])
    with pytest.raises(InputError, match="holds features of other widths"):
        store.refresh_if_changed()
    (store.folder / "encoder.json").write_text("{}")
    with pytest.raises(InputError, match="describes another encoder"):
        FeatureStore(tmp_path, WIDTHS)


# ------------------------------------------------------------------------------------------------------------- the key


def test_a_key_depends_on_content_and_time_span(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "two"), ("c", "one")):
        (tmp_path / name).write_text(text)
    paths, memory = [str(tmp_path / name) for name in "abc"], tmp_path / "memory" / "inputs.sqlite"
    first = content_hashes(paths, memory)
    assert first == content_hashes(paths, memory)
    assert first[paths[0]] == first[paths[2]] != first[paths[1]]
    then = (tmp_path / "a").stat()
    (tmp_path / "a").write_text("six")  # of the same length and, as it says, no younger
    os.utime(tmp_path / "a", ns=(then.st_atime_ns, then.st_mtime_ns))
    later = content_hashes(paths, memory)
    assert later[paths[0]] != first[paths[0]]
    assert later[paths[1]] == first[paths[1]]
    parts = {
        feature_key("x"),
        feature_key("y"),
        feature_key("x", 1.0),
        feature_key("x", 0.0, 1.0),
        feature_key("x", 1.0, 2.0),
    }
    assert len(parts) == 5
    assert {len(part) for part in parts} == {16}


def test_descriptions_of_different_encoders_differ(tiny: CaptioningSystem, tmp_path: Path) -> None:
    first = store_description(Clip(tiny.path("pictures")))
    copy = shutil.copytree(tiny.path("pictures"), tmp_path / "moved")
    assert store_description(Clip(str(copy))) == first  # its folder does not matter
    others = [store_description(Clip(str(copy)), "float32"), store_description(Cnn(tiny.path("sounds")))]
    (config,) = copy.glob("open_clip_config.json")
    settings = json.loads(config.read_text())
    settings["preprocess_cfg"]["mean"] = [0.1, 0.1, 0.1]
    config.write_text(json.dumps(settings))
    others.append(store_description(Clip(str(copy))))
    assert len({json.dumps(description, sort_keys=True) for description in [first, *others]}) == 4
