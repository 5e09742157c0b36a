"""Signals (numbers as an input): reading, scaling to the range of the training data, which is saved with the model."""

from __future__ import annotations

import json
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from mmprefix.data.collate import pad_media
from mmprefix.encoders.signals import Signals
from mmprefix.errors import InputError
from mmprefix.inference.loading import load
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.minmax import MinMax
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.parallel import Parallel
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.parts import builder_from_recipe, from_recipe, to_recipe
from mmprefix.types import Features, Prefix
from tiny.captioning_system import checkpoint_tensors, error_message, quietly, run, training_record
from tiny.speech_system import SpeechSystem, recipe_part

pytestmark = quietly
NAMES = ["cost", "confidence", "alternatives"]
MINMAX = recipe_part("mappers.minmax.MinMax", mapper=recipe_part("mappers.mlp.MLP", length=2, hidden=8))


def config(spoken: SpeechSystem, mapper: dict[str, Any] = MINMAX, train: str = "train.jsonl") -> dict[str, Any]:
    """Recipe of a model that maps three numbers to GPT-2."""
    branch = {"encoder": recipe_part("encoders.signals.Signals", names=NAMES), "mapper": mapper}
    decoder = recipe_part("decoder.CausalDecoder", model=spoken.path("decoder"))
    made = spoken.config(branches={"signals": branch}, decoder=decoder)
    made["data"]["init_args"]["train"] = [spoken.path(train)]
    return made


def manifest(spoken: SpeechSystem, name: str, signals: list[Any]) -> str:
    """Write a manifest of rows with these ``signals`` beside the others; return its name."""
    rows = [{"id": str(n), "signals": values, "target": "rain falls"} for n, values in enumerate(signals)]
    Path(spoken.path(name)).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


# ------------------------------------------------------------------------------------------------------------ reading


def test_numbers_are_read_from_memory_files_and_archives(tmp_path: Path) -> None:
    encoder = Signals(NAMES)
    values = [0.5, -2.0, 1e6]
    (tmp_path / "list.json").write_text(json.dumps(values))
    np.save(tmp_path / "array.npy", np.array(values))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ("list.json", "array.npy"):
            archive.write(tmp_path / name, name)
    sources: list[Any] = [tuple(values), tmp_path / "list.json", str(tmp_path / "array.npy")]
    sources += [f"{tmp_path}/all.zip::list.json", f"{tmp_path}/all.zip::array.npy"]
    read = [encoder.preprocess(source, 0.0, None) for source in sources]
    assert all(tensor.dtype == torch.float32 and tensor.tolist() == values for tensor in read)
    features = encoder(pad_media(read[:2]))
    assert features.pooled.tolist() == [values, values]
    assert features.frames.shape == (2, 0, 0)
    assert features.mask.shape == (2, 0)
    assert (encoder.dim, encoder.pooled_dim, encoder.input_kind) == (0, 3, "signals")


