"""The feature store: what is found is kept, is never another encoder's or file's, and outlives any end of a run."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from mmprefix.data.manifest import read_manifest
from mmprefix.encoders.clip import Clip
from mmprefix.encoders.cnn import Cnn
from mmprefix.errors import InputError
from mmprefix.features.encode import EncodeModule
from mmprefix.features.keys import content_hashes, feature_key
from mmprefix.features.shard import Shard, write_shard
from mmprefix.features.store import FeatureStore, store_description
from mmprefix.features.tensor_file import DamagedError
from mmprefix.model import PrefixLM
from mmprefix.types import FeatureRow, Features
from tiny.captioning_system import Tiny, build, figures, quietly, refusal, run, same, watched

pytestmark = quietly
WIDTHS = {"encoder": "some.Encoder", "dtype": "float16", "widths": [3, 2]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("tiny"))


def entry(number: int, length: int, kind: torch.dtype = torch.float16) -> FeatureRow:
    draw = torch.Generator().manual_seed(number)
    return FeatureRow(torch.randn(length, 3, generator=draw).to(kind), torch.randn(2, generator=draw).to(kind))


def contents(folder: Path) -> dict[bytes, tuple[bytes, bytes]]:
    """What all shards below a folder hold, read by the safetensors library; no key may be there twice."""
    found: dict[bytes, tuple[bytes, bytes]] = {}
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            ends = [0, *shard.get_tensor("ends").tolist()]
            frames, pooled = shard.get_tensor("frames"), shard.get_tensor("pooled")
            for row, name in enumerate(shard.get_tensor("keys").tolist()):
                assert bytes(name) not in found
                parts = (frames[ends[row] : ends[row + 1]], pooled[row])
                found[bytes(name)] = tuple(part.view(torch.uint8).numpy().tobytes() for part in parts)  # pyright: ignore
    return found


# ----------------------------------------------------------------------------------------------------------- the store


def test_what_is_put_in_comes_out(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, WIDTHS)
    lengths = [4, 0, 7, 1, 2]
    given = {feature_key(f"file {n}"): entry(n, length) for n, length in enumerate(lengths)}
    names = list(given)
    assert len(store) == 0
    assert names[0] not in store
    store.add("a", names[:3], [given[name] for name in names[:3]])
    store.add("b", names[3:], [given[name] for name in names[3:]])
    assert len(store) == 0  # what is open does not change under its user
    store.refresh_if_changed()
    for opened in (store, FeatureStore(tmp_path, WIDTHS), pickle.loads(pickle.dumps(store))):
        assert sorted(opened) == sorted(names)
        for name in names:
            assert torch.equal(opened[name].frames, given[name].frames)
            assert torch.equal(opened[name].pooled, given[name].pooled)
    with pytest.raises(KeyError):
        store[feature_key("another file")]
    clash = names[0][:8] + bytes(8)  # keys are told apart by all their bytes
    assert clash not in store
    store.add("c", [clash], [entry(9, 1)])
    store.refresh_if_changed()
    assert torch.equal(store[clash].frames, entry(9, 1).frames)
    assert torch.equal(store[names[0]].frames, given[names[0]].frames)


@pytest.mark.parametrize(("widths", "shape"), [([0, 2], (0, 0)), ([3, 0], (4, 3))], ids=["summary", "frames"])
def test_features_of_one_kind_alone(widths: list[int], shape: tuple[int, int], tmp_path: Path) -> None:
    given = FeatureRow(torch.ones(shape), torch.ones(widths[1]))
    store = FeatureStore(tmp_path, {**WIDTHS, "widths": widths, "dtype": "float32"})
    store.add("a", [feature_key("x"), feature_key("y")], [given, given])
    store.refresh_if_changed()
    assert torch.equal(store[feature_key("y")].frames, given.frames)
    assert torch.equal(store[feature_key("y")].pooled, given.pooled)


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
def test_a_damaged_shard_is_found_and_made_anew(damage: str, tmp_path: Path) -> None:
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


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, WIDTHS)
    write_shard(store.folder / "a.safetensors", [feature_key("x")], [FeatureRow(torch.zeros(1, 4), torch.zeros(2))])
    with pytest.raises(InputError, match="holds features of other widths"):
        store.refresh_if_changed()
    (store.folder / "encoder.json").write_text("{}")
    with pytest.raises(InputError, match="describes another encoder"):
        FeatureStore(tmp_path, WIDTHS)


# ------------------------------------------------------------------------------------------------------------- the key


def test_an_input_is_known_by_its_content_and_part(tmp_path: Path) -> None:
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


def test_a_description_tells_encoders_apart(tiny: Tiny, tmp_path: Path) -> None:
    here = store_description(Clip(tiny.parts("pictures")))
    copy = shutil.copytree(tiny.parts("pictures"), tmp_path / "moved")
    assert store_description(Clip(str(copy))) == here  # where it is does not matter
    others = [store_description(Clip(str(copy)), "float32"), store_description(Cnn(tiny.parts("sounds")))]
    (config,) = copy.glob("open_clip_config.json")
    told = json.loads(config.read_text())
    told["preprocess_cfg"]["mean"] = [0.1, 0.1, 0.1]
    config.write_text(json.dumps(told))
    others.append(store_description(Clip(str(copy))))
    assert len({json.dumps(one, sort_keys=True) for one in [here, *others]}) == 4


# ------------------------------------------------------------------------------------------------- filling, training


def encode(recipe: Path, cache: Path, **options: Any) -> int:
    return run("encode", recipe, cache=cache, **options)


@pytest.fixture(scope="module")
def filled(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("filled")
    assert encode(tiny.recipe(tiny.config(), root), root / "cache", cache_dtype="float32") == 0
    return root


def test_the_store_holds_what_the_encoders_find(tiny: Tiny, filled: Path) -> None:
    rows, _ = read_manifest(tiny.folder / "train.jsonl")
    encoders = {"image": Clip(tiny.parts("pictures")), "audio": Cnn(tiny.parts("sounds"))}
    for branch, encoder in encoders.items():
        store = FeatureStore(filled / "cache", store_description(encoder, "float32"))
        sources = [row.inputs[branch].path for row in rows if branch in row.inputs]
        assert len(store) == len(sources) == 6
        hashes = content_hashes(sources, filled / "cache" / "inputs.sqlite")
        for source in sources:
            found = encoder(collect(encoder, source))
            kept = store[feature_key(hashes[source])]
            assert torch.allclose(kept.frames, found.frames[0, found.mask[0]], atol=1e-5)
            assert torch.allclose(kept.pooled, found.pooled[0], atol=1e-5)


def collect(encoder: Any, source: str) -> Any:
    from mmprefix.data.collate import pad_media

    return pad_media([encoder.preprocess(source)])


def test_a_full_store_is_read_and_nothing_is_encoded(
    tiny: Tiny, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    assert run("fit", tiny.recipe(tiny.config(), tmp_path / "plain"), test_after_fit=True) == 0
    before = contents(filled / "cache")

    def found_before(model: PrefixLM, inputs: dict[str, Any]) -> dict[str, Features]:
        assert all(isinstance(value, Features) for value in inputs.values())
        return features(model, inputs)

    features = PrefixLM.features
    monkeypatch.setattr(PrefixLM, "features", found_before)
    monkeypatch.delattr(EncodeModule, "predict_step")
    options = {"cache": filled / "cache", "cache_dtype": "float32", "test_after_fit": True}
    assert run("fit", tiny.recipe(tiny.config(), tmp_path / "kept"), **options) == 0
    assert contents(filled / "cache") == before
    plain, kept = watched(tmp_path / "plain"), watched(tmp_path / "kept")
    assert plain.steps == kept.steps
    for name in ("train/loss", "val/loss", "test/loss"):
        assert figures(tmp_path / "kept", name) == pytest.approx(figures(tmp_path / "plain", name), rel=1e-4)
    assert "cache: 6 inputs of branch image" in capfd.readouterr().out
    moved = {name for name in kept.after if not torch.equal(kept.after[name], kept.before[name])}
    assert moved
    assert all("mappers" in name for name in moved)


def test_fit_fills_the_store_by_itself(tiny: Tiny, filled: Path, tmp_path: Path) -> None:
    config = tiny.config()
    config["cache"] = str(tmp_path / "cache")
    assert run("fit", tiny.recipe(config, tmp_path / "half"), trainer__max_steps=2) == 0
    assert contents(tmp_path / "cache").keys() == contents(filled / "cache").keys()
    assert run("validate", tiny.recipe(config, tmp_path / "half"), ckpt_path="last") == 0
    assert run("predict", tiny.recipe(config, tmp_path / "half"), ckpt_path="last") == 0
    assert len((tmp_path / "half" / "predictions.jsonl").read_text().splitlines()) == 7


def test_frames_that_nobody_reads_are_not_kept(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny.config(("image",))
    mapper = {"class_path": "mmprefix.mappers.mlp.MLP", "init_args": {"length": 3}}
    config["model"]["branches"]["image"]["mapper"] = mapper
    cache = {"cache": str(tmp_path / "cache"), "cache_dtype": "float32"}
    assert run("fit", tiny.recipe(config, tmp_path / "plain")) == 0
    assert run("fit", tiny.recipe(config, tmp_path / "kept"), **cache) == 0
    assert figures(tmp_path / "kept", "train/loss") == pytest.approx(
        figures(tmp_path / "plain", "train/loss"), rel=1e-4
    )
    clip = Clip(tiny.parts("pictures"))
    assert clip.dim
    store = FeatureStore(tmp_path / "cache", store_description(clip, "float32", frames=False))
    assert len(store) == 6
    assert all(store[name].frames.shape == (0, 0) for name in store)
    assert all(len(store[name].pooled) == clip.pooled_dim for name in store)
    assert not len(FeatureStore(tmp_path / "cache", store_description(clip, "float32")))


def test_workers_read_from_the_store_too(tiny: Tiny, filled: Path, tmp_path: Path) -> None:
    cache: dict[str, Any] = {"cache": filled / "cache", "cache_dtype": "float32"}
    for workers in (0, 2):
        recipe = tiny.recipe(tiny.config(), tmp_path / str(workers))
        assert run("fit", recipe, trainer__max_epochs=1, data__num_workers=workers, **cache) == 0
    assert same(watched(tmp_path / "0").after, watched(tmp_path / "2").after)


def test_a_changed_file_is_encoded_anew(tiny: Tiny, filled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(tiny.folder, folder)
    moved = Tiny(folder)
    shutil.copytree(filled / "cache", tmp_path / "cache")
    before = contents(tmp_path / "cache")
    assert encode(moved.recipe(moved.config(), tmp_path / "r"), tmp_path / "cache", cache_dtype="float32") == 0
    assert contents(tmp_path / "cache") == before  # files and encoders are found again where they are now
    shutil.copy(folder / "1.png", folder / "0.png")
    shutil.copy(folder / "1.wav", folder / "0.wav")
    rows = (folder / "train.jsonl").read_text().replace('"audio": "2.wav"', '"audio": "2.wav", "start": 0.1')
    (folder / "train.jsonl").write_text(rows)
    assert encode(moved.recipe(moved.config(), tmp_path / "r"), tmp_path / "cache", cache_dtype="float32") == 0
    after = contents(tmp_path / "cache")
    assert after.items() > before.items()
    assert len(after) == len(before) + 1  # what is now like another file was there; a part of one is something else


def test_files_that_cannot_be_read_are_named(tiny: Tiny, tmp_path: Path, capfd: Any) -> None:
    folder = shutil.copytree(tiny.folder, tmp_path / "data")
    picture = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(picture[: len(picture) // 2])
    tiny = Tiny(folder)
    assert run("encode", tiny.recipe(tiny.config(), tmp_path / "r"), cache=tmp_path / "cache") == 2
    said = capfd.readouterr().err
    assert "bad rows (data.on_bad skip would leave them out)" in said
    assert "3.png" in said
    options = {"cache": tmp_path / "cache", "data__on_bad": "skip", "trainer__max_epochs": 1}
    assert run("fit", tiny.recipe(tiny.config(), tmp_path / "r"), **options) == 0
    assert len(contents(tmp_path / "cache")) == 11
    ids = [name for _, some in watched(tmp_path / "r").steps for name in some]
    assert sorted(ids) == sorted({f"{kind}{n}" for kind in "ps" for n in range(6)} - {"p3"})


def test_what_changes_cannot_be_kept(tiny: Tiny, tmp_path: Path, capfd: Any) -> None:
    config = tiny.config()
    freeze = {"class_path": "mmprefix.training.UnfreezeUntil", "init_args": {"branch": "audio", "epochs": 1}}
    config["trainer"]["callbacks"] = [freeze]
    said = refusal("fit", tiny.recipe(config, tmp_path), capfd, cache=tmp_path / "cache")
    assert said.startswith("cache: the encoder of branch audio is trained too")
    plain = tiny.recipe(tiny.config(), tmp_path / "plain")
    assert refusal("encode", plain, capfd).startswith("cache: names no folder")
    said = refusal("encode", plain, capfd, cache=tmp_path / "cache", cache_dtype="int8")
    assert said.startswith("cache_dtype 'int8': give float16 or float32")


# ---------------------------------------------------------------------------------------- killed, and several at once


def start(recipe: Path, cache: Path, slow: float, *more: str) -> subprocess.Popen[bytes]:
    """``mmprefix encode`` in a process of its own; each batch takes ``slow`` seconds and is written at once."""
    tests = Path(__file__).resolve().parents[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "COV_", "PYTEST"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(tests.parent), str(tests)])
    program = (
        "import sys, time, mmprefix.features.encode as f\n"
        "f.SECONDS, plain = 0.0, f.EncodeModule.predict_step\n"
        f"f.EncodeModule.predict_step = lambda *a: (time.sleep({slow}), plain(*a))[1]\n"
        "from mmprefix.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    script = recipe.with_name("encode.py")
    script.write_text(program)
    words = ["encode", "--config", str(recipe), "--cache", str(cache), "--cache_dtype=float32", *more]
    words += ["--data.eval_batch_size=1"]
    return subprocess.Popen(
        [sys.executable, str(script), *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()


@pytest.fixture(scope="module")
def in_one_go(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, tuple[bytes, bytes]]:
    root = tmp_path_factory.mktemp("once")
    finish(start(tiny.recipe(tiny.config(), root), root / "cache", 0.0))
    return contents(root / "cache")


def works(cache: Path) -> set[Path]:
    """The files of all processes that have begun to encode, those that were killed too."""
    found: set[Path] = set()
    for file in cache.rglob("*.txt"):
        with suppress(FileNotFoundError):  # those of the killed are cleared away
            found |= {file} if file.read_text() else set()
    return found


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(
    tiny: Tiny, in_one_go: dict[bytes, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    recipe, cache = tiny.recipe(tiny.config(), tmp_path), tmp_path / "cache"
    draw, kept = random.Random(0), [0]
    for _ in range(10):
        before = works(cache)
        process = start(recipe, cache, 0.2)
        deadline = time.monotonic() + 120
        while works(cache) <= before:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.4))
        assert process.poll() is None  # it was encoding
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept.append(len(contents(cache)))
    assert kept == sorted(kept)
    assert 0 < kept[-1] < len(in_one_go)
    finish(start(recipe, cache, 0.0))
    assert contents(cache) == in_one_go
    assert not list(cache.rglob("*.txt"))  # nothing is left of those that were killed


@pytest.mark.slow
def test_two_processes_share_the_work(tiny: Tiny, in_one_go: dict[bytes, tuple[bytes, bytes]], tmp_path: Path) -> None:
    recipe, cache = tiny.recipe(tiny.config(), tmp_path), tmp_path / "cache"
    finish(*(start(recipe, cache, 0.5) for _ in range(2)))
    assert contents(cache) == in_one_go  # which also says that nothing is there twice


@pytest.mark.slow
def test_two_processes_of_one_trainer_share_the_work(
    tiny: Tiny, in_one_go: dict[bytes, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    recipe, cache = tiny.recipe(tiny.config(), tmp_path), tmp_path / "cache"
    finish(start(recipe, cache, 0.3, "--trainer.devices=2", "--trainer.strategy=ddp"))
    assert contents(cache) == in_one_go
    writers = {file.name.rpartition("-")[0] for file in cache.rglob("*.safetensors")}
    assert len(writers) >= 2
