"""CausalDecoder against Hugging Face's own model: losses, scores, greedy and beam search, padding, freezing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError
from mmprefix.generation import search as search_module
from mmprefix.generation.options import GenerateOptions
from mmprefix.kv_cache.state import State
from mmprefix.types import DeepPrefix, Prefix
from tiny.decoders import KINDS, ragged_prefix, save_decoder
from tiny.disk import memory
from tiny.encoders import save_vision

PROMPTS = ["", "the", "a green"]
TARGETS = [["a dog barks", "the cat."], ["rain falls loudly over a hill"], ["a", "some rain", "the old roof rings"]]


@pytest.fixture(scope="module", params=KINDS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ComposedDecoder:
    return CausalDecoder(save_decoder(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> ComposedDecoder:
    return CausalDecoder(save_decoder(tmp_path_factory.mktemp("gpt2")))


def reference_loss(
    decoder: ComposedDecoder, prefix: Tensor, prompt: str, target: str, smoothing: float = 0.0
) -> Tensor:
    """Loss of each target token, by one plain pass of the Hugging Face model over prefix, prompt, target."""
    tokenizer, lm = decoder.tokenizer, decoder.lm
    before = tokenizer(prompt)["input_ids"] if prompt else []
    after = [*tokenizer((" " if prompt else "") + target)["input_ids"], decoder.codec.eos]
    ids = torch.tensor([[*before, *after]])
    embeds = torch.cat([prefix[None], lm.get_input_embeddings()(ids)], dim=1)
    first = len(prefix) + len(before) - 1
    logits = lm(inputs_embeds=embeds).logits[0, first : first + len(after)]
    return cross_entropy(logits, torch.tensor(after), reduction="none", label_smoothing=smoothing)


def test_score_equals_a_plain_pass(decoder: ComposedDecoder) -> None:
    prefix = ragged_prefix(decoder, [5, 3, 4])
    scores = decoder.score(decoder.prefill(prefix), PROMPTS, TARGETS)
    for b, texts in enumerate(TARGETS):
        for text, score in zip(texts, scores[b], strict=True):
            expected = reference_loss(decoder, prefix.embeds[b][prefix.mask[b]], PROMPTS[b], text).sum()
            assert score == pytest.approx(-float(expected), abs=1e-3, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradient_equal_a_plain_pass(decoder: ComposedDecoder, smoothing: float) -> None:
    prefix = ragged_prefix(decoder, [5, 3, 4])
    shared = prefix.embeds.clone().requires_grad_()
    state = decoder.prefill(Prefix(shared, prefix.mask))
    loss = decoder.text_loss(state, PROMPTS, TARGETS, smoothing=smoothing).mean()
    loss.backward()
    plain = prefix.embeds.clone().requires_grad_()
    losses = [
        reference_loss(decoder, plain[b][prefix.mask[b]], PROMPTS[b], text, smoothing)
        for b in range(3)
        for text in TARGETS[b]
    ]
    expected = torch.cat(losses).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert shared.grad is not None
    assert plain.grad is not None
    assert (shared.grad - plain.grad).abs().max() <= 1e-4 * plain.grad.abs().max()
    assert all(p.grad is None and not p.requires_grad for p in decoder.parameters())


@pytest.mark.parametrize("beams", [1, 3, 5])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_search_equals_hugging_face(decoder: ComposedDecoder, beams: int, penalty: float) -> None:
    ends = 0
    for seed in range(4):
        prefix = ragged_prefix(decoder, [4, 4, 4], seed)
        options = GenerateOptions(max_new_tokens=12, num_beams=beams, num_return=beams, length_penalty=penalty)
        # any token may end a text: take one that this model generates
        plain = decoder.search_tokens(decoder.prefill(prefix), GenerateOptions(max_new_tokens=8), torch.tensor([0]))
        stop = plain[seed % 3][0][0][5]
        groups = decoder.search_tokens(decoder.prefill(prefix), options, torch.tensor([stop]))
        output = decoder.lm.generate(
            inputs_embeds=prefix.embeds,
            attention_mask=prefix.mask.long(),
            max_new_tokens=12,
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=penalty,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=1,
            return_dict_in_generate=True,
            output_scores=True,
        )
        hypotheses = [hypothesis for group in groups for hypothesis in group]
        assert len(hypotheses) == 3 * beams
        for i, (ids, score) in enumerate(hypotheses):
            assert output.sequences[i, : len(ids)].tolist() == ids
            ends += ids[-1] == stop and len(ids) < 12
            if beams > 1:
                assert score == pytest.approx(float(output.sequences_scores[i]), abs=1e-3)
        if ends and seed:
            break
    assert ends or penalty  # some ended early, at least where long ones are not preferred


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize(("least", "size"), [(6, 0), (0, 1), (0, 2), (9, 3)])
def test_logits_processors_equal_hugging_face(decoder: ComposedDecoder, beams: int, least: int, size: int) -> None:
    changed = 0
    for seed in range(6):
        prefix = ragged_prefix(decoder, [4, 4], seed)
        plain = GenerateOptions(max_new_tokens=12, num_beams=beams)
        options = replace(plain, min_new_tokens=least, no_repeat_ngram_size=size)
        free = decoder.search_tokens(decoder.prefill(prefix), plain, torch.tensor([1]))
        stop = free[0][0][0][:3][-1] if least else 0  # a token that would end hypotheses too early
        groups, without = (
            decoder.search_tokens(decoder.prefill(prefix), search, torch.tensor([stop])) for search in (options, plain)
        )
        output = decoder.lm.generate(
            inputs_embeds=prefix.embeds,
            attention_mask=prefix.mask.long(),
            max_new_tokens=12,
            min_new_tokens=least,
            no_repeat_ngram_size=size,
            num_beams=beams,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=1,
        )
        for i, hypotheses in enumerate(groups):
            ids = hypotheses[0][0]
            assert output[i, : len(ids)].tolist() == ids
            assert len(ids) >= least
            changed += ids != without[i][0][0]
        if changed and seed:
            break
    assert changed


def test_finished_inputs_are_dropped_from_the_batch(decoder: ComposedDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypotheses stay the same, and fewer rows are run."""
    saved = 0
    for options in SEARCHES:
        prefix = ragged_prefix(decoder, [4, 2, 5, 3, 4, 1], seed=1)
        free = decoder.search_tokens(decoder.prefill(prefix), replace(options, num_return=1), torch.tensor([1]))
        stops = torch.tensor([free[row][0][0][:end][-1] for row, end in ((0, 1), (2, 2), (4, 4))])
        results, rows = [], []
        for threshold in (0.0, 1.0):
            sizes: list[int] = []
            run = decoder.forward_tokens

            def counted(
                state: State, cache: Any, embeds: Tensor, run: Any = run, into: Any = sizes, **options: Any
            ) -> Tensor:
                into.append(len(embeds))
                return run(state, cache, embeds, **options)

            monkeypatch.setattr(search_module, "COMPACT_BELOW", threshold)
            monkeypatch.setattr(decoder, "forward_tokens", counted)
            results.append(decoder.search_tokens(decoder.prefill(prefix), options, stops))
            monkeypatch.setattr(decoder, "forward_tokens", run)
            rows.append(sum(sizes))
        for kept, dropped in zip(*results, strict=True):
            assert [ids for ids, _ in kept] == [ids for ids, _ in dropped]
            assert [score for _, score in kept] == pytest.approx([score for _, score in dropped], abs=1e-4)
        saved += rows[0] - rows[1]
    assert saved


