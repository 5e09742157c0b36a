"""CrossDecoder against Transformers on the same models; batches against single inputs; deep prefixes; questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.kv_cache.cache import cache_over
from mmprefix.types import DeepPrefix, Features, MixedPrefix, Prefix
from tiny import whisper as tiny_whisper

QUESTIONS = ["which dog?", "who runs over the hill", ""]
TARGETS = [["a bell", "rain falls"], ["some rain"], ["the old roof", "a dog", "a"]]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> CrossDecoder:
    return CrossDecoder(tiny_whisper.save_whisper(tmp_path_factory.mktemp("whisper")))


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> CrossDecoder:
    return CrossDecoder(tiny_whisper.save_bart(tmp_path_factory.mktemp("bart")))


def memory(counts: list[int], seed: int = 0) -> Features:
    random = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    frames = torch.randn(len(counts), max(counts), 32, generator=random)
    return Features(frames, mask, frames[:, 0])


def deep(decoder: CrossDecoder, lengths: list[int], seed: int = 1) -> DeepPrefix:
    random = torch.Generator().manual_seed(seed)
    shape = (decoder.layers, len(lengths), decoder.heads, max(lengths), decoder.head_width)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return DeepPrefix(torch.randn(shape, generator=random), torch.randn(shape, generator=random), mask)


def soft(decoder: CrossDecoder, lengths: list[int], seed: int = 2) -> Prefix:
    random = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Prefix(torch.randn(len(lengths), max(lengths), decoder.width, generator=random), mask)


def row(prefix: Any, b: int) -> Any:
    """Input ``b`` of a prefix alone, without padding."""
    if isinstance(prefix, MixedPrefix):
        return MixedPrefix(row(prefix.deep, b), row(prefix.soft, b))
    real = prefix.mask[b]
    if isinstance(prefix, DeepPrefix):
        return DeepPrefix(prefix.keys[:, b : b + 1, :, real], prefix.values[:, b : b + 1, :, real], real[real][None])
    return Prefix(prefix.embeds[b : b + 1, real], real[real][None])


def alone(features: Features, b: int) -> Features:
    real = features.mask[b]
    return Features(features.frames[b : b + 1, real], real[real][None], features.pooled[b : b + 1])


def no_prefix(decoder: CrossDecoder, count: int) -> Prefix:
    return Prefix(torch.zeros(count, 0, decoder.width), torch.zeros(count, 0, dtype=torch.bool))


def reference_log_probs(decoder: CrossDecoder, ids: list[int], frames: Tensor, prefix: DeepPrefix | None) -> Tensor:
    """Log-probabilities (N V) of Transformers' own model after each of ``ids``."""
    model = cast(Any, decoder.lm)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    if prefix is not None:
        cache = EncoderDecoderCache(DynamicCache(list(zip(prefix.keys, prefix.values, strict=True))), DynamicCache())
    out = model(encoder_outputs=(frames,), decoder_input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
    return out.logits[0].log_softmax(-1)


def special(decoder: CrossDecoder, *words: str) -> list[int]:
    return cast(list[int], decoder.tokenizer.convert_tokens_to_ids(list(words)))


@pytest.mark.parametrize("prefixed", [False, True])
def test_whisper_scores_equal_transformers(whisper: CrossDecoder, prefixed: bool) -> None:
    frames = memory([70, 70, 70])
    prefix = deep(whisper, [4, 4, 4]) if prefixed else no_prefix(whisper, 3)
    scores = whisper.score(
        whisper.prefill(prefix, frames),
        ["", "", ""],
        TARGETS,
        [[q] * len(t) for q, t in zip(QUESTIONS, TARGETS, strict=True)],
    )
    text = lambda words: cast(list[int], whisper.tokenizer(f" {words}")["input_ids"]) if words else []  # noqa: E731
    task = special(whisper, "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
    for b, (question, targets) in enumerate(zip(QUESTIONS, TARGETS, strict=True)):
        before = [*(special(whisper, "<|startofprev|>") if question else []), *text(question), *task]
        for target, value in zip(targets, scores[b], strict=True):
            ids = [*before, *text(target), 0]
            own = row(prefix, b) if prefixed else None
            log_probs = reference_log_probs(whisper, ids[:-1], alone(frames, b).frames, own)
            positions = torch.arange(len(before) - 1, len(ids) - 1)
            assert value == pytest.approx(float(log_probs[positions, torch.tensor(ids)[positions + 1]].sum()), abs=1e-3)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("prefixed", [False, True])
def test_whisper_texts_equal_transformers(whisper: CrossDecoder, beams: int, prefixed: bool) -> None:
    model = cast(Any, whisper.lm)
    start = special(whisper, "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
    ids = [*special(whisper, "<|startofprev|>"), *whisper.codec.subword_ids(" which dog?"), *start]
    for seed in range(4):
        prefix = deep(whisper, [3], seed) if prefixed else no_prefix(whisper, 1)
        cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        if isinstance(prefix, DeepPrefix):
            layers = zip(prefix.keys, prefix.values, strict=True)
            cache = EncoderDecoderCache(
                DynamicCache([(k.repeat(beams, 1, 1, 1), v.repeat(beams, 1, 1, 1)) for k, v in layers]), DynamicCache()
            )
        width = len(ids) + (3 if prefixed else 0)
        output = cast(Any, GenerationMixin).generate(
            model,
            encoder_outputs=BaseModelOutput(last_hidden_state=memory([60], seed).frames),
            decoder_input_ids=torch.tensor([ids]),
            decoder_attention_mask=torch.ones(1, width, dtype=torch.long),
            past_key_values=cache,
            max_new_tokens=10,
            num_beams=beams,
            do_sample=False,
            length_penalty=1.0,
        )
        expected = cast(str, whisper.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)).strip()
        state = whisper.prefill(prefix, memory([60], seed))
        options = GenerateOptions(max_new_tokens=10, num_beams=beams)
        assert whisper.generate(state, [""], options, ["which dog?"])[0][0].text == expected


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["none", "soft", "deep", "mixed"])
@pytest.mark.parametrize("prompt", ["", "the cat"])
def test_a_batch_of_ragged_speech_equals_its_items(whisper: CrossDecoder, beams: int, kind: str, prompt: str) -> None:
    frames = memory([70, 31, 52])
    prefix: Any = {
        "none": no_prefix(whisper, 3),
        "soft": soft(whisper, [2, 4, 3]),
        "deep": deep(whisper, [4, 2, 3]),
        "mixed": MixedPrefix(deep(whisper, [4, 2, 3]), soft(whisper, [1, 3, 2])),
    }[kind]
    options = GenerateOptions(max_new_tokens=8, num_beams=beams, num_return=beams)
    prompts = [prompt, "", prompt]
    state = whisper.prefill(prefix, frames)
    groups = whisper.generate(state, prompts, options, QUESTIONS)
    scores = whisper.score(state, prompts, TARGETS, [[q] * len(t) for q, t in zip(QUESTIONS, TARGETS, strict=True)])
    log_probs = whisper.score_choices(
        whisper.append_prompts(state, prompts), prompts, ["a dog", "a bell", "rain falls"], QUESTIONS
    )
    for b in range(3):
        own = row(prefix, b) if kind != "none" else no_prefix(whisper, 1)
        single = whisper.prefill(own, alone(frames, b))
        candidates = whisper.generate(single, prompts[b : b + 1], options, QUESTIONS[b : b + 1])[0]
        assert [c.text for c in candidates] == [c.text for c in groups[b]]
        assert [c.score for c in candidates] == pytest.approx([c.score for c in groups[b]], abs=1e-4)
        own_scores = whisper.score(single, prompts[b : b + 1], TARGETS[b : b + 1], [[QUESTIONS[b]] * len(TARGETS[b])])
        assert own_scores[0] == pytest.approx(scores[b], abs=1e-3)
        own_log_probs = whisper.score_choices(
            whisper.append_prompts(single, prompts[b : b + 1]), prompts[b : b + 1], ["a dog", "a bell", "rain falls"],
            QUESTIONS[b : b + 1],
        )  # fmt: skip
        assert torch.allclose(own_log_probs[0], log_probs[b], atol=1e-3)


def test_a_trie_of_choices_equals_the_score_of_each_text(whisper: CrossDecoder) -> None:
    frames, prefix = memory([40, 70]), deep(whisper, [3, 3])
    choices = ["a dog", "a dog barks", "rain", "a bell", "rain falls on the roof"]
    state = whisper.prefill(prefix, frames)
    totals = whisper.choice_log_probs(whisper.append(state, ["", ""], ["which?", "which?"]), choices, "?")
    scores = whisper.score(state, ["", ""], [choices, choices], [["which?"] * 5] * 2)
    assert torch.allclose(totals, torch.tensor(scores), atol=1e-3)
    log_probs = whisper.score_choices(whisper.append_prompts(state, ["", ""]), ["", ""], choices, ["which?", "which?"])
    assert torch.allclose(log_probs.exp().sum(1), torch.ones(2), atol=1e-5)
    with pytest.raises(InputError, match="choices: two have the same tokens"):
        whisper.score_choices(whisper.append_prompts(state, ["", ""]), ["", ""], ["a dog", "a dog"])


def test_gradients_reach_keys_and_values_only(whisper: CrossDecoder) -> None:
    prefix = deep(whisper, [3, 3])
    keys, values = prefix.keys.requires_grad_(), prefix.values.requires_grad_()
    state = whisper.prefill(DeepPrefix(keys, values, prefix.mask), memory([70, 40]))
    whisper.loss(state, ["", ""], [["a dog"], ["rain"]], [["which?"], ["what?"]]).backward()
    assert all(part.grad is not None and bool((part.grad != 0).any()) for part in (keys, values))
    assert all(parameter.grad is None for parameter in whisper.parameters())


def test_a_deep_prefix_keeps_the_ratios_of_attention_among_content(whisper: CrossDecoder) -> None:
    """A prefix takes attention away from the content, and the rest is shared as before, in the first layer.

    When Do Prompting and Prefix-Tuning Work? (https://arxiv.org/abs/2310.19698). In later layers the content differs.
    """
    layer = cast(Any, whisper.lm).get_decoder().layers[0].self_attn
    calls: list[tuple[Tensor, Tensor]] = []
    project = layer.q_proj.register_forward_hook(lambda module, args, out: calls.append((args[0], out)))
    ids = torch.tensor([whisper.codec.subword_ids(" a dog barks loudly. the cat runs")])
    n, weights = ids.shape[1], []
    for prefix in (None, deep(whisper, [5])):
        start = no_prefix(whisper, 1) if prefix is None else prefix
        state = whisper.prefill(start, memory([30]))
        position_ids = torch.arange(n)[None] + 5  # positions after the prefix, in both runs
        whisper.forward_tokens(
            state,
            cache_over(state.cache),
            whisper.embed(ids),
            visible=torch.ones(1, n, n).bool().tril(),
            position_ids=position_ids,
        )
        content, queries = calls.pop(), None
        calls.clear()
        heads = (whisper.heads, whisper.head_width)
        queries = content[1].unflatten(2, heads).transpose(1, 2) * layer.scaling
        keys = layer.k_proj(content[0]).unflatten(2, heads).transpose(1, 2)
        keys = keys if prefix is None else torch.cat([prefix.keys[0], keys], dim=2)
        masked = torch.ones(n, n).triu(1).bool()
        masked = masked if prefix is None else torch.cat([torch.zeros(n, 5).bool(), masked], dim=1)
        weights.append((queries @ keys.transpose(2, 3)).masked_fill(masked, -torch.inf).softmax(-1)[..., -n:])
    project.remove()
    plain, prefixed = weights
    assert bool((prefixed.sum(-1) < 0.999).any())  # the prefix receives attention
    assert torch.allclose(prefixed / prefixed.sum(-1, keepdim=True), plain, atol=1e-5)


def test_bart_scores_equal_transformers(bart: CrossDecoder) -> None:
    prompts = ["the cat runs over a green hill", "rain"]
    prefix = deep(bart, [3, 3])
    scores = bart.score(bart.prefill(prefix), prompts, [["a dog", "a bell rings"], ["the roof"]])
    model = cast(Any, bart.lm)
    for b, texts in enumerate([["a dog", "a bell rings"], ["the roof"]]):
        source = torch.tensor([bart.codec.subword_ids(prompts[b])])
        frames = model.get_encoder()(input_ids=source).last_hidden_state
        for text, value in zip(texts, scores[b], strict=True):
            ids = [0, *bart.codec.subword_ids(text), 0]
            log_probs = reference_log_probs(bart, ids[:-1], frames, row(prefix, b))
            assert value == pytest.approx(
                float(log_probs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum()), abs=1e-3
            )
    options = GenerateOptions(max_new_tokens=6, num_beams=3)
    together = bart.generate(bart.prefill(prefix), prompts, options)
    for b in range(2):
        single = bart.generate(bart.prefill(row(prefix, b)), prompts[b : b + 1], options)[0]
        assert [c.text for c in single] == [c.text for c in together[b]]


def test_more_than_a_window_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    decoder = CrossDecoder(tiny_whisper.save_whisper(tmp_path / "whisper"))
    for count, lines in ((100, 0), (101, 1), (150, 1)):
        decoder.prefill(no_prefix(decoder, 1), memory([count]))
        assert len(caplog.messages) == lines
    assert "has 101 frames, and this Whisper was trained on windows of 100 (2 s)" in caplog.text
    assert "mmprefix transcribe" in caplog.text


def test_impossible_inputs_and_models_are_refused(whisper: CrossDecoder, bart: CrossDecoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give an input that has frames"):
        whisper.prefill(no_prefix(whisper, 1))
    with pytest.raises(InputError, match="its encoder reads text, so it cannot read frames"):
        bart.prefill(no_prefix(bart, 1), memory([3]))
    with pytest.raises(InputError, match="cannot run a prefix of embeddings"):
        bart.generate(bart.prefill(soft(bart, [2])), ["a dog"], GenerateOptions())
    with pytest.raises(InputError, match=r"has no <\|fr\|>"):
        CrossDecoder(str(whisper.identity.source), language="fr")
    config = hf.T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=400)
    hf.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tiny_whisper.tokenizer().save_pretrained(tmp_path / "t5")
    with pytest.raises(InputError, match="'t5' model has no cross-attention and learned positions"):
        CrossDecoder(str(tmp_path / "t5"))
