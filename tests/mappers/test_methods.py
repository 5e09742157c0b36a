"""Contract of every method that makes a prefix: shapes, gradients, merging, its recipe, the paper's parameter count.

A method is a row of ``METHODS``: how it is built between the sizes below, and how many numbers it trains by the formula
of its paper, written out here. P positions, R rank; the letters of the sizes are those of ``mmprefix.types``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch import Tensor
from torch.testing import assert_close

from mmprefix.encoders.user_id import id_bytes
from mmprefix.mappers.aligner import Aligner
from mmprefix.mappers.base import Mapper, Sizes, join_layers
from mmprefix.mappers.compensated_prefix import CompensatedPrefix
from mmprefix.mappers.context_prompt import ContextPrompt
from mmprefix.mappers.control_prefix import ControlPrefix
from mmprefix.mappers.cross_prefix import CrossPrefix
from mmprefix.mappers.dept import DecomposedPrompt
from mmprefix.mappers.examples_prefix import ExamplesPrefix
from mmprefix.mappers.gain_prompt import GainPrompt
from mmprefix.mappers.instruction_prompt import DeepInstructionPrompt, InstructionPrompt
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.llama_adapter import LlamaAdapter
from mmprefix.mappers.lopt import LowRankPrompt
from mmprefix.mappers.mpt import MultitaskPrompt
from mmprefix.mappers.multi_space import MultiSpacePrompt
from mmprefix.mappers.ntk import NTKAttention
from mmprefix.mappers.observer import Observer, Starter
from mmprefix.mappers.online_offline import OnlineOffline
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.prefix_tuning import Deep
from mmprefix.mappers.projected_prefix import ProjectedPrefix
from mmprefix.mappers.prompt_gating import PromptGating
from mmprefix.mappers.prompt_queue import PromptQueue
from mmprefix.mappers.prompter import Prompter
from mmprefix.mappers.residual import ResidualPrompt
from mmprefix.mappers.ulpt import ULPT, UserULPT
from mmprefix.mappers.unipelt import UniPELTPrefix
from mmprefix.mappers.xprompt import XPrompt
from mmprefix.parts import builder_from_recipe, resolve_class, to_recipe
from mmprefix.types import AnyPrefix, DeepPrefix, Features, MixedPrefix, SidePrefix
from tiny.mappers import Reader

D, G, E, L, H, K = 12, 8, 16, 2, 2, 8  # G is the width of a hashed user id
P, R, HIDDEN = 6, 2, 7
SIZES, TASKS = Sizes(0, 0, E, L, H, K), Sizes(0, G, E, L, H, K)  # of a task's prefix, of one for each user or task
RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "methods"


class Method(NamedTuple):
    """How a method is built, its trained numbers by the paper's formula, and the name of its recipe."""

    build: Callable[[], Mapper]
    numbers: int
    recipe: str
    positions: int = P


def queued(queue: PromptQueue) -> PromptQueue:
    """Queue in its third task."""
    queue.next_task()
    queue.next_task()
    return queue


