"""Learned prompts against their papers' formulas, written out number by number; their starts; updates of a text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mmprefix.decoders import CausalDecoder, WordDecoder
from mmprefix.encoders.user_id import id_bytes
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.context_prompt import ContextPrompt
from mmprefix.mappers.dept import DecomposedPrompt
from mmprefix.mappers.gain_prompt import GainPrompt
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.lopt import LowRankPrompt
from mmprefix.mappers.mpt import MultitaskPrompt
from mmprefix.mappers.multi_space import MultiSpacePrompt
from mmprefix.mappers.parallel import Parallel
from mmprefix.mappers.residual import ResidualPrompt
from mmprefix.mappers.starts import TextTokens
from mmprefix.mappers.ulpt import ULPT
from mmprefix.types import Features, Prefix, concat_prefixes
from tiny import decoders as tiny_decoders
from tiny.mappers import Reader

P, R, E = 5, 3, 8
SIZES = Sizes(0, 0, E)
NOTHING = Features.empty(1)


def moved(mapper: Mapper) -> dict[str, Any]:
    """Every parameter of a mapper, moved from its start, as nested lists of numbers."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in mapper.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return {name: tensor.tolist() for name, tensor in mapper.state_dict().items()}


def table(values: Callable[[int, int], float]) -> Tensor:
    """Embeddings (1 P E), number by number."""
    return torch.tensor([[[values(i, j) for j in range(E)] for i in range(P)]])


def test_lopt_is_the_product() -> None:
    mapper = LowRankPrompt(SIZES, length=P, rank=R)
    u, v = moved(mapper).values()
    assert_close(mapper(NOTHING).embeds, table(lambda i, j: sum(u[i][k] * v[k][j] for k in range(R))))
    drawn = LowRankPrompt(Sizes(0, 0, 400), length=200, rank=100)
    for part in (drawn.left, drawn.right):
        assert float(part.detach().abs().max()) <= 0.5
        assert float(part.detach().std()) == pytest.approx(1 / math.sqrt(12), rel=0.05)  # of U(-0.5, 0.5)


def test_ulpt_is_numbers_through_a_frozen_basis_scaled_and_shifted() -> None:
    mapper = ULPT(SIZES, length=P, rank=R, seed=5)
    basis = torch.randn(R, E, generator=torch.Generator().manual_seed(5)).tolist()
    own = moved(mapper)
    z, s, b = own["z"], own["scale"], own["shift"]
    expected = table(lambda i, j: sum(z[i][k] * basis[k][j] for k in range(R)) * s[j] + b[j])
    assert_close(mapper(NOTHING).embeds, expected)


def test_the_published_numbers_of_ulpt_and_prompt_tuning() -> None:
    """T5-base, 100 positions: 76.8 K of prompt tuning; 1.7, 3.1, 7.9, 27.1 K of ULPT; 55.6 K of DPT at rank 64."""

    def count(mapper: Mapper) -> float:
        return round(sum(parameter.numel() for parameter in mapper.parameters()) / 1000, 1)

    base = Sizes(0, 0, 768)
    assert count(Learned(base, length=100)) == 76.8
    assert [count(ULPT(base, length=100, rank=rank)) for rank in (2, 16, 64, 256)] == [1.7, 3.1, 7.9, 27.1]
    assert count(LowRankPrompt(base, length=100, rank=64)) == 55.6


@pytest.mark.parametrize("shared", [True, False])
def test_a_residual_prompt_is_the_table_plus_its_network(shared: bool) -> None:
    mapper = ResidualPrompt(SIZES, length=P, hidden=4, shared=shared)
    own = moved(mapper)
    rows = own["embeds"]

    def row(i: int) -> list[float]:
        start = f"networks.{0 if shared else i}."
        w1, b1, w2, b2, scale, shift = (own[start + name] for name in (
            "0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"
        ))  # fmt: skip
        inner = [max(0.0, sum(w1[h][j] * rows[i][j] for j in range(E)) + b1[h]) for h in range(4)]
        out = [sum(w2[j][h] * inner[h] for h in range(4)) + b2[j] for j in range(E)]
        mean = sum(out) / E
        spread = math.sqrt(sum((value - mean) ** 2 for value in out) / E + 1e-5)
        return [rows[i][j] + (out[j] - mean) / spread * scale[j] + shift[j] for j in range(E)]

    assert_close(mapper(NOTHING).embeds, torch.tensor([[row(i) for i in range(P)]]))


