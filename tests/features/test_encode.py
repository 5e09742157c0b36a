"""Filling the feature store: training on it equals plain training; interrupted runs are continued."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from mmprefix.data.manifest import read_manifest
from mmprefix.encoders.clip import Clip
from mmprefix.encoders.cnn import Cnn
from mmprefix.errors import InputError
from mmprefix.features import encode as features_encode
from mmprefix.features.encode import EncodeModule, to_feature_rows
from mmprefix.features.keys import content_hashes, feature_key
from mmprefix.features.store import FeatureStore, store_description
from mmprefix.model import PrefixLM
from mmprefix.types import Features
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
from tiny.forked import Forked

pytestmark = quietly


def contents(folder: Path) -> dict[bytes, tuple[bytes, bytes]]:
    """Entries of all shards below a folder by key, as the safetensors library reads them; no key may occur twice."""
    entries: dict[bytes, tuple[bytes, bytes]] = {}
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            ends = [0, *shard.get_tensor("ends").tolist()]
            frames, pooled = shard.get_tensor("frames"), shard.get_tensor("pooled")
            for row, name in enumerate(shard.get_tensor("keys").tolist()):
                assert bytes(name) not in entries
                parts = (frames[ends[row] : ends[row + 1]], pooled[row])
                entries[bytes(name)] = tuple(part.view(torch.uint8).numpy().tobytes() for part in parts)  # pyright: ignore
    return entries


# ------------------------------------------------------------------------------------------------- filling, training


def encode(recipe: Path, cache: Path, **options: Any) -> int:
    return run("encode", recipe, cache=cache, **options)


@pytest.fixture(scope="module")
def filled(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("filled")
    assert encode(tiny.recipe(tiny.config(), root), root / "cache", cache_dtype="float32") == 0
    return root


def test_the_store_holds_the_features_of_the_encoders(tiny: CaptioningSystem, filled: Path) -> None:
    rows, _ = read_manifest(tiny.folder / "train.jsonl")
    encoders = {"image": Clip(tiny.path("pictures")), "audio": Cnn(tiny.path("sounds"))}
    for branch, encoder in encoders.items():
        store = FeatureStore(filled / "cache", store_description(encoder, "float32"))
        sources = [row.inputs[branch].path for row in rows if branch in row.inputs]
        assert len(store) == len(sources) == 6
        hashes = content_hashes(sources, filled / "cache" / "inputs.sqlite")
        for source in sources:
            features = encoder(collect(encoder, source))
            kept = store[feature_key(hashes[source])]
            assert torch.allclose(kept.frames, features.frames[0, features.mask[0]], atol=1e-5)
            assert torch.allclose(kept.pooled, features.pooled[0], atol=1e-5)


def collect(encoder: Any, source: str) -> Any:
    from mmprefix.data.collate import pad_media

    return pad_media([encoder.preprocess(source)])


def test_a_full_store_is_read_and_nothing_is_encoded(
    tiny: CaptioningSystem, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    assert run("fit", tiny.recipe(tiny.config(), tmp_path / "plain"), test_after_fit=True) == 0
    before = contents(filled / "cache")

    def stored_features(model: PrefixLM, inputs: dict[str, Any]) -> dict[str, Features]:
        assert all(isinstance(value, Features) for value in inputs.values())
        return features(model, inputs)

    features = PrefixLM.features
    monkeypatch.setattr(PrefixLM, "features", stored_features)
    monkeypatch.delattr(EncodeModule, "predict_step")
    options = {"cache": filled / "cache", "cache_dtype": "float32", "test_after_fit": True}
    assert run("fit", tiny.recipe(tiny.config(), tmp_path / "kept"), **options) == 0
    assert contents(filled / "cache") == before
    plain, kept = training_record(tmp_path / "plain"), training_record(tmp_path / "kept")
    assert plain.steps == kept.steps
    for name in ("train/loss", "val/loss", "test/loss"):
        assert metric_values(tmp_path / "kept", name) == pytest.approx(
            metric_values(tmp_path / "plain", name), rel=1e-4
        )
    assert "cache: 6 inputs of branch image" in capfd.readouterr().err
    moved = {name for name in kept.after if not torch.equal(kept.after[name], kept.before[name])}
    assert moved
    assert all("mappers" in name for name in moved)


def test_fit_fills_the_store(tiny: CaptioningSystem, filled: Path, tmp_path: Path) -> None:
    config = tiny.config()
    config["cache"] = str(tmp_path / "cache")
    assert run("fit", tiny.recipe(config, tmp_path / "half"), trainer__max_steps=2) == 0
    assert contents(tmp_path / "cache").keys() == contents(filled / "cache").keys()
    assert run("validate", tiny.recipe(config, tmp_path / "half"), ckpt_path="last") == 0
    assert run("predict", tiny.recipe(config, tmp_path / "half"), ckpt_path="last") == 0
    assert len((tmp_path / "half" / "predictions.jsonl").read_text().splitlines()) == 7


def test_frames_that_no_mapper_reads_are_not_stored(tiny: CaptioningSystem, tmp_path: Path) -> None:
    config = tiny.config(("image",))
    mapper = {"class_path": "mmprefix.mappers.mlp.MLP", "init_args": {"length": 3}}
    config["model"]["branches"]["image"]["mapper"] = mapper
    cache = {"cache": str(tmp_path / "cache"), "cache_dtype": "float32"}
    assert run("fit", tiny.recipe(config, tmp_path / "plain")) == 0
    assert run("fit", tiny.recipe(config, tmp_path / "kept"), **cache) == 0
    assert metric_values(tmp_path / "kept", "train/loss") == pytest.approx(
        metric_values(tmp_path / "plain", "train/loss"), rel=1e-4
    )
    clip = Clip(tiny.path("pictures"))
    assert clip.dim
    store = FeatureStore(tmp_path / "cache", store_description(clip, "float32", frames=False))
    assert len(store) == 6
    assert all(store[name].frames.shape == (0, 0) for name in store)
    assert all(len(store[name].pooled) == clip.pooled_dim for name in store)
    assert not len(FeatureStore(tmp_path / "cache", store_description(clip, "float32")))


def test_workers_read_from_the_store_too(tiny: CaptioningSystem, filled: Path, tmp_path: Path) -> None:
    cache: dict[str, Any] = {"cache": filled / "cache", "cache_dtype": "float32"}
    for workers in (0, 2):
        recipe = tiny.recipe(tiny.config(), tmp_path / str(workers))
        assert run("fit", recipe, trainer__max_epochs=1, data__num_workers=workers, **cache) == 0
    assert same_tensors(training_record(tmp_path / "0").after, training_record(tmp_path / "2").after)


def test_a_changed_file_is_encoded_anew(tiny: CaptioningSystem, filled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(tiny.folder, folder)
    moved = CaptioningSystem(folder)
    shutil.copytree(filled / "cache", tmp_path / "cache")
    before = contents(tmp_path / "cache")
    assert encode(moved.recipe(moved.config(), tmp_path / "r"), tmp_path / "cache", cache_dtype="float32") == 0
    assert contents(tmp_path / "cache") == before  # moved files and encoders keep their keys
    shutil.copy(folder / "1.png", folder / "0.png")
    shutil.copy(folder / "1.wav", folder / "0.wav")
    rows = (folder / "train.jsonl").read_text().replace('"audio": "2.wav"', '"audio": "2.wav", "start": 0.1')
    (folder / "train.jsonl").write_text(rows)
    assert encode(moved.recipe(moved.config(), tmp_path / "r"), tmp_path / "cache", cache_dtype="float32") == 0
    after = contents(tmp_path / "cache")
    assert after.items() > before.items()
    assert len(after) == len(before) + 1  # a copy of another file has its key; a span has one of its own


def test_unreadable_files_are_named(tiny: CaptioningSystem, tmp_path: Path, capfd: Any) -> None:
    folder = shutil.copytree(tiny.folder, tmp_path / "data")
    picture = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(picture[: len(picture) // 2])
    tiny = CaptioningSystem(folder)
    assert run("encode", tiny.recipe(tiny.config(), tmp_path / "r"), cache=tmp_path / "cache") == 2
    message = capfd.readouterr().err
    assert "bad rows (data.on_bad skip would leave them out)" in message
    assert "3.png" in message
    options = {"cache": tmp_path / "cache", "data__on_bad": "skip", "trainer__max_epochs": 1}
    assert run("fit", tiny.recipe(tiny.config(), tmp_path / "r"), **options) == 0
    assert len(contents(tmp_path / "cache")) == 11
    seen = [name for _, ids in training_record(tmp_path / "r").steps for name in ids]
    assert sorted(seen) == sorted({f"{kind}{n}" for kind in "ps" for n in range(6)} - {"p3"})


def test_features_that_change_are_not_stored(tiny: CaptioningSystem, tmp_path: Path, capfd: Any) -> None:
    config = tiny.config()
    freeze = {"class_path": "mmprefix.training.UnfreezeUntil", "init_args": {"branch": "audio", "epochs": 1}}
    config["trainer"]["callbacks"] = [freeze]
    message = error_message("fit", tiny.recipe(config, tmp_path), capfd, cache=tmp_path / "cache")
    assert message.startswith("cache: the encoder of branch audio is trained too")
    plain = tiny.recipe(tiny.config(), tmp_path / "plain")
    assert error_message("encode", plain, capfd).startswith("cache: no folder for the feature store")
    message = error_message("encode", plain, capfd, cache=tmp_path / "cache", cache_dtype="int8")
    assert message.startswith("cache_dtype 'int8': give float16 or float32")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_keeps_what_is_encoded(
    number: signal.Signals, tiny: CaptioningSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """A signal in the third batch: two are kept, the line says how to go on, the same command ends with all."""
    recipe, cache = tiny.recipe(tiny.config(("image",)), tmp_path), tmp_path / "cache"
    batches: list[Any] = []

    def rows_and_signal(features: Features, store: FeatureStore) -> list[Any]:
        batches.append(features)
        if len(batches) == 3:
            os.kill(os.getpid(), number)
        return to_feature_rows(features, store)

    monkeypatch.setattr(features_encode, "to_feature_rows", rows_and_signal)
    options = {"data__eval_batch_size": 1, "cache_dtype": "float32"}
    before = signal.getsignal(number)
    assert encode(recipe, cache, **options) == 128 + number
    assert signal.getsignal(number) is before
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mmprefix: ")]
    (folder,) = cache.glob("clip-*")
    assert lines == [
        f"mmprefix: stopped by {number.name}; the features so far are in {folder}; the same command goes on"
    ]
    kept = contents(cache)
    assert len(kept) == 2
    assert encode(recipe, cache, **options) == 0
    assert contents(cache).items() > kept.items()
    assert len(contents(cache)) == 6 == len(batches) - 1


def test_folders_that_cannot_be_written_are_refused_before_an_encoder_is_loaded(
    tiny: CaptioningSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    recipe, file = tiny.recipe(tiny.config(), tmp_path), tmp_path / "file"
    file.write_text("a file")
    monkeypatch.delattr(Clip, "__init__")
    message = error_message("encode", recipe, capfd, cache=file / "cache")
    assert message == f"--cache {file / 'cache'}: cannot be written (Not a directory); give another folder"
    shards = {"to": "webdataset", "cache": tmp_path / "cache"}
    message = error_message("encode", recipe, capfd, out=file, **shards)
    assert message == f"--out {file}: cannot be written (File exists); give another folder"
    (tmp_path / "index.json").write_text("{}")
    assert "holds shards already" in error_message("encode", recipe, capfd, out=tmp_path, **shards)
    assert error_message("encode", recipe, capfd, out=tmp_path / "s", shard_rows=0, **shards).startswith("--shard_rows")


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_spawn"])
def test_copies_of_a_process_fill_no_store_and_read_a_full_one(
    strategy: str, tiny: CaptioningSystem, filled: Path, tmp_path: Path, capfd: Any
) -> None:
    recipe = tiny.recipe(tiny.config(), tmp_path)
    more = {"cache_dtype": "float32", "trainer__devices": 2, "trainer__strategy": strategy}
    message = error_message("encode", recipe, capfd, cache=tmp_path / "cache", **more)
    assert message.startswith(f"trainer.strategy: processes of {strategy} cannot fill a feature store; give ddp, or ")
    assert encode(recipe, filled / "cache", **more) == 0


def test_a_full_disk_is_one_line_that_names_the_file(tiny: CaptioningSystem, tmp_path: Path, capfd: Any) -> None:
    recipe, cache = tiny.recipe(tiny.config(("image",)), tmp_path), tmp_path / "cache"
    assert encode(recipe, cache, cache_dtype="float32") == 0
    (file,) = cache.glob("clip-*/*.safetensors")
    file.unlink()
    with full_disk(8000):  # the hashes of the files are known; the features need 10,000 bytes
        message = error_message("encode", recipe, capfd, cache=cache, cache_dtype="float32")
    assert re.fullmatch(rf"{file.parent}/\S+-00000.safetensors: could not be written \(.*File too large.*", message)
    assert not list(cache.rglob("*.tmp"))
    assert not list(cache.rglob("*.txt"))
    assert encode(recipe, cache, cache_dtype="float32") == 0
    with full_disk(1000), pytest.raises(InputError, match=r"inputs.sqlite: cannot be used \(.*; it only remembers"):
        content_hashes([tiny.folder / "0.wav"], tmp_path / "another" / "inputs.sqlite")
    (cache / "inputs.sqlite").write_bytes(b"another program's" * 100)
    message = error_message("encode", recipe, capfd, cache=cache, cache_dtype="float32")
    assert message.startswith(f"{cache / 'inputs.sqlite'}: cannot be used (file is not a database)")


# ---------------------------------------------------------------------------------------- killed, and several at once


@contextmanager
def slow_batches(seconds: float) -> Iterator[None]:
    """Let each batch take so many ``seconds``, and be written immediately."""
    plain = EncodeModule.predict_step

    def predict_step(module: EncodeModule, *batch: Any) -> Any:
        time.sleep(seconds)
        return plain(module, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features_encode, "SECONDS", 0.0)
        patch.setattr(EncodeModule, "predict_step", predict_step)
        yield


def encode_slowly(recipe: Path, cache: Path, slow: float, **options: Any) -> int:
    """Run ``mmprefix encode`` with batches of one input that take ``slow`` seconds."""
    with slow_batches(slow):
        return encode(recipe, cache, cache_dtype="float32", data__eval_batch_size=1, **options)


def start(recipe: Path, cache: Path, slow: float) -> Forked:
    """Start ``encode_slowly`` in a process."""
    return Forked(partial(encode_slowly, recipe, cache, slow), recipe.with_name("log"))


def finish(*processes: Forked) -> None:
    for process in processes:
        assert process.wait() == 0, process.log.read_text()


@pytest.fixture(scope="module")
def uninterrupted(tiny: CaptioningSystem, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, tuple[bytes, bytes]]:
    root = tmp_path_factory.mktemp("once")
    finish(start(tiny.recipe(tiny.config(), root), root / "cache", 0.0))
    return contents(root / "cache")


def claims(cache: Path) -> set[Path]:
    """Claim files of all processes that started to encode, killed ones included."""
    files: set[Path] = set()
    for file in cache.rglob("*.txt"):
        with suppress(FileNotFoundError):  # files of killed processes are removed
            files |= {file} if file.read_text() else set()
    return files


@pytest.mark.slow
def test_a_run_killed_at_any_moment_is_continued_to_the_same_bits(
    tiny: CaptioningSystem, uninterrupted: dict[bytes, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    recipe, cache = tiny.recipe(tiny.config(), tmp_path), tmp_path / "cache"
    draw, kept = random.Random(0), [0]
    for _ in range(5):
        before = claims(cache)
        process = start(recipe, cache, 0.2)
        deadline = time.monotonic() + 300
        while claims(cache) <= before:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.4))
        assert process.poll() is None  # it was encoding
        process.kill()
        kept.append(len(contents(cache)))
    assert kept == sorted(kept)
    assert 0 < kept[-1] < len(uninterrupted)
    finish(start(recipe, cache, 0.0))
    assert contents(cache) == uninterrupted
    assert not list(cache.rglob("*.txt"))  # nothing is left of killed processes


@pytest.mark.slow
def test_the_work_of_a_killed_process_is_done_by_the_other(
    tiny: CaptioningSystem, uninterrupted: dict[bytes, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    """Both hold work and have published some; one is killed with -9, the other ends, and overwrites nothing."""
    recipe, cache = tiny.recipe(tiny.config(), tmp_path), tmp_path / "cache"
    killed, living = (start(recipe, cache, 0.5) for _ in range(2))
    deadline, writers = time.monotonic() + 300, set[str]()
    while len(claims(cache)) < 2 or len(writers) < 2:
        writers |= {file.name.split("-")[-3] for file in cache.rglob("*.safetensors")}
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    before = {file: file.read_bytes() for file in cache.rglob("*.safetensors")}
    finish(living)
    assert {file: file.read_bytes() for file in before} == before
    assert contents(cache) == uninterrupted
    assert not list(cache.rglob("*.txt"))


@pytest.mark.slow
def test_two_processes_share_the_work(
    tiny: CaptioningSystem, uninterrupted: dict[bytes, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    recipe, cache = tiny.recipe(tiny.config(), tmp_path), tmp_path / "cache"
    finish(*(start(recipe, cache, 0.5) for _ in range(2)))
    assert contents(cache) == uninterrupted  # and nothing occurs twice


SCRIPT = """
import sys
from features.test_encode import slow_batches
from mmprefix.cli.main import main
with slow_batches(0.3):
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_processes_of_one_trainer_share_the_work(
    tiny: CaptioningSystem, uninterrupted: dict[bytes, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    """The first is forked; Lightning starts the second by the words of the first."""
    recipe, cache = tiny.recipe(tiny.config(), tmp_path), tmp_path / "cache"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def first() -> int:
        sys.argv = [str(script)]  # the command line adds its words
        sys.modules["__main__"].__spec__ = None  # as of a process that runs a file
        tests = Path(__file__).resolve().parents[1]
        os.environ["PYTHONPATH"] = os.pathsep.join([str(tests.parent), str(tests)])
        return encode_slowly(recipe, cache, 0.3, trainer__devices=2, trainer__strategy="ddp")

    finish(Forked(first, tmp_path / "log"))
    assert contents(cache) == uninterrupted
    writers = {file.name.rpartition("-")[0] for file in cache.rglob("*.safetensors")}
    assert len(writers) >= 2
