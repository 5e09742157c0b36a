"""One text with several prefixes: plain search where one prefix has all the weight, and each join's formula by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.generation.several import AirDecoding, Guidance, Join, Mixture, Product, Strongest
from mmprefix.generation.several.search import search_joined, write_joined
from mmprefix.kv_cache.state import State
from mmprefix.types import AnyPrefix, DeepPrefix, Prefix
from tiny.decoders import ragged_prefix, save_decoder

PROMPTS = ["a dog", "", "the cat runs over a green hill"]
GREEDY, BEAMS = GenerateOptions(max_new_tokens=9), GenerateOptions(max_new_tokens=9, num_beams=3, num_return=3)
OPTIONS = [
    GREEDY,
    BEAMS,
    GenerateOptions(max_new_tokens=9, num_beams=3, ranking="clipcap"),
    GenerateOptions(max_new_tokens=9, sample=True, seed=4, num_return=2),
    GenerateOptions(max_new_tokens=12, start_with="a bell", must_hold=("hill",), num_beams=4),
]


@pytest.fixture(scope="module", params=["gpt2", "llama", "mistral"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(save_decoder(tmp_path_factory.mktemp(request.param), request.param, sharp=3.0)).eval()


def deep(decoder: CausalDecoder, length: int, seed: int) -> DeepPrefix:
    torch.manual_seed(seed)
    shape = (decoder.layers, 1, decoder.heads, length, decoder.head_width)
    return DeepPrefix(torch.randn(shape), torch.randn(shape), torch.ones(1, length, dtype=torch.bool)).expand(3)


def states(decoder: CausalDecoder) -> list[State]:
    """Prefixes of all kinds and lengths, and none."""
    prefixes: list[AnyPrefix] = [
        ragged_prefix(decoder, [5, 2, 4]),
        deep(decoder, 3, seed=1),
        Prefix.empty(3, decoder.width),
    ]
    return [decoder.append(decoder.prefill(prefix), PROMPTS) for prefix in prefixes]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("join", [Product([0, 1, 0]), Mixture([0, 2, 0])])
def test_one_prefix_with_all_the_weight_is_plain_search(
    decoder: CausalDecoder, join: Join, options: GenerateOptions
) -> None:
    several = states(decoder)
    ours = write_joined(decoder, several, join, options, before=PROMPTS)
    plain = decoder.generate_from(several[1], options, PROMPTS)
    assert [[c.text for c in row] for row in ours] == [[c.text for c in row] for row in plain]
    for row, expected in zip(ours, plain, strict=True):
        assert [c.score for c in row] == pytest.approx([c.score for c in expected], abs=2e-4)


@pytest.mark.parametrize("options", OPTIONS[:3])
def test_guidance_of_one_is_the_conditional_and_of_none_the_other(
    decoder: CausalDecoder, options: GenerateOptions
) -> None:
    conditional, other, _ = states(decoder)
    for scale, state in ((1.0, conditional), (0.0, other)):
        ours = write_joined(decoder, [conditional, other], Guidance(scale), options, before=PROMPTS)
        plain = decoder.generate_from(state, options, PROMPTS)
        assert [[c.text for c in row] for row in ours] == [[c.text for c in row] for row in plain]


def air(rows: list[Tensor], written: list[list[float]]) -> Tensor:
    """Facts of the paper, token by token: a = -1 / log p, and the running products sigma."""
    model, *attributes = [row.double() for row in rows]
    a = [-1 / row for row in attributes]
    total = a[0].clone()
    for j in range(1, len(a)):
        sigma = 1.0
        for before in written:
            sigma *= (-1 / before[1 + j]) / (-1 / before[1])
        total = total + sigma * a[j]
    q = model.exp() * (a[0] / total) ** 20.0
    return q.masked_fill(q < q.topk(50).values[-1], 0).log()


FORMULAS: dict[str, tuple[Join, int, Callable[[list[Tensor], list[list[float]]], Tensor]]] = {
    "product": (Product([0.7, 0.5, -0.2]), 3, lambda rows, _: 0.7 * rows[0] + 0.5 * rows[1] - 0.2 * rows[2]),
    "mixture": (Mixture([1, 3, 0]), 3, lambda rows, _: (0.25 * rows[0].exp() + 0.75 * rows[1].exp()).log()),
    "guidance": (Guidance(1.7), 2, lambda rows, _: rows[1] + 1.7 * (rows[0] - rows[1])),
    "strongest": (Strongest(), 3, lambda rows, _: torch.stack(rows).exp().max(0).values.log()),
    "air": (AirDecoding(20.0, top_k=50), 3, air),
}


@pytest.mark.parametrize("options", [GREEDY, BEAMS])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_hypothesis_has_the_probability_of_the_formula(
    decoder: CausalDecoder, name: str, options: GenerateOptions
) -> None:
    """Tokens are appended to each state one by one, without the tree, the batch and the cache of a search."""
    join, count, formula = FORMULAS[name]
    several = states(decoder)[:count]
    for b, group in enumerate(search_joined(decoder, several, join, options)):
        assert len(group) == options.num_return
        for ids, score in group:
            own, total, written = [state.select(torch.tensor([b])) for state in several], 0.0, list[list[float]]()
            for token in ids:
                with torch.no_grad():
                    hidden = [decoder.language_model.last_hidden(state)[0] for state in own]
                    rows = [decoder.logits(each).float().log_softmax(-1) for each in hidden]
                    own = [decoder.append_ids(state, [[token]]) for state in own]
                joined = formula(rows, written).log_softmax(-1)
                if options is GREEDY:
                    assert float(joined[token]) == pytest.approx(float(joined.max()), abs=1e-3)
                total += float(joined[token])
                written.append([float(row[token]) for row in rows])
            assert score == pytest.approx(total / len(ids), abs=2e-3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Product([0, 0]), r"Product\.weights"),
        (lambda: Mixture([1, -1]), "below 0"),
        (lambda: AirDecoding(top_k=0), "top_k 0"),
        (lambda: AirDecoding(-1), "strength"),
        (lambda: Guidance(float("nan")), "scale"),
        (lambda: Product([1]).require(2), "1 for 2 prefixes"),
        (lambda: Guidance().require(3), "two prefixes"),
        (lambda: AirDecoding().require(2), "two attributes"),
        (lambda: Strongest().require(0), "needs a prefix"),
    ],
)
def test_what_cannot_be_joined_is_refused_by_name(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


def test_a_state_that_predicts_nothing_is_refused(tmp_path: Path) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path))
    with pytest.raises(InputError, match="nothing was read before"):
        write_joined(decoder, [decoder.prefill(deep(decoder, 2, 0))] * 2, Guidance(), GREEDY)