METHODS: dict[str, Method] = {
    "prompt tuning": Method(lambda: Learned(SIZES, length=P), P * E, "prompt_tuning"),
    "lopt": Method(lambda: LowRankPrompt(SIZES, length=P, rank=R), P * R + R * E, "lopt"),
    "residual": Method(
        lambda: ResidualPrompt(SIZES, length=P, hidden=HIDDEN),
        P * E + (E + 1) * HIDDEN + (HIDDEN + 1) * E + 2 * E,
        "residual_prompt",
    ),
    "residual, a network a position": Method(
        lambda: ResidualPrompt(SIZES, length=P, hidden=HIDDEN, shared=False, norm=False, start="a text"),
        P * (E + (E + 1) * HIDDEN + (HIDDEN + 1) * E),
        "residual_prompt",
    ),
    "ulpt": Method(lambda: ULPT(SIZES, length=P, rank=R), P * R + 2 * E, "ulpt"),
    "gain": Method(lambda: GainPrompt(SIZES, length=P), P * E + P + E, "gain_prompt"),
    "multi-space": Method(
        lambda: MultiSpacePrompt(SIZES, length=P, spaces=3, rank=R), P * E + 3 * 2 * E * R + 3 * E, "multi_space"
    ),
    "dept": Method(lambda: DecomposedPrompt(SIZES, length=P, reach=9, rank=R), P * E + 9 * R + R * E, "dept"),
    "context prompt": Method(
        lambda: ContextPrompt(SIZES, demonstrations=[["a", "b"]], length=30), 30 * E, "context_prompt", positions=24
    ),
    "mpt": Method(lambda: MultitaskPrompt(TASKS, length=P, capacity=3, nobody=0.0), P * E + (1 + 3) * (P + E), "mpt"),
    "ulpt, a user": Method(
        lambda: UserULPT(TASKS, length=P, rank=R, capacity=3, nobody=0.0), (1 + 3) * P * R + 2 * E, "ulpt_user"
    ),
    "prefix tuning": Method(
        lambda: Deep(SIZES, mapper=partial(Learned, length=P), hidden=HIDDEN),
        P * E + (E + 1) * HIDDEN + (HIDDEN + 1) * 2 * L * H * K,
        "prefix_tuning",
    ),
    "prompt queue": Method(
        lambda: queued(PromptQueue(SIZES, length=P, shared=R, capacity=3, rank=R)),
        R * E + P * E + 3 * P * R + R * E,
        "prompt_queue",
        positions=R + 2 * P + P,
    ),
    "prefix tuning from a text": Method(
        lambda: Deep(SIZES, mapper=partial(Learned, length=P), hidden=HIDDEN, start="a text"),
        P * E + (E + 1) * HIDDEN + (HIDDEN + 1) * 2 * L * H * K,
        "prefix_tuning",
    ),
    "p-tuning v2 from a text": Method(
        lambda: DeepTable(SIZES, length=P, start="a text"), (P - 1) * 2 * L * H * K, "p_tuning_v2_text"
    ),
    "lae": Method(lambda: OnlineOffline(SIZES, mapper=partial(Learned, length=P)), P * E, "lae"),
    "xprompt": Method(lambda: XPrompt(SIZES, length=P, pieces=4), P * E, "xprompt"),
    "control prefixes": Method(
        lambda: ControlPrefix(replace(SIZES, summary=G), length=P - R, control_length=R, hidden=HIDDEN, capacity=4),
        (1 + 4) * R * E + (P - R) * E + (E + 1) * HIDDEN + (HIDDEN + 1) * 2 * L * H * K,  # one row more: nobody's
        "control_prefix",
    ),
    "prompter": Method(
        lambda: Prompter(replace(SIZES, frames=D), length=P, bottleneck=HIDDEN),
        P * E + (D + 1) * E + 4 * (E + 1) * E + 2 * L * (2 * E + (E + 1) * HIDDEN + (HIDDEN + 1) * E),
        "prompter",
    ),
    "iapt": Method(
        lambda: DeepInstructionPrompt(replace(SIZES, frames=D), length=P, bottleneck=HIDDEN),
        L * (P * D + (D + 1) * HIDDEN + 6 + 4 + (HIDDEN + 1) * 2 * H * K),
        "iapt",
    ),
    "iapt at the input": Method(
        lambda: InstructionPrompt(replace(SIZES, frames=D), length=P, bottleneck=HIDDEN),
        P * D + (D + 1) * HIDDEN + 6 + 4 + (HIDDEN + 1) * E,
        "iapt_input",
    ),
    "hypertuning": Method(
        lambda: ExamplesPrefix(replace(SIZES, frames=D), length=P, layers=1, heads=2),
        (P + 1) * E
        + (D + 1) * E  # queries and the first frame; projection
        + 8 * (E + 1) * E
        + 2 * 4 * E * E
        + 5 * E
        + 4 * 2 * E  # two attentions, feed-forward network, four norms
        + 2 * ((E + 1) * E + (E + 1) * L * H * K),
        "hypertuning",
    ),
    "llama adapter": Method(
        lambda: LlamaAdapter(SIZES, length=P, first=1), (L - 1) * (P * E + H), "llama_adapter", positions=1
    ),
    "prompt gating": Method(
        lambda: PromptGating(SIZES, length=P, hidden=HIDDEN),
        P * E + 2 * (E + 1) * E + P * HIDDEN + 2 * ((HIDDEN + 1) * HIDDEN + (HIDDEN + 1) * L * E),
        "prompt_gating",
    ),
    "cross-attention": Method(
        lambda: CrossPrefix(SIZES, length=P), P * 2 * L * H * K, "speech/cross_prefix", positions=1
    ),
    "compensated prefix": Method(
        lambda: CompensatedPrefix(SIZES, length=P), P * 2 * L * H * K, "lae_compensated", positions=1
    ),
    "aligner": Method(lambda: Aligner(SIZES, length=P, first=0), P * E + L * H, "aligner", positions=1),
    "ntk attention": Method(lambda: NTKAttention(SIZES), L * H * (K * K + K), "ntk_attention", positions=1),
    "unipelt": Method(
        lambda: UniPELTPrefix(SIZES, length=P), P * 2 * L * H * K + L * (E + 1), "unipelt_prefix", positions=1
    ),
    "unipelt from a text": Method(
        lambda: UniPELTPrefix(SIZES, length=P, start="a text"),
        P * 2 * L * H * K + L * (E + 1),
        "unipelt_prefix",
        positions=1,
    ),
    "aligner from a text": Method(
        lambda: Aligner(SIZES, length=P, first=0, start="a text"), P * E + L * H, "aligner", positions=1
    ),
    "projected prefix": Method(lambda: ProjectedPrefix(SIZES, length=P, numbers_a_layer=5), L * 5, "projected_prefix"),
    "p-tuning v2": Method(lambda: DeepTable(SIZES, length=P), P * 2 * L * H * K, "p_tuning_v2"),
}


