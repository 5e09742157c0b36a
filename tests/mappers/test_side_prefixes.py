"""Terms beside the cache: each method against its formula in a forward pass by hand, in loss, search and scores."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.functional import elu
from torch.testing import assert_close
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.kv_cache.side_attention import attention_modules
from mmprefix.mappers.aligner import Aligner
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.llama_adapter import LlamaAdapter
from mmprefix.mappers.ntk import NTKAttention
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.unipelt import UniPELTPrefix
from mmprefix.model import PrefixLM
from mmprefix.types import Batch, Features, MixedPrefix, Prefix, SidePrefix, concat_prefixes
from tiny import decoders as tiny_decoders
from tiny.by_hand import Attention, causal_scores, heads, log_probs, plain
from tiny.speech_system import SpeechSystem

PROMPTS = ["the", "a green", "some rain"]
TARGETS = [["a dog barks", "the cat."], ["rain falls loudly over a hill"], ["a", "the old roof rings"]]
KINDS = ("gpt2", "llama")
METHODS: dict[str, Callable[[Sizes], Mapper]] = {
    "llama adapter": partial(LlamaAdapter, length=3, first=1),
    "aligner": partial(Aligner, length=2, first=0),
    "ntk": partial(NTKAttention, std=0.3),
    "unipelt": partial(UniPELTPrefix, length=3, std=1.0),
}


def texts() -> Batch:
    return Batch({}, PROMPTS, TARGETS, [""] * 3, ["0", "1", "2"])


def nothing(count: int = 1) -> Features:
    return Features.empty(count)


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CausalDecoder]:
    return {k: CausalDecoder(tiny_decoders.save_decoder(tmp_path_factory.mktemp(k), k)) for k in KINDS}


def model_of(decoder: Any, build: Callable[[Sizes], Mapper], seed: int = 0, scale: float = 0.7) -> PrefixLM:
    """Model of a task prefix only, all numbers of it moved from where they begin."""
    torch.manual_seed(seed)
    model = PrefixLM({}, decoder, build)
    with torch.no_grad():
        for parameter in cast(Mapper, model.task_prefix).parameters():
            parameter.add_(torch.randn(parameter.shape) * scale)
    return model


# --------------------------------------------------------------------------------------------- formulas, by hand


def project_by_hand(module: Any, vectors: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Vectors (P E) → keys and values (H' P K) by the weights of an attention module."""
    if hasattr(module, "c_attn"):
        _, k, v = (vectors @ module.c_attn.weight + module.c_attn.bias).chunk(3, -1)
    else:
        k, v = vectors @ module.k_proj.weight.T, vectors @ module.v_proj.weight.T
    count = 4 // group
    return heads(k, count).repeat_interleave(group, 0), heads(v, count).repeat_interleave(group, 0)