@pytest.mark.parametrize(("name", "content", "message"), [
    ("two.json", b"[1, 2]", "holds 2 numbers, expected 3: cost, confidence, alternatives"),
    ("nan.json", b"[1, NaN, 2]", "must hold one row of finite numbers"),
    ("null.json", b"[1, null, 2]", "must hold one row of finite numbers"),
    ("huge.json", b"[1, 1e300, 2]", "must hold one row of finite numbers"),
    ("endless.json", b"[1, " + b"9" * 400 + b", 2]", "holds no list of numbers"),
    ("rows.json", b"[[1, 2, 3]]", "must hold one row of finite numbers"),
    ("empty.json", b"[]", "must hold one row of finite numbers"),
    ("one.json", b"3", "must hold one row of finite numbers"),
    ("object.json", b'{"cost": 1}', "holds no list of numbers"),
    ("words.json", b'["a", "b", "c"]', "holds no list of numbers"),
    ("torn.json", b"[1, 2", "holds no list of numbers"),
    ("deep.json", b"[" * 100000, "holds no list of numbers"),
    ("empty.npy", b"", "is empty, without a single byte"),
    ("torn.npy", b"\x93NUMPY\x01\x00", "holds no list of numbers"),
    ("zip.npy", b"PK\x03\x04", "holds no list of numbers"),
    ("bytes.npy", b"1 2 3", "holds no list of numbers"),
    (None, b"", "no such file"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_other_files_are_refused_by_name(name: str | None, content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / (name or "none.json")
    if name:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Signals(NAMES).preprocess(file, 0.0, None)
    assert str(caught.value).startswith(str(file))


def test_numbers_in_memory_and_objects_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object))
    encoder = Signals(NAMES)
    with pytest.raises(InputError, match="holds no list of numbers"):
        encoder.preprocess(tmp_path / "objects.npy", 0.0, None)
    with pytest.raises(InputError, match="the given numbers: must hold one row of finite numbers"):
        encoder.preprocess((1.0, float("inf"), 2.0), 0.0, None)
    with pytest.raises(InputError, match="the given numbers: holds 1 numbers, expected 3"):
        encoder.preprocess((1.0,), 0.0, None)


def test_names_tell_encoders_apart() -> None:
    """The mapper of an encoder of other names is refused."""
    same, other = Signals(list(NAMES)), Signals(NAMES[::-1])
    assert same.identity == Signals(NAMES).identity
    assert same.identity != other.identity
    assert from_recipe(to_recipe(same), Signals).names == NAMES


# ---------------------------------------------------------------------------------------------------------- the range


class FeaturesAsPrefix(Mapper):
    """Prefix that holds the features a mapper gets, unchanged."""

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        embeds = features.pooled[:, None]
        return Prefix(embeds, torch.ones(len(embeds), 1, dtype=torch.bool))


def features(values: list[list[float]]) -> Features:
    pooled = torch.tensor(values)
    return Features(pooled.new_zeros(len(values), 0, 0), torch.zeros(len(values), 0, dtype=torch.bool), pooled)


def test_numbers_are_scaled_by_the_observed_range_and_clamped() -> None:
    mapper = MinMax(Sizes(0, 3, 3), mapper=FeaturesAsPrefix)
    with pytest.raises(InputError, match="MinMax: has seen no training data"):
        mapper(features([[0.0, 0.0, 0.0]]))
    mapper.observe(features([[-2.0, 5.0, 100.0], [0.0, 5.0, 300.0]]))
    mapper.observe(features([[2.0, 5.0, 200.0]]))
    shown = mapper(features([[-2.0, 5.0, 150.0], [2.0, 4.0, 300.0], [-9.0, 6.0, 99.0], [9.0, 5.0, 1e9]]))
    expected = [[0.0, 0.0, 0.25], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]
    assert isinstance(shown, Prefix)
    assert shown.embeds[:, 0].tolist() == expected  # a number that never changed is read as 0
    again = MinMax(Sizes(0, 3, 3), mapper=FeaturesAsPrefix)
    again.load_state_dict(mapper.state_dict())
    assert again.known
    assert torch.equal(again.low, torch.tensor([-2.0, 5.0, 100.0]))


def test_minmax_needs_a_summary() -> None:
    with pytest.raises(InputError, match="MinMax reads the encoder's summary"):
        MinMax(Sizes(12, 0, 32), mapper=Linear)


def test_minmax_is_built_again_from_its_recipe() -> None:
    deep = partial(Deep, mapper=partial(MLP, length=2, hidden=4), hidden=4)
    mapper = MinMax(Sizes(0, 3, 32, 2, 4, 8), mapper=deep)
    mapper.observe(features([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]))
    again = builder_from_recipe(to_recipe(mapper), Mapper)(mapper.sizes)
    again.load_state_dict(mapper.state_dict())
    inputs = features([[0.5, 0.5, 0.5]])
    assert_close(again(inputs).keys, mapper(inputs).keys)


def test_ranges_are_observed_in_training_rows_only(spoken: SpeechSystem, tmp_path: Path) -> None:
    recipe = config(spoken)
    val = manifest(spoken, "wider.jsonl", [[-1000.0, 50.0, 8.0], [1000.0, -50.0, 9.0]])
    recipe["data"]["init_args"]["val"] = [spoken.path(val)]
    assert run("fit", spoken.recipe(recipe, tmp_path), save_to=tmp_path / "model") == 0
    saved = load_file(tmp_path / "model" / "model.safetensors")
    low, high = (saved[f"mappers.signals.{name}"] for name in ("low", "high"))
    assert low.tolist() == [-2.0, 0.0, 7.0]
    assert high.tolist() == [5.0, 20.0, 7.0]
    assert sorted(name.rpartition(".")[2] for name in saved) == ["bias", "bias", "high", "low", "weight", "weight"]
    before = training_record(tmp_path).before  # when training began it was known
    assert torch.equal(before["model.mappers.signals.high"], high)
    model = load(tmp_path / "model", device="cpu")
    inside, outside, constant = (5.0, 20.0, 7.0), (99.0, 21.0, 7.0), (5.0, 20.0, -3.0)
    scores = model.score([inside, outside, constant], ["rain falls"] * 3)
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-5)
    assert abs(model.score([(4.0, 20.0, 7.0)], ["rain falls"])[0] - scores[0]) > 1e-5


@pytest.mark.parametrize(
    ("mapper", "where"),
    [
        (recipe_part("mappers.deep.Deep", mapper=MINMAX, hidden=8), "mapper"),
        (
            recipe_part(
                "mappers.parallel.Parallel", mappers=[recipe_part("mappers.mlp.MLP", length=1, hidden=4), MINMAX]
            ),
            "mappers.1",
        ),
    ],
    ids=["deep", "parallel"],
)
def test_ranges_are_observed_inside_other_mappers(
    mapper: Any, where: str, spoken: SpeechSystem, tmp_path: Path
) -> None:
    assert run("fit", spoken.recipe(config(spoken, mapper), tmp_path)) == 0
    saved = checkpoint_tensors(tmp_path / "checkpoints" / "last.ckpt")
    assert saved[f"model.mappers.signals.{where}.low"].tolist() == [-2.0, 0.0, 7.0]
    assert saved[f"model.mappers.signals.{where}.high"].tolist() == [5.0, 20.0, 7.0]


def test_a_resumed_run_keeps_the_ranges(spoken: SpeechSystem, tmp_path: Path) -> None:
    name = manifest(spoken, "moved.jsonl", [[n, n, n] for n in range(8)])

    def constant() -> dict[str, Any]:
        made = config(spoken, train=name)
        made["model"]["schedule"] = "constant"  # another would have come to its end
        return made

    assert run("fit", spoken.recipe(constant(), tmp_path), trainer__max_epochs=1) == 0
    last = tmp_path / "checkpoints" / "last.ckpt"
    first = checkpoint_tensors(last)["model.mappers.signals.high"]
    assert first.tolist() == [7.0] * 3
    manifest(spoken, "moved.jsonl", [[100.0 * n, n, n] for n in range(8)])
    resumed = spoken.recipe(constant(), tmp_path / "resumed")
    assert run("fit", resumed, ckpt_path=last, trainer__max_epochs=2) == 0
    second = checkpoint_tensors(tmp_path / "resumed" / "checkpoints" / "last.ckpt")
    assert torch.equal(second["model.mappers.signals.high"], first)
    weight = "model.mappers.signals.mapper.model.0.weight"
    assert not torch.equal(second[weight], checkpoint_tensors(last)[weight])  # it did go on


def test_rows_that_cannot_be_read_are_named_or_skipped(spoken: SpeechSystem, tmp_path: Path, capfd: Any) -> None:
    rows = [[float(n), n, n] for n in range(7)]
    name = manifest(spoken, "short.jsonl", [*rows[:3], [1.0, 2.0], *rows[3:]])
    made = config(spoken, train=name)
    message = error_message("fit", spoken.recipe(made, tmp_path / "stop"), capfd)
    assert message.startswith(f"{spoken.path(name)}:4: ")
    assert message.endswith("holds 2 numbers, expected 3: cost, confidence, alternatives")
    made = config(spoken, train=name)
    made["data"]["init_args"]["on_bad"] = "skip"
    assert run("fit", spoken.recipe(made, tmp_path / "skip")) == 0
    kept = checkpoint_tensors(tmp_path / "skip" / "checkpoints" / "last.ckpt")
    assert kept["model.mappers.signals.high"].tolist() == [6.0] * 3


def test_training_without_signals_is_refused(spoken: SpeechSystem, tmp_path: Path, capfd: Any) -> None:
    made = config(spoken)
    made["model"]["branches"]["audio"] = {
        "encoder": recipe_part("encoders.whisper.Whisper", model=spoken.path("whisper")),
        "mapper": recipe_part("mappers.mlp.MLP", length=1, hidden=4),
    }
    rows = [{"id": str(n), "audio": f"{n}.wav", "target": "rain falls"} for n in range(8)]
    Path(spoken.path("sounds.jsonl")).write_text("".join(json.dumps(row) + "\n" for row in rows))
    made["data"]["init_args"]["train"] = [spoken.path("sounds.jsonl")]
    message = error_message("fit", spoken.recipe(made, tmp_path), capfd)
    assert message == "model.branches.signals: MinMax finds no row to train on that has signals"


def test_mappers_within_mappers_are_built_for_the_same_sizes() -> None:
    mapper = Parallel(Sizes(0, 3, 32, 2, 4, 8), mappers=[partial(MinMax, mapper=partial(Deep, mapper=MLP))])
    assert [tuple(p.shape) for p in mapper.parameters()][-1] == (2 * 2 * 4 * 8,)
