"""Features of inputs for a policy, and a policy that learns from demonstrations what random features cannot tell."""

from __future__ import annotations

from functools import partial
from itertools import islice

import pytest
import torch
from torch.testing import assert_close

from mmprefix import FrameSequence, Predictor
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.text import Text
from mmprefix.encoders.video import Frames
from mmprefix.encoders.vit import ViT
from mmprefix.errors import InputError
from mmprefix.inference.inputs import Input
from mmprefix.inference.tasks import InputFeatures
from mmprefix.mappers.embodied_former import EmbodiedFormer
from mmprefix.mappers.llama_adapter import LlamaAdapter
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.model import Branch, PrefixLM
from mmprefix.policies.cloning import Demonstrations, clone, observation
from mmprefix.world.clips import draw_frames, sample_clips

PLANNER = "mmprefix:world/frozen/planner"


@pytest.fixture(scope="module")
def model() -> Predictor:
    torch.manual_seed(0)
    former = partial(EmbodiedFormer, length=3, layers=2, heads=2, hidden=16, frames=5, cells=64)
    video = Branch(Frames(ViT("mmprefix:world/frozen/vision"), frames=5), former, context="instruction")
    branches = {"video": video, "instruction": Branch(Text(PLANNER))}
    return Predictor(PrefixLM(branches, CausalDecoder(PLANNER), partial(LlamaAdapter, length=2)))


@pytest.fixture(scope="module")
def videos() -> list[FrameSequence]:
    return [FrameSequence(draw_frames(clip)) for clip in islice(sample_clips(0, "train"), 3)]


def test_features_are_the_formers_and_the_summaries_of_the_encoders(model: Predictor, videos: list[FrameSequence]):
    inputs: list[Input] = [{"video": video, "instruction": "put everything back"} for video in videos]
    rows = model.features(inputs, batch_size=2)
    assert len(rows) == 3
    assert all(row.prefix.shape == (3, 96) for row in rows)
    assert {name: value.shape for name, value in rows[0].summaries.items()} == {"video": (128,), "instruction": (96,)}
    (alone,) = model.features(inputs[1])
    assert_close(alone.prefix, rows[1].prefix)
    assert observation(alone).shape == (3 * 96 + 128 + 96,)


def test_a_plan_given_back_changes_the_features(model: Predictor, videos: list[FrameSequence]):
    plans = ["actions: 1: pick(red circle) 2: put(red circle, centre)", "actions: 1: remove(blue ring)"]
    first, second = model.features([{"video": videos[0], "instruction": plan} for plan in plans])
    assert (first.prefix - second.prefix).abs().amax() > 1e-3
    assert_close(first.summaries["video"], second.summaries["video"])


def test_a_deep_prefix_alone_is_keys_and_values():
    branch = Branch(Text(PLANNER), partial(DeepTable, length=2))
    (row,) = Predictor(PrefixLM({"instruction": branch}, CausalDecoder(PLANNER))).features({"instruction": "a"})
    assert row.prefix.shape == (2, 2 * 3 * 96)  # keys and values of three layers of width 96


def demonstrations(count: int, seed: int) -> tuple[list[InputFeatures], list[list[int]]]:
    """Inputs whose prefix tells where the first of two steps goes, and whose summary where the second does."""
    drawn = torch.Generator().manual_seed(seed)
    places = torch.randint(5, (count, 2), generator=drawn)
    noise = torch.randn(count, 2, 5, generator=drawn) * 0.1
    seen = torch.nn.functional.one_hot(places, 5) + noise
    return [InputFeatures(row[:1], {"video": row[1]}) for row in seen], [list(map(int, row)) for row in places]


def test_a_policy_learns_actions_from_features_and_not_from_others():
    features, actions = demonstrations(200, 0)
    policy = clone(Demonstrations.of(features, actions), 5, epochs=30)
    new, wanted = demonstrations(50, 1)
    right = [policy.act(row, 2) == steps for row, steps in zip(new, wanted, strict=True)]
    shuffled = [policy.act(row, 2) == steps for row, steps in zip(new[1:] + new[:1], wanted, strict=True)]
    assert sum(right) >= 48
    assert sum(shuffled) <= 10


def test_demonstrations_need_a_step():
    features, _ = demonstrations(2, 0)
    with pytest.raises(InputError, match="at least one step"):
        Demonstrations.of(features, [[], []])
    with pytest.raises(InputError, match="2 inputs and actions of 1"):
        Demonstrations.of(features, [[1]])


def test_numbers_that_hardly_change_are_not_blown_up_and_one_demonstration_is_enough():
    still = torch.full((8, 1), 3.0)
    shown = torch.cat([still, torch.randn(8, 1, generator=torch.Generator().manual_seed(0))], dim=1)
    head = clone(Demonstrations(shown, torch.zeros(8, dtype=torch.long), torch.arange(8) % 2), 2, epochs=1)
    moved = head.moments(torch.tensor([[3.001, 0.0]]))
    assert moved.abs().max() < 2
    single = clone(Demonstrations(shown[:1], torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long)), 2)
    assert single(shown[:1], torch.zeros(1, dtype=torch.long)).isfinite().all()
