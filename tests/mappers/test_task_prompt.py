"""Base of learned prompts: when it has begun, and what it is merged to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.starts import Start, Uniform, Zeros
from mmprefix.mappers.task_prompt import TaskPrompt
from mmprefix.types import Features
from tiny.mappers import Reader

SIZES = Sizes(0, 0, 8, 2, 2, 4)


class Doubled(TaskPrompt):
    """Twice its numbers, with noise in training."""

    first = "halves"

    def __init__(self, sizes: Sizes, *, length: int = 3, start: str | Start | None = None) -> None:
        super().__init__(sizes, length=length, std=0.5, start=start)
        self.halves = nn.Parameter(self.origin.numbers(length, sizes.width))

    def embeddings(self) -> Tensor:
        return 2 * self.halves + (torch.randn_like(self.halves) if self.training else 0)

    def take(self, embeds: Tensor) -> None:
        self.halves.copy_(embeds / 2)


def test_it_begins_as_its_start_once() -> None:
    words = torch.randn(2, 8)
    prompt = Doubled(SIZES, start="a text")
    assert not prompt.known
    prompt.begin(Reader(words))
    assert prompt.known
    prefix = prompt.eval()(Features.empty(4))
    assert prefix.mask.shape == (4, 3)
    assert prefix.mask.all()
    assert_close(prefix.embeds, words[[0, 1, 0]].expand(4, -1, -1))


@pytest.mark.parametrize("start", [None, Uniform(scale=0.3), Zeros()])
def test_a_drawn_start_needs_no_decoder(start: Start | None) -> None:
    prompt = Doubled(SIZES, start=start)
    assert prompt.known
    before = prompt.halves.detach().clone()
    prompt.begin(Reader(torch.ones(1, 8)))
    assert torch.equal(prompt.halves, before)


def test_merged_it_is_a_table_of_what_it_makes_outside_training() -> None:
    torch.manual_seed(0)
    prompt = Doubled(SIZES).train()
    table = prompt.merged()
    assert isinstance(table, Learned)
    assert table.training
    assert prompt.training
    assert prompt.halves.requires_grad
    assert torch.equal(table.embeds, 2 * prompt.halves)
    assert table.recipe_args() == {"length": 3, "std": 0.02, "start": None}
    assert not prompt.eval().merged().training


def test_a_prompt_without_positions_is_refused() -> None:
    with pytest.raises(InputError, match=r"Doubled\.length 0: give a number from 1 on"):
        Doubled(SIZES, length=0)