def test_a_gain_prompt_is_the_table_times_a_factor_a_position_and_a_factor_a_number() -> None:
    mapper = GainPrompt(SIZES, length=P)
    own = moved(mapper)
    g, h, rows = own["of_positions"], own["of_numbers"], own["embeds"]
    assert_close(mapper(NOTHING).embeds, table(lambda i, j: g[i] * h[j] * rows[i][j]))


def test_a_multi_space_prompt_is_the_table_plus_weighed_low_rank_views() -> None:
    mapper = MultiSpacePrompt(SIZES, length=P, spaces=2, rank=R)
    assert_close(mapper(NOTHING).embeds[0], mapper.embeds)  # before training
    own = moved(mapper)
    rows, down, up, gate = own["embeds"], own["down"], own["up"], own["gate"]

    def number(i: int, j: int) -> float:
        sizes = [math.exp(sum(rows[i][k] * gate[k][s] for k in range(E))) for s in range(2)]
        total = rows[i][j]
        for s in range(2):
            inner = [sum(rows[i][k] * down[s][k][r] for k in range(E)) for r in range(R)]
            total += sizes[s] / sum(sizes) * sum(inner[r] * up[s][r][j] for r in range(R))
        return total

    assert_close(mapper(NOTHING).embeds, table(number))


@pytest.mark.parametrize("rank", [1, 2])
def test_mpt_is_the_shared_prompt_times_a_matrix_of_low_rank_for_each_task(rank: int) -> None:
    mapper = MultitaskPrompt(Sizes(0, 8, E), length=P, rank=rank, capacity=2, spread=0.0)
    tasks = torch.stack([id_bytes("ann"), id_bytes("bo"), id_bytes("nobody in here")])
    shown = Features(torch.zeros(3, 0, 0), torch.zeros(3, 0).bool(), tasks)
    mapper.observe(Features(shown.frames[:2], shown.mask[:2], tasks[:2]))
    mapper.eval()
    assert_close(mapper(shown).embeds, mapper.embeds.expand(3, -1, -1))  # before training: ones
    own = moved(mapper)
    for b, row in enumerate(mapper.index(tasks).tolist()):
        u, v = torch.tensor(own["rows"][row]).split([P * rank, rank * E])
        expected = table(lambda i, j, u=u, v=v: own["embeds"][i][j] * sum(
            float(u[i * rank + k] * v[k * E + j]) for k in range(rank)
        ))  # fmt: skip
        assert_close(mapper(shown).embeds[b], expected[0])
    assert mapper.index(tasks).tolist()[2] == 0  # nobody's row


def test_a_prompt_that_is_no_table_begins_as_near_to_its_start_as_it_can() -> None:
    words = torch.randn(P, E)
    reader = Reader(words)
    mappers = [
        GainPrompt(SIZES, length=P, start="a"),
        MultiSpacePrompt(SIZES, length=P, start="a"),
        LowRankPrompt(SIZES, length=P, rank=P, start="a"),
        ULPT(SIZES, length=P, rank=E, start="a"),
        DecomposedPrompt(SIZES, length=P, start="a"),
        Learned(SIZES, length=P, start=TextTokens(text="a")),
    ]
    for mapper in mappers:
        assert not mapper.known
        mapper.begin(reader)
        assert mapper.known
        assert_close(mapper(NOTHING).embeds[0], words, atol=1e-4, rtol=1e-4)
    low = LowRankPrompt(SIZES, length=P, rank=2, start="a")
    low.begin(reader)
    left, size, right = torch.linalg.svd(words)
    assert_close(low(NOTHING).embeds[0], left[:, :2] * size[:2] @ right[:2], atol=1e-4, rtol=1e-4)  # Eckart, Young