def attention_of(mapper: Any, group: int) -> Attention:
    """Attention of each layer with the mapper's term, by the formula of its paper."""

    def gated(layer: int, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, module: Any) -> Tensor:
        out = plain(layer, q, k, v, hidden, module)
        if layer < mapper.first:
            return out
        index = layer - mapper.first
        vectors = mapper.vectors if isinstance(mapper, Aligner) else mapper.vectors[index]
        gate = mapper.gate[index] if isinstance(mapper, Aligner) else mapper.gate[index].tanh()
        own_k, own_v = project_by_hand(module, vectors, group)
        return out + gate[:, None, None] * ((q @ own_k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ own_v)

    def ntk(layer: int, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, module: Any) -> Tensor:
        weights, phi = causal_scores(q, k).exp(), elu(q / q.shape[-1] ** 0.25) + 1
        below = weights.sum(-1, keepdim=True) + phi @ mapper.k[layer].abs()[:, :, None]
        return (weights @ v + phi @ mapper.z[layer]) / below

    def unipelt(layer: int, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, module: Any) -> Tensor:
        gate = (hidden @ mapper.weight[layer] + mapper.bias[layer]).sigmoid()
        own_k, own_v = (part[layer].repeat_interleave(group, 0) for part in mapper.key_values)
        out = torch.empty_like(q)
        for n in range(q.shape[1]):  # each position has keys and values of its own size
            keys = torch.cat([gate[n] * own_k, k[:, : n + 1]], 1)
            values = torch.cat([gate[n] * own_v, v[:, : n + 1]], 1)
            scores = (keys @ q[:, n, :, None]).squeeze(-1) / q.shape[-1] ** 0.5
            out[:, n] = (scores.softmax(-1)[:, None] @ values)[:, 0]
        return out

    return {NTKAttention: ntk, UniPELTPrefix: unipelt}.get(type(mapper), gated)


def nll_by_hand(decoder: CausalDecoder, prompt: list[int], ids: list[int], attention: Attention) -> float:
    """Negative log-likelihood of ``ids`` after ``prompt``."""
    scores = log_probs(decoder.lm, prompt + ids[:-1], attention)[len(prompt) - 1 :]
    return -float(scores.detach()[torch.arange(len(ids)), ids].sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_search_equal_the_formula(method: str, kind: str, decoders: dict[str, CausalDecoder]) -> None:
    decoder = decoders[kind]
    model = model_of(decoder, METHODS[method])
    attention = attention_of(model.task_prefix, 2 if kind == "llama" else 1)
    with torch.no_grad():
        nll = iter(model.text_loss(texts()).nll.tolist())
        state = decoder.append(model.prefill(texts()), PROMPTS)
        written = decoder.search_tokens(state, GenerateOptions(max_new_tokens=5, num_beams=3), torch.tensor([0]))
        for prompt, targets, (best, *_) in zip(PROMPTS, TARGETS, written, strict=True):
            before = decoder.codec.prompt_ids(prompt, True)
            for target in targets:
                expected = nll_by_hand(decoder, before, decoder.codec.target_ids(prompt, target), attention)
                assert next(nll) == pytest.approx(expected, abs=2e-3)
            ids, mean = best[0], best[1]
            assert mean * len(ids) == pytest.approx(-nll_by_hand(decoder, before, ids, attention), abs=2e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_text_written_piece_by_piece_or_scored_is_the_same(
    method: str, kind: str, decoders: dict[str, CausalDecoder]
) -> None:
    decoder = decoders[kind]
    model, one = model_of(decoder, METHODS[method]), texts()
    state = model.prefill(one)
    options = GenerateOptions(max_new_tokens=6)
    written = [candidates[0].text for candidates in decoder.generate(state, PROMPTS, options)]
    turned = decoder.generate(state.roll(1), [PROMPTS[2], *PROMPTS[:2]], options)
    assert [candidates[0].text for candidates in turned] == [written[2], *written[:2]]
    row = decoder.append(state.select(torch.tensor([1])), PROMPTS[1:2])
    assert "".join(decoder.stream_from(row, options)).strip() == written[1].strip()
    choices = ["a dog", "a cat", "rain"]
    scores = decoder.choice_log_probs(decoder.append(state, PROMPTS), choices, "")
    for prompt, own in zip(PROMPTS, scores, strict=True):
        before = decoder.codec.prompt_ids(prompt, True)
        attention = attention_of(model.task_prefix, 2 if kind == "llama" else 1)
        expected = [-nll_by_hand(decoder, before, decoder.codec.choice_ids("", c), attention) for c in choices]
        assert torch.allclose(own, torch.tensor(expected), atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [LlamaAdapter, Aligner, partial(NTKAttention, std=0.0)])
def test_where_a_gate_or_kernel_is_zero_nothing_changes(
    build: Any, kind: str, decoders: dict[str, CausalDecoder]
) -> None:
    decoder, options = decoders[kind], {} if isinstance(build, partial) else {"first": 0}
    model = PrefixLM({}, decoder, partial(build, **options))
    empty = decoder.prefill(Prefix.empty(3, decoder.width))
    loss = decoder.text_loss(empty, PROMPTS, TARGETS).nll
    assert_close(model.text_loss(texts()).nll, loss, rtol=1e-6, atol=1e-6)  # fused layers, taken without terms, round


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_every_number_and_a_loss_falls(method: str, decoders: dict[str, CausalDecoder]) -> None:
    model = model_of(decoders["llama"], METHODS[method], scale=0.1)
    parameters = list(cast(Mapper, model.task_prefix).parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    losses: list[float] = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model.text_loss(texts()).mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_recomputed_layers_meet_the_terms_again(tmp_path: Path) -> None:
    decoder = CausalDecoder(tiny_decoders.save_decoder(tmp_path, "llama"))
    model = model_of(decoder, METHODS["llama adapter"])
    parameters = list(cast(Mapper, model.task_prefix).parameters())
    before = torch.autograd.grad(model.text_loss(texts()).nll.sum(), parameters)
    decoder.recompute_layers()
    again = torch.autograd.grad(model.text_loss(texts()).nll.sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))


# ------------------------------------------------------------------------------------------------- joins and rows


def test_terms_join_what_stands_in_the_cache(decoders: dict[str, CausalDecoder]) -> None:
    sizes = Sizes(0, 0, 32, 2, 2, 8, query_heads=4)
    torch.manual_seed(1)
    one, deep, soft = (build(sizes)(nothing()) for build in (Aligner0, DeepTable, Learned))
    joined = concat_prefixes([one, deep, soft, one])
    assert isinstance(joined, SidePrefix)
    assert isinstance(joined.inner, MixedPrefix)
    assert len(joined.terms) == 2
    alone = concat_prefixes([one, deep])
    assert isinstance(alone, SidePrefix)
    assert alone.inner is deep
    moved = joined.to("meta")
    assert {term.gate.device.type for term in cast(Any, moved.terms)} == {"meta"}


Aligner0 = partial(Aligner, first=0)


def test_a_term_counts_in_the_rows_that_are_not_absent(decoders: dict[str, CausalDecoder]) -> None:
    decoder = decoders["llama"]
    for method in METHODS.values():
        model = model_of(decoder, method)
        prefix = model.build_prefix({}, count=3).mask_rows(torch.tensor([False, True, False]))
        with torch.no_grad():
            own = decoder.text_loss(decoder.prefill(prefix), PROMPTS, TARGETS).by_input(3).nll
            full = model.text_loss(texts()).by_input(3).nll
            none = decoder.text_loss(decoder.prefill(Prefix.empty(3, 32)), PROMPTS, TARGETS).by_input(3).nll
        assert torch.allclose(own, torch.stack([full[0], none[1], full[2]]), atol=1e-3)
        assert (full - none).abs().min() > 1e-2


def test_a_prompt_made_from_an_input_is_added_to_every_vector() -> None:
    sizes = Sizes(5, 0, 32, 2, 2, 8, query_heads=4)
    torch.manual_seed(3)
    mapper = LlamaAdapter(sizes, length=3, first=1, mapper=partial(Linear, stack=1))
    frames = torch.randn(2, 4, 5)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    term = cast(Any, mapper(Features(frames, mask, torch.zeros(2, 0))).terms[0])
    inner = cast(Any, mapper.mapper)(Features(frames, mask, torch.zeros(2, 0)))
    means = torch.stack([inner.embeds[b][inner.mask[b]].mean(0) for b in range(2)])
    assert torch.allclose(term.vectors, mapper.vectors[None] + means[:, None, None], atol=1e-6)
    assert mapper.reads_input
    assert not LlamaAdapter(sizes, first=0).reads_input


def test_threads_do_not_see_each_others_terms(decoders: dict[str, CausalDecoder]) -> None:
    decoder = decoders["gpt2"]
    models = [model_of(decoder, METHODS["ntk"], seed) for seed in range(2)]
    states = [model.prefill(texts()) for model in models] + [decoder.prefill(Prefix.empty(3, 32))]
    with torch.no_grad():

        def losses(state: Any) -> Tensor:
            with torch.no_grad():
                return torch.stack([decoder.text_loss(state, PROMPTS, TARGETS).nll for _ in range(8)])

        alone = [losses(state)[0] for state in states]
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(losses, states))
    for own, rows in zip(alone, together, strict=True):
        assert torch.allclose(rows, own.expand_as(rows), atol=1e-4)


# ------------------------------------------------------------------------------------------------ counts and refusals


def test_trained_numbers_are_those_of_the_papers() -> None:
    """Sizes of LLaMA-7B: 32 layers of 32 heads of 128."""
    sizes = Sizes(0, 0, 4096, 32, 32, 128, query_heads=32)
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in build(sizes).parameters())
            for name, build in {"aligner": Aligner, "adapter": LlamaAdapter, "ntk": NTKAttention}.items()
        }
    assert counts["aligner"] == 5056
    assert counts["adapter"] == 30 * 10 * 4096 + 30 * 32  # the 1.2 million of the paper
    assert counts["ntk"] == 32 * 32 * (128**2 + 128)