def shown(mapper: Mapper, count: int = 3) -> Features:
    """Features of ``count`` inputs as the mapper's sizes say: frames of ragged length, hashes of users as a summary."""
    torch.manual_seed(3)
    lengths = torch.arange(count) + 1
    frames = torch.randn(count, count if mapper.sizes.frames else 0, mapper.sizes.frames)
    mask = torch.arange(frames.shape[1]) < lengths[:, None]
    users = torch.stack([id_bytes(f"user {n}") for n in range(count)])
    return Features(frames, mask, users if mapper.sizes.summary else torch.zeros(count, 0))


def begin(mapper: Mapper, features: Features) -> None:
    """Let the parts of a mapper see ``features`` and a decoder, as before a training."""
    reader = Reader(torch.randn(4, mapper.sizes.width), mapper.sizes)
    for part in mapper.modules():
        if isinstance(part, Observer):
            part.observe(features)
        if isinstance(part, Observer | Starter) and not part.known:
            part.begin(reader)
            assert part.known


def ready(name: str) -> Mapper:
    """Mapper as a training begins with it, every parameter moved a little so that none is zero."""
    torch.manual_seed(1)
    mapper = METHODS[name].build()
    begin(mapper, shown(mapper))
    with torch.no_grad():
        for parameter in mapper.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return mapper


