"""Prefix as words: the loss written out, nearness that is learned, what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch
from torch.nn import functional as F

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.model import PrefixLM
from mmprefix.training.methods.prefix_words import PrefixWords
from mmprefix.types import Prefix
from tiny.decoders import save_decoder
from tiny.fits import fit, prefix_task, text_batch

P = 4


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(save_decoder(tmp_path_factory.mktemp("gpt2")))


def rest_of(decoder: CausalDecoder) -> str:
    """Text of one token."""
    return next(text for text in ".ae" if len(decoder.token_ids(text)) == 1)


def test_the_loss_is_the_cross_entropy_of_nearness(decoder: CausalDecoder) -> None:
    model, batch, rest = (
        PrefixLM({}, decoder, partial(Learned, length=P)),
        text_batch(("a dog", "rain")),
        rest_of(decoder),
    )
    table = decoder.token_vectors(list(range(len(decoder.tokenizer))))
    prefix = cast(Prefix, model.build_prefix({}, count=2))
    distance = torch.cdist(prefix.embeds, table.expand(2, -1, -1)).square() / table.square().sum(1).mean()
    wanted = [(decoder.token_ids(text) + decoder.token_ids(rest) * P)[:P] for text in ("a dog", "rain")]
    expected = F.cross_entropy((-3 * distance).flatten(0, 1), torch.tensor(wanted).flatten())
    loss, figures = PrefixWords(rest=rest, scale=3.0).loss(model, batch, 0.0)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
    near = (distance.argmin(2) == torch.tensor(wanted)).float().mean()
    torch.testing.assert_close(figures["words"], near)


def test_positions_become_the_words(decoder: CausalDecoder, tmp_path: Path) -> None:
    rest = rest_of(decoder)
    task = prefix_task(decoder, partial(Learned, length=P), objective=PrefixWords(rest=rest))
    fit(task, tmp_path, [text_batch(("a dog",))] * 60)
    loss, figures = PrefixWords(rest=rest).loss(task.model, text_batch(("a dog",)), 0.0)
    assert figures["words"] == 1
    assert loss < 0.1


def test_what_does_not_fit_is_refused(decoder: CausalDecoder) -> None:
    soft, batch = PrefixLM({}, decoder, partial(Learned, length=P)), text_batch(("a dog",))
    with pytest.raises(InputError, match="without deep prefixes"):
        PrefixWords().loss(PrefixLM({}, decoder, partial(DeepTable, length=P)), batch, 0.0)
    with pytest.raises(InputError, match="give a text of one"):
        PrefixWords(rest="a dog barks at the cat").loss(soft, batch, 0.0)
    with pytest.raises(InputError, match="no target"):
        PrefixWords(rest=rest_of(decoder)).loss(soft, text_batch(("a dog",), targets=[[]]), 0.0)
    with pytest.raises(InputError, match=r"scale 0\.0"):
        PrefixWords(scale=0.0)
