"""Calibrated: standardised features in, word vectors' scale out, learned positions that move fast before them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.preprocessing import StandardScaler

import mmprefix
from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.calibrated import Calibrated, Moments
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.minmax import MinMax
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.mappers.resampler import Resampler
from mmprefix.mappers.transformer import Transformer
from mmprefix.types import Features
from tiny.captioning_system import CaptioningSystem, checkpoint_tensors, quietly, run
from tiny.mappers import Reader
from tiny.speech_system import recipe_part

pytestmark = quietly
D, G, E = 6, 5, 8
SIZES = Sizes(D, G, E)
WORDS = torch.arange(2.0 * E).view(2, E) / 16
SCALE = float(WORDS.square().mean().sqrt())


def features(count: int = 4, seed: int = 0) -> Features:
    """Features of inputs with 3, 2, 1, 3 ... real frames; numbers of very different size."""
    torch.manual_seed(seed)
    mask = torch.arange(3) < torch.tensor([3, 2, 1])[torch.arange(count) % 3, None]
    return Features(torch.randn(count, 3, D) * 50 + 7, mask, torch.rand(count, G) * torch.logspace(-3, 3, G))


def begun(mapper: Calibrated, shown: Features) -> Calibrated:
    """``mapper`` as a training begins with it."""
    mapper.observe(shown)
    mapper.begin(Reader(WORDS))
    return mapper


def calibrated(child: dict[str, Any]) -> dict[str, Any]:
    return recipe_part("mappers.calibrated.Calibrated", mapper=child)


def test_moments_of_parts_are_those_of_the_whole() -> None:
    rows = features(50).pooled
    moments = Moments(G)
    for part in rows.split([1, 0, 30, 19]):
        moments.update(part)
    assert int(moments.count) == 50
    scaler: Any = StandardScaler().fit(rows.double().numpy())
    np.testing.assert_allclose(moments.mean.numpy(), scaler.mean_, rtol=1e-5)
    np.testing.assert_allclose(moments.variance.numpy(), scaler.var_, rtol=1e-5)


def test_a_number_that_never_changes_is_read_as_zero() -> None:
    moments = Moments(2)
    moments.update(torch.tensor([[3.0, 1.0], [3.0, 2.0]]))
    assert moments(torch.tensor([[3.0, 1.5]])).tolist() == [[0.0, 0.0]]
    assert moments(torch.tensor([[3.001, 1.0]])).abs().max() < 2
    still = Moments(2)
    still.update(torch.ones(3, 2))
    assert still(torch.ones(1, 2)).tolist() == [[0.0, 0.0]]


def test_the_child_reads_standardised_features_and_writes_word_vectors() -> None:
    shown = features(9)
    mapper = begun(Calibrated(SIZES, mapper=partial(Linear, stack=1)), shown)
    prefix = mapper(shown)
    scaled = torch.from_numpy(StandardScaler().fit_transform(shown.frames[shown.mask].numpy()))
    child: Any = mapper.mapper
    expected = mapper.start + SCALE * mapper.gain * child.linear(scaled)
    torch.testing.assert_close(prefix.embeds[shown.mask], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(prefix.mask, shown.mask)


@pytest.mark.parametrize("child", [partial(Linear, stack=1), partial(MLP, length=3)], ids=["frames", "summary"])
def test_dropout_zeroes_standardised_numbers_in_training_alone(child: Callable[..., Mapper]) -> None:
    torch.manual_seed(0)
    shown, seen = features(9), list[torch.Tensor]()
    mapper = begun(Calibrated(SIZES, mapper=child, dropout=0.5), shown)
    mapper.mapper.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].frames) or seen.append(inputs[0].pooled)
    )
    for mode in (False, True):
        mapper.train(mode)(shown)
    index = 0 if mapper.reads_frames else 1
    whole, dropped = seen[index], seen[2 + index]
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
    assert 0.3 < float(kept[whole != 0].float().mean()) < 0.7
    with pytest.raises(InputError, match=r"Calibrated.dropout 1.0: give a probability from 0 on, below 1"):
        Calibrated(SIZES, mapper=child, dropout=1.0)


@pytest.mark.parametrize(
    ("child", "expected"),
    [
        (partial(MLP, length=5), WORDS[[0, 1, 0, 1, 0]]),
        (partial(Learned, length=1), WORDS.mean(0, keepdim=True)),
        (Linear, WORDS.mean(0, keepdim=True)),  # as many positions as there are frames
    ],
    ids=["several", "one", "frames"],
)
def test_the_prompt_begins_as_words(child: Callable[..., Mapper], expected: torch.Tensor) -> None:
    mapper = Calibrated(SIZES, mapper=child, start="two words")
    mapper.begin(reader := Reader(WORDS))
    assert reader.texts == ["two words"]
    assert torch.equal(mapper.start, expected)
    assert float(mapper.scale) == pytest.approx(SCALE)
    assert mapper.known == (not mapper.reads_input)
    with pytest.raises(InputError, match=r"Calibrated.start '': has no tokens; give a word"):
        Calibrated(SIZES, mapper=child, start="").begin(Reader(WORDS[:0]))


@pytest.mark.parametrize("speed", [1.0, 250.0])
def test_a_step_of_adam_moves_the_prompt_by_rate_times_speed_word_vectors(speed: float) -> None:
    child = partial(MLP, length=3)
    mapper = begun(Calibrated(SIZES, mapper=child, speed=speed), features())
    mapper.mapper.requires_grad_(False)
    before = mapper(features()).embeds.detach()
    optimizer = torch.optim.Adam([mapper.shift], lr=0.01)
    (mapper(features()).embeds * torch.randn(3, E)).sum().backward()
    optimizer.step()
    moved = (mapper(features()).embeds - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * speed * SCALE), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "child",
    [partial(MLP, length=3), Linear, partial(Resampler, heads=2), partial(Transformer, heads=2), Learned],
    ids=["mlp", "linear", "resampler", "transformer", "learned"],
)
def test_every_mapper_begins_as_a_quarter_of_word_vectors(child: Callable[..., Mapper]) -> None:
    before = torch.random.get_rng_state()
    made = child(SIZES)
    middle = torch.random.get_rng_state()
    around = Calibrated(SIZES, mapper=lambda _: made)
    assert torch.equal(middle, torch.random.get_rng_state())
    mapper = begun(around, features(64))
    assert not torch.equal(before, middle)
    prefix = mapper(features(64))
    added = (prefix.embeds - mapper.start)[prefix.mask]
    assert 0.2 < float(added.square().mean().sqrt()) / SCALE < 0.3


def test_a_batch_equals_its_items() -> None:
    shown = features(4)
    mapper = begun(Calibrated(SIZES, mapper=partial(Linear, stack=2)), shown)
    batch = mapper(shown)
    for number in range(4):
        count = int(shown.mask[number].sum())
        frames, mask = shown.frames[number : number + 1, :count], shown.mask[number : number + 1, :count]
        item = mapper(Features(frames, mask, shown.pooled[number : number + 1]))
        torch.testing.assert_close(batch.embeds[number][batch.mask[number]], item.embeds[item.mask])


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(InputError, match="Calibrated: DeepTable makes keys and values; put Calibrated inside it"):
        Calibrated(Sizes(D, G, E, 2, 2, 4), mapper=DeepTable)
    for outer, inner in ((Calibrated, MinMax), (MinMax, Calibrated), (Calibrated, Calibrated)):
        message = f"{outer.__name__}: {inner.__name__} inside it would read other numbers than it is shown"
        with pytest.raises(InputError, match=message):
            outer(SIZES, mapper=partial(inner, mapper=MLP))
    with pytest.raises(InputError, match="Calibrated: has seen no training data"):
        Calibrated(SIZES, mapper=MLP)(features())
    assert Deep(Sizes(D, G, E, 2, 2, 4), mapper=partial(Calibrated, mapper=MLP), hidden=4).reads_input


def test_a_deep_prefix_does_not_depend_on_the_size_of_small_word_vectors() -> None:
    """Those of Whisper are as small as 0.02: biases of the layers behind would drown the input."""
    unit, keys = WORDS / WORDS.square().mean().sqrt(), list[torch.Tensor]()
    for size in (0.08, 0.001, 0.3):
        torch.manual_seed(0)
        deep = Deep(Sizes(D, G, E, 2, 2, 4), mapper=partial(Calibrated, mapper=MLP), hidden=4)
        assert isinstance(deep.mapper, Calibrated)
        deep.mapper.observe(features())
        deep.mapper.begin(Reader(unit * size))
        keys.append(deep(features()).keys)
        assert (float(deep.mapper.scale) == pytest.approx(0.1)) == (size < 0.1)
    assert torch.allclose(*keys[:2], rtol=1e-4)
    assert not torch.allclose(*keys[1:], rtol=1e-2)
    assert keys[0].std(1).mean() > 0.001  # over the inputs


def test_training_shows_it_the_data_from_files_as_from_a_store(tiny: CaptioningSystem, tmp_path: Path) -> None:
    saved = {}
    for name in ("files", "store"):
        config = tiny.config()
        for branch in config["model"]["branches"].values():
            branch["mapper"] = calibrated(branch["mapper"])
        options = {"cache": tmp_path / "cache", "cache_dtype": "float32"} if name == "store" else {}
        recipe = tiny.recipe(config, tmp_path / name)
        assert run("fit", recipe, save_to=tmp_path / name / "model", trainer__max_epochs=1, **options) == 0
        saved[name] = load_file(tmp_path / name / "model" / "model.safetensors")
    assert int(saved["files"]["mappers.image.frames.count"]) > int(saved["files"]["mappers.image.summary.count"]) == 6
    for name, tensor in saved["files"].items():
        if name.endswith(("mean", "variance", "count")):
            torch.testing.assert_close(tensor, saved["store"][name], rtol=1e-4, atol=1e-6)
    model = mmprefix.load(tmp_path / "files" / "model", device="cpu")
    assert model(tiny.folder / "0.png") == model([tiny.folder / "0.png", tiny.folder / "1.png"])[0]


def test_a_run_that_goes_on_keeps_what_was_observed(tiny: CaptioningSystem, tmp_path: Path) -> None:
    config = tiny.config(["image"])
    branch = config["model"]["branches"]["image"]
    branch["mapper"] = calibrated(branch["mapper"])
    recipe = tiny.recipe(config, tmp_path)
    assert run("fit", recipe, trainer__max_epochs=1) == 0
    last = tmp_path / "checkpoints" / "last.ckpt"
    first = checkpoint_tensors(last)
    assert run("fit", recipe, trainer__max_epochs=2, ckpt_path=last) == 0
    second = checkpoint_tensors(last)
    assert torch.equal(second["model.mappers.image.frames.mean"], first["model.mappers.image.frames.mean"])
    assert torch.equal(second["model.mappers.image.start"], first["model.mappers.image.start"])
    assert not torch.equal(second["model.mappers.image.shift"], first["model.mappers.image.shift"])


def test_a_task_s_prefix_begins_as_words_too(tiny: CaptioningSystem, tmp_path: Path) -> None:
    config = tiny.config(["image"])
    config["model"]["prefix"] = calibrated(recipe_part("mappers.learned.Learned", length=2))
    assert run("fit", tiny.recipe(config, tmp_path), trainer__max_epochs=1) == 0
    saved = checkpoint_tensors(tmp_path / "checkpoints" / "last.ckpt")
    assert float(saved["model.task_prefix.scale"]) > 0
    assert saved["model.task_prefix.start"].shape[0] == 2
    assert bool(saved["model.task_prefix.shift"].abs().sum() > 0)