def numbers_of(prefix: AnyPrefix) -> Tensor:
    """Numbers (B P n) of a prefix of any kind, and of what else it carries."""
    if isinstance(prefix, SidePrefix):  # all numbers of its terms as those of one position
        tensors = [part for term in prefix.terms for part in vars(term).values() if isinstance(part, Tensor)]
        rows = [part.expand(len(prefix.inner.mask), *part.shape[1:]).flatten(1) for part in tensors]
        return torch.cat(rows, dim=1)[:, None]
    if isinstance(prefix, MixedPrefix):
        return torch.cat([numbers_of(prefix.deep), numbers_of(prefix.soft)], dim=-1)
    if isinstance(prefix, DeepPrefix):
        return join_layers(prefix)
    if prefix.gates is not None:
        return torch.cat([prefix.embeds, prefix.gates.flatten(2)], dim=2)
    return prefix.embeds if prefix.text_updates is None else torch.cat([prefix.embeds, prefix.text_updates], dim=1)


def real(prefix: AnyPrefix) -> Tensor:
    """Mask (B P) of a prefix of any kind; terms beside the cache are one position."""
    if isinstance(prefix, SidePrefix):
        return torch.ones(len(prefix.inner.mask), 1, dtype=torch.bool)
    return torch.cat([prefix.deep.mask, prefix.soft.mask], 1) if isinstance(prefix, MixedPrefix) else prefix.mask


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_shapes_and_one_prefix_for_every_input_where_none_is_read(name: str) -> None:
    mapper = ready(name).eval()
    prefix = mapper(shown(mapper))
    assert real(prefix).shape == (3, METHODS[name].positions)
    assert real(prefix).dtype == torch.bool
    assert real(prefix).any(1).all()
    vectors = numbers_of(prefix)
    assert vectors.isfinite().all()
    widths = (E, 2 * L * H * K, E + 2 * L * H * K, E + 2 * L * E)  # embeddings, keys and values, both, gated ones
    assert isinstance(prefix, SidePrefix) or vectors.shape[-1] in widths
    if mapper.reads_input:
        assert not torch.allclose(vectors[0], vectors[1])
    else:
        assert torch.equal(vectors, vectors[:1].expand_as(vectors))
        assert torch.equal(numbers_of(mapper(Features.empty(2))), vectors[:2])


def test_gradients_reach_every_parameter(name: str) -> None:
    mapper = ready(name).train()
    prefix = mapper(shown(mapper))
    vectors = numbers_of(prefix)
    (vectors * torch.randn_like(vectors)).sum().backward()
    for parameter, values in mapper.named_parameters():
        assert values.grad is not None, parameter
        assert values.grad.isfinite().all(), parameter
        assert values.grad.any(), parameter


def test_the_trained_numbers_are_those_of_the_formula(name: str) -> None:
    trained = [parameter for parameter in METHODS[name].build().parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == METHODS[name].numbers


def test_the_merged_mapper_makes_the_same_prefix_and_is_built_again_from_its_recipe(name: str) -> None:
    mapper = ready(name).eval()
    for one in (mapper, mapper.merged()):
        again = builder_from_recipe(to_recipe(one), Mapper)(one.sizes)
        again.load_state_dict(one.state_dict())
        assert to_recipe(again) == to_recipe(one)
        assert_close(numbers_of(again.eval()(shown(mapper))), numbers_of(mapper(shown(mapper))))
        assert torch.equal(real(again(shown(mapper))), real(mapper(shown(mapper))))
    merged = mapper.merged()
    assert merged.merged() is merged
    assert not merged.training


def test_its_recipe_names_it(name: str) -> None:
    file = RECIPES / f"{METHODS[name].recipe}.yaml"
    assert file.read_text().startswith("# ")
    assert "# Paper:" in file.read_text()
    parts = list(class_paths(yaml.safe_load(file.read_text())))
    assert type(METHODS[name].build()) in [resolve_class(path, Mapper) for path in parts if ".mappers." in path]


def class_paths(data: Any) -> list[str]:
    """All class paths in plain data, the outermost first."""
    if isinstance(data, list):
        return [path for item in data for path in class_paths(item)]
    if not isinstance(data, dict):
        return []
    own = [data["class_path"]] if "class_path" in data and ".starts." not in data["class_path"] else []
    return own + [path for item in data.values() for path in class_paths(item)]