@pytest.mark.parametrize(
    "words", [torch.zeros(P, E), torch.randn(1, E).expand(P, E), torch.randn(P, 2) @ torch.randn(2, E)]
)
def test_a_low_rank_start_of_lower_rank_leaves_no_direction_without_a_gradient(words: Tensor) -> None:
    """Texts of few words, repeated, have few directions, and zeros none; each column must learn all the same."""
    mapper = LowRankPrompt(SIZES, length=P, rank=4, start="a")
    mapper.begin(Reader(words))
    assert_close(mapper(NOTHING).embeds[0], words, atol=1e-4, rtol=1e-4)
    (mapper(NOTHING).embeds * torch.randn(P, E)).sum().backward()
    assert mapper.left.grad is not None
    assert mapper.left.grad.norm(dim=0).min() > 0.05 * mapper.left.grad.norm(dim=0).max()


# ------------------------------------------------------------------------------------------------- demonstrations


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(tiny_decoders.save_decoder(tmp_path_factory.mktemp("gpt2")))


PAIRS = [["a dog barks", "loud"], ["rain falls", "soft"]]


def test_a_context_prompt_is_the_demonstrations_as_a_prompt(gpt2: CausalDecoder) -> None:
    mapper = ContextPrompt(Sizes(0, 0, gpt2.width), demonstrations=PAIRS, length=90)
    assert not mapper.known
    mapper.begin(gpt2)
    text = "input: a dog barks\noutput: loud\ninput: rain falls\noutput: soft\n"
    prefix = mapper(NOTHING)
    assert torch.allclose(prefix.embeds[0, :3], gpt2.word_vectors(text)[:3])
    targets = [["the cat runs"]]
    pieces = [text for text, _ in mapper.pieces]
    assert "".join(pieces) == text
    ids = [number for piece in pieces for number in gpt2.token_ids(piece)]
    state = gpt2.append_ids(gpt2.prefill(Prefix.empty(1, gpt2.width)), [ids])
    expected = gpt2.score(state, [""], targets)
    assert gpt2.score(gpt2.prefill(prefix), [""], targets)[0] == pytest.approx(expected[0], abs=1e-3)
    merged = mapper.merged()
    assert_close(cast(Learned, merged).embeds, prefix.embeds[0])


def test_a_delta_is_cut_to_its_bound_and_labels_do_not_move(gpt2: CausalDecoder) -> None:
    mapper = ContextPrompt(Sizes(0, 0, gpt2.width), demonstrations=PAIRS, length=90, epsilon=0.3, template_epsilon=0.2)
    mapper.begin(gpt2)
    before = mapper(NOTHING).embeds
    with torch.no_grad():
        mapper.delta.copy_(torch.randn_like(mapper.delta))
    after = mapper(NOTHING).embeds
    lengths = (after - before)[0].detach().norm(dim=1)
    root = math.sqrt(gpt2.width / 2048)
    bounds = {1: 0.2 * root, 2: 0.3 * root, 3: 0.0}
    kinds = mapper.kinds[mapper.kinds != 0].tolist()
    assert_close(lengths, torch.tensor([bounds[kind] for kind in kinds]), atol=1e-6, rtol=1e-4)
    assert {*kinds} == {1, 2, 3}
    after.sum().backward()
    assert mapper.delta.grad is not None
    assert not mapper.delta.grad[mapper.kinds == 3].any()
    assert mapper.delta.grad[mapper.kinds == 2].all()
    short = mapper.delta.detach().clone() * 0.5
    with torch.no_grad():
        mapper.delta.copy_(short)
    mapper(NOTHING)
    assert torch.equal(mapper.delta, short)  # within its bound nothing is cut
    with torch.no_grad():
        mapper.delta.copy_(torch.randn_like(mapper.delta))  # as the last step of a training leaves it
    used = mapper.eval()(NOTHING).embeds
    lengths = (used - before)[0].detach().norm(dim=1)
    assert_close(lengths, torch.tensor([bounds[kind] for kind in kinds]), atol=1e-6, rtol=1e-4)
    assert_close(cast(Learned, mapper.merged()).embeds, used[0])


