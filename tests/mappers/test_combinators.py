"""Every combinator over every kind of child: it reads and merges as its children do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.calibrated import Calibrated
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.minmax import MinMax
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.noisy_summary import NoisySummary
from mmprefix.mappers.observer import Observer
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.parallel import Parallel
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.mappers.resampler import Resampler
from mmprefix.parts import builder_from_recipe, to_recipe
from mmprefix.types import DeepPrefix, Features, Prefix
from tiny.mappers import ContextSum, LowRank, Merging, Reader

D, G, E, L, H, K = 12, 20, 32, 2, 4, 8
SIZES = Sizes(D, G, E, L, H, K, context_frames=6, context_summary=5)
Build = Callable[[Sizes], Mapper]
CHILDREN: dict[str, Build] = {
    "learned": partial(Learned, length=3, std=1.0),
    "low rank": partial(LowRank, length=3, dropout=0.5),
    "summary": partial(MLP, length=2, hidden=6),
    "frames": partial(Linear, stack=2),
    "both": partial(Resampler, length=3, layers=1, heads=4),
    "context": ContextSum,
    "merging": partial(Merging, length=2),
    "two that are learned": partial(Parallel, mappers=[partial(Learned, length=2), partial(LowRank, length=1)]),
    "learned and merging": partial(Parallel, mappers=[partial(Learned, length=2), Merging]),
}
AROUND: dict[str, Callable[[Build], Build]] = {
    "Parallel": lambda child: partial(Parallel, mappers=[child]),
    "Parallel of two": lambda child: partial(Parallel, mappers=[child, partial(Learned, length=1)]),
    "MinMax": lambda child: partial(MinMax, mapper=child),
    "Deep": lambda child: partial(Deep, mapper=child, hidden=6),
    "Deep of one layer": lambda child: partial(Deep, mapper=child, hidden=None),
    "Calibrated": lambda child: partial(Calibrated, mapper=child),
    "NoisySummary": lambda child: partial(NoisySummary, mapper=child, std=0.5),
    "Deep of Calibrated": lambda child: partial(Deep, mapper=partial(Calibrated, mapper=child), hidden=6),
    "Deep of MinMax": lambda child: partial(Deep, mapper=partial(MinMax, mapper=child), hidden=6),
    "MinMax of Deep": lambda child: partial(MinMax, mapper=partial(Deep, mapper=child, hidden=6)),
    "Parallel of MinMax of Deep": lambda child: partial(
        Parallel, mappers=[partial(MinMax, mapper=partial(Deep, mapper=child, hidden=6)), partial(Learned, length=1)]
    ),
}


def features(frames: int = D, summary: int = G, seed: int = 0) -> Features:
    """Random features of three inputs with 7, 4 and 1 real frames."""
    torch.manual_seed(seed)
    mask = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    return Features(torch.randn(3, 7, frames), mask, torch.rand(3, summary))


CONTEXT = features(SIZES.context_frames, SIZES.context_summary, seed=9)


def observed(mapper: Mapper) -> Mapper:
    for part in mapper.modules():
        if isinstance(part, Observer):
            part.observe(replace(features(), pooled=torch.stack([torch.zeros(G), torch.full((G,), 2.0)])))
            part.begin(Reader(torch.eye(E)))
    return mapper


def tensors(prefix: object) -> list[torch.Tensor]:
    """Embeddings, keys and values of the real positions of a prefix."""
    if isinstance(prefix, Prefix):
        return [prefix.embeds * prefix.mask[..., None], prefix.mask]
    if isinstance(prefix, DeepPrefix):
        mask = prefix.mask[None, :, None, :, None]
        return [prefix.keys * mask, prefix.values * mask, prefix.mask]
    return [*tensors(getattr(prefix, "deep")), *tensors(getattr(prefix, "soft"))]  # noqa: B009


def same(a: object, b: object) -> bool:
    pairs = zip(tensors(a), tensors(b), strict=True)
    return all(x.shape == y.shape and torch.allclose(x.float(), y.float(), atol=1e-5) for x, y in pairs)


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("child", CHILDREN.values(), ids=CHILDREN)
def test_a_combinator_reads_what_its_child_reads(child: Build, around: Callable[[Build], Build]) -> None:
    torch.manual_seed(1)
    alone, mapper = child(SIZES), observed(around(child)(SIZES)).eval()
    for name in ("reads_input", "reads_frames", "reads_context"):
        assert getattr(mapper, name) == getattr(alone, name), name
    prefix = mapper(features(), CONTEXT)
    others = Features(features(seed=4).frames, features().mask, features().pooled)
    assert same(mapper(others, CONTEXT), prefix) != mapper.reads_frames
    assert same(mapper(features(seed=4), CONTEXT), prefix) != mapper.reads_input
    beside = features(SIZES.context_frames, SIZES.context_summary, seed=4)
    assert same(mapper(features(), beside), prefix) != mapper.reads_context
    if not mapper.reads_frames:
        none = Features(torch.zeros(3, 0, 0), torch.zeros(3, 0, dtype=torch.bool), features().pooled)
        assert same(mapper(none, CONTEXT), prefix)


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("child", CHILDREN.values(), ids=CHILDREN)
def test_a_combinator_merges_what_its_child_merges(child: Build, around: Callable[[Build], Build]) -> None:
    torch.manual_seed(2)
    mapper = observed(around(child)(SIZES))
    expected = mapper.eval()(features(), CONTEXT)
    before = {name: tensor.clone() for name, tensor in mapper.state_dict().items()}
    merged = mapper.train().merged()
    assert mapper.training
    assert merged.training
    assert same(merged.eval()(features(), CONTEXT), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mapper.state_dict().items())
    assert not any(isinstance(part, Merging) for part in merged.modules())
    for part in merged.modules():
        if isinstance(part, Deep | MinMax):
            assert part.reads_input  # else it was merged away
    if isinstance(mapper, Deep) and not mapper.reads_input:
        assert isinstance(merged, DeepTable)
        assert list(merged.state_dict()) == ["table"]
    again = builder_from_recipe(json.loads(json.dumps(to_recipe(merged))), Mapper)(SIZES)
    again.load_state_dict(merged.state_dict())
    assert same(again.eval()(features(), CONTEXT), expected)
    assert merged.merged() is merged


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_a_combinator_is_built_again_with_its_children(around: Callable[[Build], Build]) -> None:
    mapper = observed(around(CHILDREN["learned and merging"])(SIZES)).eval()
    recipe = to_recipe(mapper)
    assert "sizes" not in json.dumps(recipe)
    again = builder_from_recipe(json.loads(json.dumps(recipe)), Mapper)(SIZES)
    assert to_recipe(again) == recipe
    again.load_state_dict(mapper.state_dict())
    assert same(again.eval()(features()), mapper(features()))


def test_other_children_leave_the_first_as_it_was() -> None:
    mapper: Any = observed(MinMax(SIZES, mapper=CHILDREN["summary"]))
    other: Any = mapper.with_children([CHILDREN["frames"](SIZES)])
    assert isinstance(mapper.mapper, MLP)
    assert isinstance(other.mapper, Linear)
    assert other.low is mapper.low
    assert to_recipe(other)["init_args"]["mapper"]["class_path"] == "mmprefix.mappers.linear.Linear"