SEARCHES = [
    GenerateOptions(max_new_tokens=10),
    GenerateOptions(max_new_tokens=10, num_beams=4, num_return=2, no_repeat_ngram_size=2),
    GenerateOptions(max_new_tokens=10, num_beams=3, ranking="clipcap"),
    GenerateOptions(max_new_tokens=10, sample=True, temperature=0.8, top_p=0.9, num_return=3, seed=5),
]


@pytest.mark.parametrize("options", [
    GenerateOptions(max_new_tokens=10),
    GenerateOptions(max_new_tokens=10, num_beams=4, num_return=2),
    GenerateOptions(max_new_tokens=10, num_beams=3, ranking="clipcap"),
    GenerateOptions(max_new_tokens=10, sample=True, temperature=0.8, top_p=0.9, num_return=3, seed=5),
    GenerateOptions(max_new_tokens=10, num_beams=4, num_return=2, min_new_tokens=6, no_repeat_ngram_size=2),
], ids=["greedy", "beam", "clipcap", "sample", "processors"])  # fmt: skip
def test_a_batch_equals_its_items(decoder: ComposedDecoder, options: GenerateOptions) -> None:
    prefix = ragged_prefix(decoder, [6, 2, 4])
    together = decoder.generate(decoder.prefill(prefix), PROMPTS, options)
    for b in range(3):
        alone = Prefix(prefix.embeds[b : b + 1][:, prefix.mask[b]], prefix.mask[b : b + 1][:, prefix.mask[b]])
        single = decoder.generate(decoder.prefill(alone), PROMPTS[b : b + 1], options)[0]
        assert [c.text for c in single] == [c.text for c in together[b]]
        assert [c.score for c in single] == pytest.approx([c.score for c in together[b]], abs=1e-4)