def test_a_decoder_with_an_attention_of_its_own_is_refused_by_name(tmp_path: Path) -> None:
    tokens = tiny_decoders.make_tokenizer()
    config = GPTNeoConfig(
        vocab_size=len(tokens), hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=128,
        attention_types=[[["global", "local"], 1]], bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPTNeoForCausalLM(config).save_pretrained(tmp_path)
    tokens.save_pretrained(tmp_path)
    decoder = CausalDecoder(str(tmp_path))
    with pytest.raises(InputError, match="0 of its 2 layers pass the attention interface"):
        PrefixLM({}, decoder, NTKAttention).text_loss(texts())


@pytest.mark.parametrize("build", [partial(LlamaAdapter, first=2), partial(Aligner, first=-1)])
def test_a_layer_that_is_not_there_is_refused(build: Any) -> None:
    with pytest.raises(InputError, match=r"first -?\d: the decoder has 2 layers"):
        build(Sizes(0, 0, 32, 2, 4, 8))


def test_whisper_meets_the_terms_in_self_attention_alone(spoken: SpeechSystem) -> None:
    decoder = CrossDecoder(spoken.path("whisper"))
    torch.manual_seed(4)
    frames = Features(torch.randn(2, 7, 32), torch.ones(2, 7, dtype=torch.bool), torch.zeros(2, 0))
    sizes = Sizes(0, 0, decoder.width, decoder.layers, decoder.heads, decoder.head_width)
    mapper = Aligner(sizes, length=2, first=0)

    def loss(prefix: Any) -> Tensor:
        return decoder.text_loss(decoder.prefill(prefix, frames), ["", ""], [["a dog"], ["the cat"]]).nll

    plain_loss = loss(Prefix.empty(2, decoder.width))
    assert_close(loss(mapper(nothing(2))), plain_loss, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        mapper.gate.fill_(0.5)
    changed = loss(mapper(nothing(2)))
    assert (changed - plain_loss).abs().min() > 1e-3
    modules = [
        m for m in attention_modules(decoder.language_model.stack) if m not in decoder.language_model.without_terms
    ]
    assert len(modules) == decoder.layers
    assert bool(torch.autograd.grad(changed.sum(), [mapper.gate])[0].abs().min() > 0)