def test_demonstrations_that_do_not_fit_are_refused(gpt2: CausalDecoder) -> None:
    sizes = Sizes(0, 0, gpt2.width)
    with pytest.raises(InputError, match=r"length 4: the demonstrations have \d+ tokens; raise it"):
        ContextPrompt(sizes, demonstrations=PAIRS, length=4).begin(gpt2)
    for wrong in ([], [["a"]]):
        with pytest.raises(InputError, match="at least one pair"):
            ContextPrompt(sizes, demonstrations=wrong)
    with pytest.raises(InputError, match="no place for the text"):
        ContextPrompt(sizes, demonstrations=PAIRS, label_template="label")


# ----------------------------------------------------------------------------------------------- updates of a text


def updated(decoder: CausalDecoder, reach: int = 7) -> tuple[DecomposedPrompt, Tensor]:
    """Mapper with updates large enough to be seen, and these (N E) by the formula."""
    torch.manual_seed(4)
    mapper = DecomposedPrompt(Sizes(0, 0, decoder.width), length=3, reach=reach, rank=2, alpha=6.0)
    with torch.no_grad():
        mapper.embeds.normal_()
        mapper.right.normal_()
    return mapper, 6.0 / math.sqrt(2) * mapper.left.detach() @ mapper.right.detach()


def plain_log_probs(decoder: CausalDecoder, prefix: Tensor, updates: Tensor, ids: list[int]) -> Tensor:
    """Log-probabilities (N V) after each token of one text, by Transformers alone."""
    embeds = decoder.lm.get_input_embeddings()(torch.tensor([ids]))[0].clone()
    count = min(len(ids), len(updates))
    embeds[:count] += updates[:count]
    logits = decoder.lm(inputs_embeds=torch.cat([prefix, embeds])[None]).logits[0, len(prefix) :]
    return logits.log_softmax(-1)


PROMPTS = ["the", "a green hill; some rain"]
TARGETS = [["a dog barks", "the cat runs over a hill"], ["rings"]]


