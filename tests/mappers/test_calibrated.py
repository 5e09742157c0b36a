"""Calibrated: standardised features in, word vectors' scale out, learned positions that move fast before them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.preprocessing import StandardScaler

import mmprefix
from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.calibrated import Calibrated, Moments
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.minmax import MinMax
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.types import Features, Prefix
from tiny.captioning_system import CaptioningSystem, checkpoint_tensors, error_message, quietly, run
from tiny.speech_system import recipe_part

pytestmark = quietly
D, G, E = 6, 5, 8
SIZES = Sizes(D, G, E, word_rms=0.25)


def features(count: int = 4, seed: int = 0) -> Features:
    """Features of inputs with 3, 2, 1, 3 ... real frames; numbers of very different size."""
    torch.manual_seed(seed)
    mask = torch.arange(3) < torch.tensor([3, 2, 1])[torch.arange(count) % 3, None]
    return Features(torch.randn(count, 3, D) * 50 + 7, mask, torch.rand(count, G) * torch.logspace(-3, 3, G))


def test_moments_of_parts_are_those_of_the_whole() -> None:
    rows = features(50).pooled
    moments = Moments(G)
    for part in rows.split([1, 0, 30, 19]):
        moments.update(part)
    scaler = StandardScaler().fit(rows.double().numpy())
    assert int(moments.count) == 50
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
    mapper = Calibrated(SIZES, mapper=partial(Linear, stack=1), length=2)
    mapper.observe(shown)
    prefix = mapper(shown)
    real = shown.frames[shown.mask]
    scaled = torch.from_numpy(StandardScaler().fit_transform(real.numpy()))
    expected = 0.25 * mapper.mapper.linear(scaled)
    torch.testing.assert_close(prefix.embeds[:, 2:][shown.mask], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(prefix.mask, torch.cat([torch.ones(9, 2, dtype=torch.bool), shown.mask], dim=1))
    torch.testing.assert_close(prefix.embeds[:, :2], (0.25 * mapper.start).expand(9, -1, -1))


@pytest.mark.parametrize("speed", [1.0, 500.0])
def test_a_step_of_adam_moves_learned_positions_by_rate_times_speed_word_vectors(speed: float) -> None:
    mapper = Calibrated(SIZES, mapper=partial(Learned, length=1), length=3, speed=speed)
    nothing = Features.empty(2)
    before = mapper(nothing).embeds[:, :3].detach()
    optimizer = torch.optim.Adam(mapper.parameters(), lr=0.01)
    (mapper(nothing).embeds * torch.randn(4, E)).sum().backward()
    optimizer.step()
    moved = (mapper(nothing).embeds[:, :3] - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * speed * 0.25), rtol=1e-3, atol=1e-6)


def test_a_batch_equals_its_items() -> None:
    shown = features(4)
    mapper = Calibrated(SIZES, mapper=partial(Linear, stack=2))
    mapper.observe(shown)
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
    with pytest.raises(InputError, match=r"Calibrated.length -1: give a number from 0 on"):
        Calibrated(SIZES, mapper=MLP, length=-1)
    with pytest.raises(InputError, match="Calibrated: has seen no training data"):
        Calibrated(SIZES, mapper=MLP)(features())
    assert isinstance(Calibrated(SIZES, mapper=Learned, length=0)(Features.empty(1)), Prefix)
    assert Deep(Sizes(D, G, E, 2, 2, 4), mapper=partial(Calibrated, mapper=MLP), hidden=4).reads_input


def test_training_shows_it_the_data_from_files_as_from_a_store(tiny: CaptioningSystem, tmp_path: Path) -> None:
    saved = {}
    for name in ("files", "store"):
        config = tiny.config()
        for branch in config["model"]["branches"].values():
            branch["mapper"] = recipe_part("mappers.calibrated.Calibrated", mapper=branch["mapper"], length=2)
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
    branch["mapper"] = recipe_part("mappers.calibrated.Calibrated", mapper=branch["mapper"])
    recipe = tiny.recipe(config, tmp_path)
    assert run("fit", recipe, trainer__max_epochs=1) == 0
    last = tmp_path / "checkpoints" / "last.ckpt"
    first = checkpoint_tensors(last)
    assert run("fit", recipe, trainer__max_epochs=2, ckpt_path=last) == 0
    second = checkpoint_tensors(last)
    assert torch.equal(second["model.mappers.image.frames.mean"], first["model.mappers.image.frames.mean"])
    assert torch.equal(second["model.mappers.image.start"], first["model.mappers.image.start"])
    assert not torch.equal(second["model.mappers.image.shift"], first["model.mappers.image.shift"])


def test_captions_have_room_behind_it(
    tiny: CaptioningSystem, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny.config(["image"])
    branch = config["model"]["branches"]["image"]
    branch["mapper"] = recipe_part("mappers.calibrated.Calibrated", mapper=branch["mapper"], length=44)
    message = error_message("fit", tiny.recipe(config, tmp_path), capfd)  # 44 + 3 of 48 positions
    assert "tokens" in message
