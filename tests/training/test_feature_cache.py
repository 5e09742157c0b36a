"""``cache: DIR``: what is asked for and under which keys, what data then read, and what is refused before a file is."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from PIL import Image

from mmprefix.data.collate import pad_media
from mmprefix.data.index import DatasetIndex
from mmprefix.data.manifest import Example, InputRef
from mmprefix.data.pairs import PairData
from mmprefix.data.samplers import RowKey
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.clip import Clip
from mmprefix.encoders.cnn import Cnn, MelNet, save
from mmprefix.encoders.signals import Signals
from mmprefix.errors import InputError
from mmprefix.features.keys import feature_key
from mmprefix.features.store import CachedInputs, FeatureStore
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.resampler import Resampler
from mmprefix.model import Branch
from mmprefix.training.feature_cache import encode_requests, use_cache
from mmprefix.training.task import PrefixTask
from mmprefix.training.unfreeze import UnfreezeUntil
from mmprefix.types import FeatureRow
from tiny import encoders as tiny_encoders
from tiny.captioning_system import SIZES, quietly
from tiny.decoders import save_decoder
from tiny.pairs import trainer
from tiny.speech_system import RATE, tone

pytestmark = quietly
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frozen parts, three pictures and three sounds with signals, and a manifest of them for each stage."""
    folder = tmp_path_factory.mktemp("cache")
    torch.manual_seed(3)
    tiny_encoders.save_clip(folder / "clip")
    save(tiny_encoders.randomized(MelNet(SIZES)), folder / "cnn")
    save_decoder(folder / "decoder")
    rows = []
    for n, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 40), colour).save(folder / f"{n}.png")
        soundfile.write(folder / f"{n}.wav", tone(300.0 * (n + 1), 0.3 + 0.1 * n), RATE)
        rows.append({"image": f"{n}.png", "caption": colour})
        rows.append({"audio": f"{n}.wav", "signals": [0.1 * n, 1.0, 2.0, 3.0], "caption": f"tone {n}"})
    for name, part in (("train", rows), ("test", rows[2:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def task_of(folder: Path) -> PrefixTask:
    """Pictures whose summary is read, sounds whose frames are read, and signals."""
    branches = {
        "image": Branch(Clip(str(folder / "clip")), partial(MLP, length=2, hidden=8)),
        "audio": Branch(Cnn(str(folder / "cnn")), partial(Resampler, length=2, layers=1, heads=4, hidden=8)),
        "signals": Branch(Signals(), partial(MLP, length=2, hidden=8)),
    }
    return PrefixTask(branches, CausalDecoder(str(folder / "decoder")))


def data_of(folder: Path, **options: Any) -> PairData:
    files = {
        "train": str(folder / "train.jsonl"),
        "val": str(folder / "train.jsonl"),
        "test": str(folder / "test.jsonl"),
    }
    return PairData(**{**files, "batch_size": 2, **options})


def cached(task: PrefixTask, data: Any, root: Path, **options: Any) -> dict[str, FeatureStore]:
    own: dict[str, Any] = {"stages": ["fit"], "dtype": "float32", "callbacks": [], "trainer": trainer(root), **options}
    return use_cache(task, data, own.pop("stages"), root=str(root / "cache"), **own)


def sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# ---------------------------------------------------------------------------------------------------------- requests


def index_of(*inputs: dict[str, InputRef], seconds: float = 1.0) -> DatasetIndex:
    examples = [Example(str(n), own, ("a",), file="m.jsonl", line=n) for n, own in enumerate(inputs, 1)]
    keys = [RowKey(frozenset(own), seconds + n, 1, 1) for n, own in enumerate(inputs)]
    return DatasetIndex(examples, keys, [])


def test_each_span_of_each_sound_is_one_request(folder: Path, tmp_path: Path) -> None:
    one, two = (str(folder / f"{n}.wav") for n in (0, 1))
    first = index_of(
        {"audio": InputRef(one)}, {"audio": InputRef(one, 0.1, 0.2)}, {"image": InputRef(str(folder / "0.png"))}
    )
    second = index_of({"audio": InputRef(two)}, {"audio": InputRef(one)}, seconds=7.0)
    encoder = Cnn(str(folder / "cnn"))
    keys, requests = encode_requests([first, second], "audio", encoder, tmp_path / "hashes")
    expected = {
        (one, 0.0, None): feature_key(sha(folder / "0.wav"), 0.0, None),
        (one, 0.1, 0.2): feature_key(sha(folder / "0.wav"), 0.1, 0.2),
        (two, 0.0, None): feature_key(sha(folder / "1.wav"), 0.0, None),
    }
    assert keys == expected
    assert len(set(expected.values())) == 3
    assert {request[1:4]: request.key for request in requests} == expected
    assert {request[1:4]: request.length for request in requests} == {
        (one, 0.0, None): 8.0,  # the last row that names it
        (one, 0.1, 0.2): 2.0,
        (two, 0.0, None): 7.0,
    }


def test_a_picture_has_no_time(folder: Path, tmp_path: Path) -> None:
    """A span that stands beside a picture, for its sound, is no part of the picture's key."""
    file = str(folder / "0.png")
    rows = index_of({"image": InputRef(file)}, {"image": InputRef(file, 1.0, 2.0)})
    keys, requests = encode_requests([rows], "image", Clip(str(folder / "clip")), tmp_path / "hashes")
    assert set(keys) == {(file, 0.0, None), (file, 1.0, 2.0)}
    assert set(keys.values()) == {feature_key(sha(folder / "0.png"))} == {request.key for request in requests}


def test_equal_files_share_a_key_and_other_branches_ask_for_nothing(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.wav"
    copy.write_bytes((folder / "0.wav").read_bytes())
    rows = index_of({"audio": InputRef(str(copy))}, {"audio": InputRef(str(folder / "0.wav"))})
    encoder = Cnn(str(folder / "cnn"))
    keys, _ = encode_requests([rows], "audio", encoder, tmp_path / "hashes")
    assert len(keys) == 2
    assert len(set(keys.values())) == 1
    assert encode_requests([rows], "music", encoder, tmp_path / "hashes") == ({}, [])
    assert encode_requests([], "audio", encoder, tmp_path / "hashes") == ({}, [])


# ------------------------------------------------------------------------------------------------------------- use


def test_data_read_the_features_of_the_encoders(folder: Path, tmp_path: Path) -> None:
    task, data = task_of(folder), data_of(folder)
    before = task.inputs
    stores = cached(task, data, tmp_path)
    assert set(stores) == {"image", "audio"}  # signals are as small as their features
    assert data.inputs is not None
    for branch, suffix in (("image", "png"), ("audio", "wav")):
        load, encoder = data.inputs.load[branch], task.model.encoder(branch)
        assert isinstance(load, CachedInputs)
        assert load.store is stores[branch]
        assert len(stores[branch]) == 3
        for n in range(3):
            row = load(str(folder / f"{n}.{suffix}"), 0.0, None)
            assert isinstance(row, FeatureRow)
            features = encoder(pad_media([encoder.preprocess(str(folder / f"{n}.{suffix}"), 0.0, None)]))
            assert torch.allclose(row.pooled, features.pooled[0], atol=1e-5)
            frames = features.frames[0, features.mask[0]] if branch == "audio" else torch.zeros(0, 0)
            assert torch.allclose(row.frames, frames, atol=1e-5)  # no mapper reads the pictures' frames
    assert data.inputs.load["signals"] is task.model.encoder("signals").preprocess
    assert data.inputs.kinds == before.kinds
    assert task.inputs.load == before.load  # the task itself still reads files: a saved model has no store
    batches = list(data.train_dataloader())
    assert sorted(text for batch in batches for texts in batch.targets for text in texts) == sorted(
        [*COLOURS, *(f"tone {n}" for n in range(3))]
    )


def test_all_stages_are_encoded_and_each_input_once(folder: Path, tmp_path: Path) -> None:
    task, data = task_of(folder), data_of(folder)
    assert len(cached(task, data, tmp_path, stages=["test"])["image"]) == 2
    stores = cached(task, data_of(folder), tmp_path, stages=["fit", "test"])
    assert [len(store) for store in stores.values()] == [3, 3]
    other = cached(task, data_of(folder), tmp_path, stages=["test"], dtype="float16")
    assert [len(store) for store in other.values()] == [2, 2]
    assert {store.dtype for store in other.values()} == {torch.float16}
    assert not {store.folder for store in other.values()} & {store.folder for store in stores.values()}


# ----------------------------------------------------------------------------------------------------------- refusals


def test_features_that_change_are_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    task = task_of(folder)
    with pytest.raises(InputError, match="cache: the encoder of branch audio is trained too"):
        cached(task, data_of(folder), tmp_path, callbacks=[UnfreezeUntil("audio", 1)])
    task.model.encoder("image").tune()
    with pytest.raises(InputError, match="cache: the encoder of branch image is trained too"):
        cached(task, data_of(folder), tmp_path)
    task.model.encoder("image").freeze()  # trained before: its weights are no longer those of its files
    with pytest.raises(InputError, match="cache: the encoder of branch image is trained too"):
        cached(task, data_of(folder), tmp_path)
    assert not (tmp_path / "cache").exists()


def test_an_encoder_whose_features_are_not_stored_may_be_trained(folder: Path, tmp_path: Path) -> None:
    stores = cached(task_of(folder), data_of(folder), tmp_path, callbacks=[UnfreezeUntil("signals", 1)])
    assert set(stores) == {"image", "audio"}


def test_other_data_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cache: is for data from manifests, not str; leave it out$"):
        cached(task_of(folder), "data", tmp_path)


def test_inputs_that_cannot_be_read_are_named_with_their_rows(folder: Path, tmp_path: Path) -> None:
    content = (folder / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(content[: len(content) // 2])  # its header is whole
    rows = [{"image": str(folder / "0.png"), "caption": "a"}]
    rows += [{"image": str(tmp_path / "1.png"), "id": f"b{n}", "caption": "b", "prompt": f"{n}"} for n in (1, 2)]
    file = tmp_path / "m.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {"train": str(file), "val": str(file), "test": None}
    with pytest.raises(InputError) as error:
        cached(task_of(folder), data_of(folder, **options), tmp_path)
    head, *lines = str(error.value).splitlines()
    assert head == "4 bad rows (data.on_bad skip would leave them out)"  # two of training, two of validation
    assert [line.split(": ")[0] for line in lines] == [f"{file}:{n}" for n in (2, 2, 3, 3)]
    assert all("1.png" in line for line in lines)
    data = data_of(folder, on_bad="skip", **options)
    stores = cached(task_of(folder), data, tmp_path)
    assert len(stores["image"]) == 1
    assert data.inputs is not None
    with pytest.raises(InputError, match=r"1\.png"):
        data.inputs.load["image"](str(tmp_path / "1.png"), 0.0, None)
    with pytest.raises(InputError, match=r"2\.png: is not in the cache"):
        data.inputs.load["image"](str(folder / "2.png"), 0.0, None)