def test_logits_do_not_depend_on_padding(decoder: ComposedDecoder) -> None:
    prefix = ragged_prefix(decoder, [6, 2, 4])
    state = decoder.append(decoder.prefill(prefix), PROMPTS)
    assert state.last_hidden is not None
    for b in range(3):
        alone = Prefix(prefix.embeds[b : b + 1, : int(prefix.mask[b].sum())], prefix.mask[b : b + 1][:, prefix.mask[b]])
        single = decoder.append(decoder.prefill(alone), PROMPTS[b : b + 1])
        assert single.last_hidden is not None
        assert (decoder.logits(single.last_hidden)[0] - decoder.logits(state.last_hidden)[b]).abs().max() < 1e-4


def test_a_state_can_be_used_again(gpt2: ComposedDecoder) -> None:
    state = gpt2.prefill(ragged_prefix(gpt2, [5, 3, 4]))
    options = GenerateOptions(max_new_tokens=6, num_beams=2)
    before = gpt2.score(state, PROMPTS, TARGETS)
    first = gpt2.generate(state, PROMPTS, options)
    assert gpt2.generate(state, PROMPTS, options) == first
    assert gpt2.score(state, PROMPTS, TARGETS) == before


def test_a_deep_prefix_is_the_same_cache(decoder: ComposedDecoder) -> None:
    """Keys and values computed from embeddings, taken as a deep prefix, give the same scores."""
    prefix = ragged_prefix(decoder, [5, 3, 4])
    soft = decoder.prefill(prefix)
    keys, values = (torch.stack([layer[i] for layer in soft.cache]) for i in (0, 1))
    assert keys.shape == (decoder.layers, 3, decoder.heads, 5, decoder.head_width)
    deep = decoder.prefill(DeepPrefix(keys, values, prefix.mask))
    prompts = ["the", "a", "some"]
    for one, other in zip(*(decoder.score(state, prompts, TARGETS) for state in (deep, soft)), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    empty = decoder.generate(
        deep, ["", "", ""], GenerateOptions(max_new_tokens=3)
    )  # each begins with the begin-of-text token
    assert len(empty) == 3


def test_sampling_follows_the_distribution(gpt2: ComposedDecoder) -> None:
    """First tokens of many samples have the model's own distribution."""
    prefix = ragged_prefix(gpt2, [4])
    state = gpt2.prefill(prefix)
    assert state.last_hidden is not None
    probs = gpt2.logits(state.last_hidden)[0].softmax(-1)
    draws = [GenerateOptions(max_new_tokens=1, sample=True, num_return=1000, seed=seed) for seed in range(4)]
    hypotheses = [hypothesis for own in draws for hypothesis in gpt2.search_tokens(state, own, torch.tensor([0]))[0]]
    counts = torch.bincount(torch.tensor([ids[0] for ids, _ in hypotheses]), minlength=len(probs))
    expected = probs * len(hypotheses)
    chi_square, freedom = float(((counts - expected) ** 2 / expected).sum()), len(probs) - 1
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5
    top = GenerateOptions(max_new_tokens=1, sample=True, num_return=500, seed=1, top_p=0.3)
    drawn = {ids[0] for ids, _ in gpt2.search_tokens(state, top, torch.tensor([0]))[0]}
    ranked, order = probs.sort(descending=True)
    allowed = int((ranked.cumsum(0) - ranked < 0.3).sum())
    assert drawn <= set(order[:allowed].tolist())


def test_stop_text(tmp_path: Path) -> None:
    decoder = CausalDecoder(save_decoder(tmp_path, seed=3), stop=".")
    names = decoder.tokenizer.batch_decode([[int(i)] for i in decoder.stop_ids()])
    assert all("." in name or name == "<|endoftext|>" for name in names)
    assert decoder.codec.target_ids("", "a dog.")[-1] != decoder.codec.eos  # the stop text of the caption ends it
    prefix = ragged_prefix(decoder, [4, 4])
    for candidates in decoder.generate(decoder.prefill(prefix), ["", ""], GenerateOptions(max_new_tokens=40)):
        assert "." not in candidates[0].text[:-1]
    with pytest.raises(InputError, match="stop='never there'"):
        CausalDecoder(str(tmp_path), stop="never there").stop_ids()


def test_a_frozen_decoder_stays_frozen(gpt2: ComposedDecoder) -> None:
    gpt2.train()
    assert not any(module.training for module in gpt2.modules())
    assert not any(p.requires_grad for p in gpt2.parameters())


def test_tuned_decoder_trains(gpt2: ComposedDecoder, tmp_path: Path) -> None:
    tuned = CausalDecoder(gpt2.identity.source, frozen=False)
    tuned.train()
    tuned.loss(tuned.prefill(ragged_prefix(tuned, [3])), [""], [["a dog"]]).backward()
    assert all(p.grad is not None for p in tuned.parameters())


def test_lower_precision_computes_the_same_text_shape(gpt2: ComposedDecoder) -> None:
    half = CausalDecoder(gpt2.identity.source, dtype="bfloat16")
    prefix = ragged_prefix(gpt2, [5, 3, 4])
    full, low = (d.score(d.prefill(prefix), PROMPTS, TARGETS) for d in (gpt2, half))
    for a, b in zip(full, low, strict=True):
        assert b == pytest.approx(a, rel=0.1)


def test_autocast_leaves_half_precision_alone(gpt2: ComposedDecoder) -> None:
    half = CausalDecoder(gpt2.identity.source, dtype="bfloat16")
    prefix = ragged_prefix(gpt2, [5, 3, 4])
    alone = half.loss(half.prefill(prefix), PROMPTS, TARGETS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half.loss(half.prefill(prefix), PROMPTS, TARGETS), alone)


def test_a_text_is_tokenized_once(gpt2: ComposedDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = gpt2.score(gpt2.prefill(ragged_prefix(gpt2, [5, 3, 4])), PROMPTS, TARGETS)
    monkeypatch.setattr(type(gpt2.tokenizer), "__call__", lambda *_, **__: pytest.fail("a text is tokenized again"))
    assert gpt2.score(gpt2.prefill(ragged_prefix(gpt2, [5, 3, 4])), PROMPTS, TARGETS) == scores


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit of memory reads /proc")
def test_a_text_of_any_length_is_refused_in_little_memory(gpt2: ComposedDecoder) -> None:
    """A history of a book's length, say: nothing of tokens times tokens is made before it is refused."""
    state = gpt2.prefill(ragged_prefix(gpt2, [5]))
    with memory(2 << 30), pytest.raises(InputError, match="has 128 positions, but 200000 more are needed after the 5"):
        gpt2.append_ids(state, [[1] * 200_000])


def test_too_many_positions_and_broken_models_are_refused(gpt2: ComposedDecoder, tmp_path: Path) -> None:
    state = gpt2.prefill(ragged_prefix(gpt2, [100]))
    with pytest.raises(InputError, match=r"has 128 positions, but 40 more.*after the 100"):
        gpt2.generate(state, [""], GenerateOptions(max_new_tokens=40))
    gpt2.score(gpt2.prefill(ragged_prefix(gpt2, [100, 90])), ["", ""], [["a dog"], ["a dog"]])
    padded = Prefix(torch.randn(1, 150, gpt2.width), torch.arange(150)[None] < 100)
    gpt2.generate(gpt2.prefill(padded), [""], GenerateOptions(max_new_tokens=20))  # padding takes no position
    with pytest.raises(InputError, match="no such folder"):
        CausalDecoder(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.safetensors is empty; download it again"):
        CausalDecoder(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"config\.json names no model_type"):
        CausalDecoder(str(tmp_path))
    shutil.copy(save_decoder(tmp_path / "empty") + "/config.json", tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        CausalDecoder(str(tmp_path))
    with pytest.raises(InputError, match=r"'vit' model .* is no causal language model.*mmprefix\.encoders\.vit\.ViT"):
        CausalDecoder(str(save_vision(tmp_path / "vit", "vit")))
    whole = Path(save_decoder(tmp_path / "whole"))
    tensors = load_file(whole / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 tensors.*h.1.mlp.c_fc"):
        CausalDecoder(str(whole))
    save_decoder(tmp_path / "mute")
    for file in (tmp_path / "mute").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="no tokenizer"):
        CausalDecoder(str(tmp_path / "mute"))
