"""Every method inside every mapper that takes another: what stands beside the positions is kept, or it is refused."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

import mmprefix.mappers
from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.calibrated import Calibrated
from mmprefix.mappers.combinator import Combinator
from mmprefix.mappers.fusion import Fusion
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.llama_adapter import LlamaAdapter
from mmprefix.mappers.minmax import MinMax
from mmprefix.mappers.noisy_summary import NoisySummary
from mmprefix.mappers.observer import Observer
from mmprefix.mappers.online_offline import OnlineOffline
from mmprefix.mappers.parallel import Parallel
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.mappers.residual import ResidualPrompt
from mmprefix.mappers.support_memory import SupportMemory
from mmprefix.types import AnyPrefix, Features, MixedPrefix, Prefix, split_side
from tests.mappers.test_methods import HIDDEN, METHODS, D, E, G, H, K, L, P, begin, ready, shown

AROUND: dict[str, Callable[..., Mapper]] = {  # each takes sizes and a method as ``mapper``
    "Calibrated": Calibrated,
    "Deep": partial(Deep, hidden=HIDDEN),
    "Fusion": partial(Fusion, heads=2, layers=1, context_dropout=0.0),
    "LlamaAdapter": partial(LlamaAdapter, length=P, first=1),
    "MinMax": MinMax,
    "NoisySummary": NoisySummary,
    "OnlineOffline": OnlineOffline,
    "Parallel": lambda sizes, mapper: Parallel(sizes, mappers=[mapper, partial(Learned, length=P)]),
    "SupportMemory": partial(SupportMemory, size=3),
}


def beside(prefix: AnyPrefix) -> list[Tensor]:
    """Tensors of a prefix that are no positions: updates of the text, gates, terms of attention."""
    plain, terms = split_side(prefix)
    soft = plain.soft if isinstance(plain, MixedPrefix) else plain
    own = [soft.text_updates, soft.gates] if isinstance(soft, Prefix) else []
    tensors = [part for term in terms for part in vars(term).values()]
    return [part for part in (*own, *tensors) if isinstance(part, Tensor)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_what_is_no_position_is_kept_or_the_pair_is_refused(name: str, around: Callable[..., Mapper]) -> None:
    child = ready(name).eval()
    own = beside(child(shown(child)))
    sizes = Sizes(D if child.sizes.frames else 0, G, E, L, H, K, context_summary=G)
    refusal = ""
    try:
        mapper = around(sizes, mapper=lambda _: child)
    except InputError as error:
        mapper, refusal = child, str(error)
    if refusal:
        assert type(child).__name__ in refusal
        assert child.leaves or isinstance(child, Observer)  # which would be shown other numbers than it reads
        return
    features = replace(shown(child), pooled=shown(mapper).pooled)
    begin(mapper, features)
    for outer in (mapper.eval(), mapper.merged()):
        kept = beside(outer(features, features))
        for part in own:
            assert any(same_start(part, other) for other in kept), f"{type(outer).__name__} lost a part {part.shape}"


def same_start(part: Tensor, other: Tensor) -> bool:
    """True if ``part`` is the beginning of ``other`` along the positions (the second dimension) and equal elsewhere."""
    if part.shape[2:] != other.shape[2:] or part.shape[1:2] > other.shape[1:2]:
        return False
    return torch.allclose(*torch.broadcast_tensors(part, other[:, : part.shape[1]] if part.dim() > 1 else other))


class Silent(Learned):
    """Prompt that updates the text too, and does not declare it."""

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        prefix = super().forward(features, context)
        return replace(prefix, text_updates=prefix.embeds)


@pytest.mark.parametrize("around", [Deep, LlamaAdapter])
def test_what_a_mapper_does_not_declare_is_refused_when_it_is_made(around: Callable[..., Mapper]) -> None:
    mapper = around(Sizes(0, 0, E, 3, H, K), mapper=partial(Silent, length=P))
    with pytest.raises(InputError, match="reads embeddings alone, and Silent makes more"):
        mapper(Features.empty(2))


def test_an_adapter_merges_the_mapper_inside_it() -> None:
    mapper = LlamaAdapter(
        Sizes(0, 0, E, 3, H, K), length=P, mapper=partial(ResidualPrompt, length=P, hidden=HIDDEN)
    ).eval()
    merged = mapper.merged()
    assert isinstance(merged, LlamaAdapter)
    assert isinstance(merged.mapper, Learned)
    for own, other in zip(beside(mapper(Features.empty(2))), beside(merged(Features.empty(2))), strict=True):
        torch.testing.assert_close(own, other)


def test_every_mapper_that_takes_another_is_in_the_table() -> None:
    for module in pkgutil.iter_modules(mmprefix.mappers.__path__):
        importlib.import_module(f"mmprefix.mappers.{module.name}")
    own = {cls.__name__ for cls in Combinator.__subclasses__() if cls.__module__.startswith("mmprefix.")}
    assert own == AROUND.keys()