@torch.no_grad()
def test_training_scoring_and_search_read_the_same_updates(gpt2: CausalDecoder) -> None:
    mapper, updates = updated(gpt2)
    prefix = mapper(Features.empty(2))
    scores = gpt2.score(gpt2.prefill(prefix), PROMPTS, TARGETS)
    for b, texts in enumerate(TARGETS):
        before = gpt2.codec.subword_ids(PROMPTS[b])
        for target, score in zip(texts, scores[b], strict=True):
            ids = [*before, *gpt2.codec.target_ids(PROMPTS[b], target)]
            log_probs = plain_log_probs(gpt2, mapper.embeds, updates, ids)
            expected = sum(float(log_probs[n - 1, ids[n]]) for n in range(len(before), len(ids)))
            assert score == pytest.approx(expected, abs=1e-3)
    unmoved = gpt2.score(gpt2.prefill(replace(prefix, text_updates=None)), PROMPTS, TARGETS)
    assert all(
        abs(a - b) > 0.01 for own, other in zip(scores, unmoved, strict=True) for a, b in zip(own, other, strict=True)
    )
    questions = [["some?", "some?"], ["some?"]]
    asked = gpt2.score(gpt2.prefill(prefix), PROMPTS, TARGETS, questions)
    appended = gpt2.append(gpt2.prefill(prefix), PROMPTS, ["some?", "some?"])
    again = gpt2.token_loss(appended, [[gpt2.codec.target_ids("some?", t) for t in texts] for texts in TARGETS])
    assert [value for row in asked for value in row] == pytest.approx((-again.nll).tolist(), abs=1e-3)
    choices = gpt2.choice_log_probs(gpt2.append(gpt2.prefill(prefix), PROMPTS), ["a dog", "the cat"], "x")
    for b in range(2):
        own = gpt2.score(gpt2.prefill(mapper(Features.empty(1))), [PROMPTS[b]], [["a dog", "the cat"]])[0]
        assert choices[b].tolist() == pytest.approx(own, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_a_searched_text_has_the_score_of_that_text(gpt2: CausalDecoder, beams: int) -> None:
    mapper, updates = updated(gpt2)
    prefix = mapper(Features.empty(2))
    options = GenerateOptions(max_new_tokens=6, num_beams=beams, length_penalty=0.0)
    stops = gpt2.stop_ids()
    hypotheses_of = gpt2.search_tokens(gpt2.append(gpt2.prefill(prefix), PROMPTS), options, stops)
    for b, hypotheses in enumerate(hypotheses_of):
        before = gpt2.codec.subword_ids(PROMPTS[b])
        (tokens, score), *_ = hypotheses
        ids = [*before, *tokens]
        log_probs = plain_log_probs(gpt2, mapper.embeds, updates, ids)
        if beams == 1:
            assert tokens == [int(log_probs[n - 1].argmax()) for n in range(len(before), len(ids))]
        expected = sum(float(log_probs[n - 1, ids[n]]) for n in range(len(before), len(ids)))
        assert score == pytest.approx(expected, abs=1e-3)


def test_updates_come_after_all_prefixes_and_are_added_up(gpt2: CausalDecoder) -> None:
    one, two = updated(gpt2, 2)[0](Features.empty(2)), updated(gpt2, 5)[0](Features.empty(2))
    joined = concat_prefixes([one, two])
    assert isinstance(joined, Prefix)
    assert joined.embeds.shape[1] == 6
    first, second, both = one.text_updates, two.text_updates, joined.text_updates
    assert first is not None
    assert second is not None
    assert both is not None
    assert_close(both[:, :2], first + second[:, :2])
    assert_close(both[:, 2:], second[:, 2:])
    hidden = joined.mask_rows(torch.tensor([True, False]))
    assert hidden.text_updates is not None
    assert not hidden.text_updates[0].any()
    assert torch.equal(hidden.text_updates[1], both[1])
    pair = Parallel(Sizes(0, 0, gpt2.width), mappers=[lambda s: updated(gpt2)[0], lambda s: Learned(s, length=2)])
    assert pair(Features.empty(1)).text_updates is not None
    ragged = replace(one, mask=torch.tensor([[False, True, True], [True] * 3]))
    state = gpt2.prefill(ragged)
    alone = gpt2.prefill(Prefix(one.embeds[:1, 1:], ragged.mask[:1, 1:], first[:1]))
    scores = [gpt2.score(s, ["the"] * len(s.mask), [["a dog"]] * len(s.mask))[0] for s in (state, alone)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    rolled = gpt2.score(state.roll(1), ["the"] * 2, [["a dog"]] * 2)
    assert rolled[1] == pytest.approx(scores[0], abs=1e-3)


def test_a_gradient_reaches_the_updates_of_the_tokens_that_are_there(gpt2: CausalDecoder) -> None:
    mapper, _ = updated(gpt2, 40)
    gpt2.loss(gpt2.prefill(mapper(Features.empty(1))), ["the"], [["a dog"]]).backward()
    assert mapper.left.grad is not None
    read = mapper.left.grad.any(1).nonzero()[:, 0].tolist()
    ids = [*gpt2.codec.subword_ids("the"), *gpt2.codec.target_ids("the", "a dog")]
    assert read == [*range(len(ids) - 1)]  # the last token of a text is not read


def test_words_of_a_vocabulary_are_updated_too(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a\ndog\nbarks\n<unk>\n<eos>\n")
    folder = tiny_decoders.save_decoder(tmp_path / "gpt2")
    decoder = WordDecoder(str(folder), vocabulary=str(tmp_path / "words.txt"))
    mapper, _ = updated(cast(Any, decoder))
    prefix = mapper(Features.empty(1))
    moved_by = [float(decoder.loss(decoder.prefill(p), ["the"], [["a dog barks"]]).detach())
                for p in (prefix, replace(prefix, text_updates=None))]  # fmt: skip
    assert abs(moved_by[0] - moved_by[1]) > 1e-3
