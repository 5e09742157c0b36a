"""Contract of every mapper: shapes, masks, no influence of padding, a recipe that builds it again."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from mmprefix.errors import InputError
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.embodied_former import EmbodiedFormer
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.parallel import Parallel
from mmprefix.mappers.prefix_aac import PrefixAAC, sinusoids
from mmprefix.mappers.query_guided import QueryGuided
from mmprefix.mappers.resampler import Resampler
from mmprefix.mappers.transformer import Transformer
from mmprefix.parts import builder_from_recipe, to_recipe
from mmprefix.types import Features

D, G, E = 12, 20, 32
BUILD: dict[str, Callable[[], Mapper]] = {
    "mlp": lambda: MLP(Sizes(D, G, E), length=5),
    "transformer": lambda: Transformer(Sizes(D, G, E), length=5, clip_length=3, layers=2),
    "linear": lambda: Linear(Sizes(D, G, E)),
    "linear-stacked": lambda: Linear(Sizes(D, G, E), stack=3),
    "linear-summary": lambda: Linear(Sizes(D, G, E), reads="summary", length=3, bias=False),
    "temporal": lambda: PrefixAAC(Sizes(D, G, E), reads="frames", length=5, layers=2, heads=4),
    "global": lambda: PrefixAAC(Sizes(D, G, E), reads="summary", length=4, layers=1, heads=4, pieces=3, relu=False),
    "resampler": lambda: Resampler(Sizes(D, G, E), length=5, heads=4),
    "resampler-narrow": lambda: Resampler(Sizes(D, 0, E), length=5, layers=3, heads=2, hidden=16),
    "query-guided": lambda: QueryGuided(Sizes(D, G, E), length=5, heads=4),
    "query-guided-narrow": lambda: QueryGuided(Sizes(D, 0, E), length=3, layers=1, heads=2, hidden=16),
    "embodied-former": lambda: EmbodiedFormer(Sizes(D, G, E), length=5, layers=3, heads=4, hidden=16, frames=7, span=2),
    "mlp-deep": lambda: MLP(Sizes(D, G, E), length=5, hidden=9, layers=3),
    "learned": lambda: Learned(Sizes(D, G, E), length=3),
    "parallel": lambda: Parallel(Sizes(D, G, E), mappers=[partial(MLP, length=2), partial(Linear, stack=2)]),
}


def features(lengths: list[int], pooled: int = G, seed: int = 0) -> Features:
    torch.manual_seed(seed)
    frames = torch.randn(len(lengths), max(lengths), D)
    return Features(
        frames, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None], torch.randn(len(lengths), pooled)
    )


@pytest.fixture(params=BUILD)
def mapper(request: pytest.FixtureRequest) -> Mapper:
    torch.manual_seed(1)
    return BUILD[request.param]().eval()


def pooled_of(mapper: Mapper) -> int:
    return mapper.sizes.summary


def test_shapes_and_gradients(mapper: Mapper) -> None:
    prefix = mapper(features([7, 4, 1], pooled_of(mapper)))
    assert prefix.embeds.shape == (*prefix.mask.shape, E)
    assert prefix.mask.dtype == torch.bool
    assert prefix.mask.any(1).all()
    prefix.embeds[prefix.mask].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mapper.parameters())


def test_a_batch_equals_its_items_and_padding_is_not_read(mapper: Mapper) -> None:
    clean = features([7, 4, 1], pooled_of(mapper))
    dirty = Features(torch.where(clean.mask[..., None], clean.frames, 1e3), clean.mask, clean.pooled)
    together = mapper(dirty)
    for b, n in enumerate([7, 4, 1]):
        alone = mapper(Features(clean.frames[b : b + 1, :n], clean.mask[b : b + 1, :n], clean.pooled[b : b + 1]))
        assert torch.allclose(together.embeds[b][together.mask[b]], alone.embeds[0][alone.mask[0]], atol=1e-5)


def test_a_mapper_of_summaries_reads_no_frames(mapper: Mapper) -> None:
    clean = features([7, 4, 1], pooled_of(mapper))
    none = Features(clean.frames[:, :0, :0], clean.mask[:, :0], clean.pooled)
    others = Features(clean.frames + 1, clean.mask, clean.pooled)
    prefix = mapper(clean)
    if mapper.reads_frames:
        changed = mapper(others).embeds
        assert not torch.allclose(changed, prefix.embeds)
    else:
        assert torch.equal(mapper(none).embeds, prefix.embeds)
        assert torch.equal(mapper(others).embeds, prefix.embeds)


def test_a_recipe_rebuilds_it(mapper: Mapper) -> None:
    again = builder_from_recipe(to_recipe(mapper), Mapper)(mapper.sizes)
    again.load_state_dict(mapper.state_dict())
    inputs = features([7, 4, 1], pooled_of(mapper))
    assert_close(again.eval()(inputs).embeds, mapper(inputs).embeds)
    assert to_recipe(again) == to_recipe(mapper)


def test_dropout_only_in_training() -> None:
    mapper = Resampler(Sizes(D, G, E), length=5, heads=4, dropout=0.5)
    inputs = features([7, 4])
    assert not torch.equal(mapper(inputs).embeds, mapper(inputs).embeds)
    mapper.eval()
    assert torch.equal(mapper(inputs).embeds, mapper(inputs).embeds)


def test_linear_stacks_frames_to_positions() -> None:
    prefix = Linear(Sizes(D, G, E), stack=3)(features([7, 4, 1]))
    assert prefix.mask.tolist() == [[True, True, True], [True, True, False], [True, False, False]]


def test_parallel_joins_in_order() -> None:
    mapper = BUILD["parallel"]()
    assert isinstance(mapper, Parallel)
    inputs = features([7, 4, 1])
    first, second = (part(inputs) for part in mapper.mappers)
    joined = mapper(inputs)
    assert torch.equal(joined.embeds, torch.cat([first.embeds, second.embeds], 1))
    assert torch.equal(joined.mask, torch.cat([first.mask, second.mask], 1))


def test_resampler_reads_a_summary_without_frames() -> None:
    mapper = Resampler(Sizes(0, G, E), length=3, heads=4)
    empty = Features(torch.zeros(2, 0, 0), torch.zeros(2, 0, dtype=torch.bool), torch.randn(2, G))
    assert mapper(empty).embeds.shape == (2, 3, E)


def test_padding_has_no_influence_on_batch_statistics() -> None:
    """In training, the statistics are those of the real frames only."""
    mapper = PrefixAAC(Sizes(D, G, E), dropout=0.0, heads=4, layers=1)
    twin = PrefixAAC(Sizes(D, G, E), dropout=0.0, heads=4, layers=1)
    twin.load_state_dict(mapper.state_dict())
    clean = features([7, 4, 1])
    dirty = Features(torch.where(clean.mask[..., None], clean.frames, 1e3), clean.mask, clean.pooled)
    assert torch.allclose(mapper(clean).embeds, twin(dirty).embeds, atol=1e-5)
    real = mapper.project(clean.frames[clean.mask])
    assert torch.allclose(mapper.norm.running_mean, 0.1 * real.mean(0), atol=1e-6)  # type: ignore[arg-type]
    assert torch.allclose(mapper.norm.running_var, 0.9 + 0.1 * real.var(0), atol=1e-5)  # type: ignore[arg-type]


def test_frames_have_positions_and_pieces_have_none() -> None:
    frames = features([6, 6])
    turned = Features(frames.frames.flip(1), frames.mask, frames.pooled)
    temporal = PrefixAAC(Sizes(D, G, E), heads=4).eval()
    assert not torch.allclose(temporal(frames).embeds, temporal(turned).embeds, atol=1e-3)
    overall = PrefixAAC(Sizes(D, G, E), reads="summary", heads=4, pieces=4).eval()
    pooled = frames.pooled.unflatten(1, (4, 5)).flip(1).flatten(1)
    same = overall(Features(frames.frames, frames.mask, pooled)).embeds
    assert torch.allclose(overall(frames).embeds, same, atol=1e-5)


def test_sinusoids_equal_the_formula() -> None:
    table = sinusoids(torch.zeros(1, 9, 6))
    for place in range(9):
        for i in range(3):
            angle = place / 10000 ** (2 * i / 6)
            assert table[place, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[place, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


def test_published_sizes() -> None:
    """43 M and 32 M parameters, as ClipCap's table gives for RN50x4 features and ten positions."""
    transformer = Transformer(Sizes(0, 640, 768), length=10, clip_length=10)
    assert sum(p.numel() for p in transformer.parameters()) == pytest.approx(42.73e6, rel=1e-3)
    assert sum(p.numel() for p in MLP(Sizes(0, 640, 768), length=10).parameters()) == pytest.approx(31.96e6, rel=1e-3)
    # Prefix-AAC's two mappers, as its authors' classes have it
    assert sum(p.numel() for p in PrefixAAC(Sizes(4096, 527, 768)).parameters()) == 22058496
    overall = PrefixAAC(Sizes(4096, 527, 768), reads="summary", length=11)
    assert sum(p.numel() for p in overall.parameters()) == 18946560


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_an_mlp_has_the_given_number_of_layers(layers: int) -> None:
    """Reference by hand: a tanh after each layer but the last."""
    mapper = MLP(Sizes(D, G, E), length=5, hidden=6, layers=layers)
    weights = list(mapper.state_dict().values())
    assert len(weights) == 2 * layers
    inputs = features([7, 4])
    x = inputs.pooled
    for place in range(0, len(weights), 2):
        x = x @ weights[place].T + weights[place + 1]
        x = torch.tanh(x) if place < len(weights) - 2 else x
    assert torch.allclose(mapper(inputs).embeds, x.view(2, 5, E), atol=1e-6)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: MLP(Sizes(D, 0, E)), "MLP reads the encoder's summary"),
    (lambda: MLP(Sizes(D, G, E), layers=1), "MLP.layers 1: give a number from 2 on"),
    (lambda: Transformer(Sizes(D, 0, E)), "Transformer reads the encoder's summary"),
    (lambda: Linear(Sizes(0, G, E)), "Linear reads the encoder's frames"),
    (lambda: Resampler(Sizes(0, 0, E)), "Resampler reads the encoder's frames"),
    (lambda: Linear(Sizes(D, 0, E), reads="summary"), "Linear reads the encoder's summary"),
    (lambda: Linear(Sizes(D, G, E), reads="all"), "reads: 'all' is none of frames, summary"),  # type: ignore[arg-type]
    (lambda: PrefixAAC(Sizes(0, G, E)), "PrefixAAC reads the encoder's frames"),
    (lambda: PrefixAAC(Sizes(D, 0, E), reads="summary"), "PrefixAAC reads the encoder's summary"),
    (lambda: PrefixAAC(Sizes(D, G, E), reads="summary", pieces=21), "a summary of 20 values cannot be cut into 21"),
    (lambda: Resampler(Sizes(D, G, E), heads=5), "heads=5 does not divide"),
    (lambda: Transformer(Sizes(D, G, E), heads=5), "heads=5 does not divide"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(make: Callable[[], Mapper], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
