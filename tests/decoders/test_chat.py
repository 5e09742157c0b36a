"""Begin tokens by family, end tokens, and decoders that answer through a chat template, against the plain model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.chat import ChatCodec, begin_ids, chat_turns
from mmprefix.decoders.text_codec import TextCodec
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.types import DeepPrefix, MixedPrefix, Prefix
from tiny.decoders import CHAT_TEMPLATE, END, make_chat_tokenizer, make_tokenizer, ragged_prefix, save_decoder

LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
FAMILIES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "GPT-2": (make_tokenizer, [END]),
    "SmolLM2": (make_chat_tokenizer, [END]),
    "Qwen instruct": (lambda: make_chat_tokenizer(bos_token=None), [END]),
    "Qwen base": (lambda: make_chat_tokenizer(bos_token=None, eos_token=END), [END]),
    "LLaMA 2": (lambda: make_chat_tokenizer(bos_token="<s>", eos_token="</s>", chat_template=LLAMA2), ["<s>"]),
    "without template": (lambda: make_chat_tokenizer(chat_template=None), ["<|im_start|>"]),
    "a template that fails": (lambda: make_chat_tokenizer(chat_template="{{ 1 / 0 }}"), ["<|im_start|>"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_decoder(tmp_path_factory.mktemp("chat"), "llama", words=make_chat_tokenizer())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_chooses_what_stands_before_an_empty_prompt(name: str) -> None:
    make, expected = FAMILIES[name]
    words = make()
    codec = TextCodec(words, "x")
    assert words.convert_ids_to_tokens(begin_ids(codec, None, chat_turns(words))) == expected


def test_a_text_gives_another_begin(folder: str) -> None:
    default, marked, plain = (CausalDecoder(folder, begin=begin) for begin in (None, "<|im_start|>", "the old"))
    assert default.tokenizer.convert_ids_to_tokens(default.codec.prompt_ids("", True)) == [END]
    assert default.tokenizer.convert_ids_to_tokens(marked.codec.prompt_ids("", True)) == ["<|im_start|>"]
    assert plain.codec.prompt_ids("", True) == plain.codec.subword_ids("the old")
    assert plain.codec.prompt_ids("", False) == []
    assert plain.codec.prompt_ids("a cat", True) == plain.codec.subword_ids("a cat")
    nothing = Prefix.empty(1, default.width)
    scores = [own.score(own.prefill(nothing), [""], [["a bell rings"]])[0][0] for own in (default, marked, plain)]
    assert scores == pytest.approx([own_score(default, begin) for begin in (END, "<|im_start|>", "the old")], abs=1e-3)


def own_score(decoder: CausalDecoder, before: str, text: str = "a bell rings<|im_end|>") -> float:
    """Log-probability of ``text`` after ``before`` by one plain pass over their tokens."""
    words: Any = decoder.tokenizer
    first, after = words(before)["input_ids"], words(text)["input_ids"]
    logits = decoder.lm(torch.tensor([[*first, *after]])).logits[0, len(first) - 1 : -1].log_softmax(-1)
    return float(logits[range(len(after)), after].sum())


def test_a_misspelt_begin_token_is_refused(folder: str) -> None:
    with pytest.raises(InputError, match=r"begin: the tokenizer has no token '<\|endoftxt\|>'.*<\|endoftext\|>"):
        CausalDecoder(folder, begin="<|endoftxt|>")


@pytest.mark.parametrize("question", ["", "the cat"])
def test_without_begin_something_has_to_stand_before_a_text(folder: str, question: str) -> None:
    decoder = CausalDecoder(folder, begin="")
    options, questions = GenerateOptions(max_new_tokens=3), [question, question]
    nothing = decoder.prefill(Prefix.empty(2, decoder.width))
    targets, asked = [["a bell"], ["a bell"]], [[question], [question]]
    calls: list[Callable[[Any], Any]] = [
        lambda state: decoder.generate(state, ["", ""], options, questions),
        lambda state: decoder.score(state, ["", ""], targets, asked),
        lambda state: decoder.score_choices(state, ["", ""], ["a", "the"], questions),
    ]
    for call in calls:
        assert call(decoder.prefill(ragged_prefix(decoder, [2, 1]))) is not None
        if question:
            assert call(nothing) is not None
        else:
            with pytest.raises(InputError, match=r"nothing stands before a text.*give a prompt, or a text as begin"):
                call(nothing)


def test_every_end_token_of_a_model_ends_a_text(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path, "llama", words=make_chat_tokenizer(eos_token=END))
    names = ("<|im_start|>", "<|im_end|>", END)
    listed = [make_chat_tokenizer().convert_tokens_to_ids(name) for name in names]
    assert CausalDecoder(folder).stop_ids().tolist() == [listed[2], listed[1]]  # its end, and that of a turn
    generation = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    ordinary = 5  # a wrong configuration: a letter would end texts
    (tmp_path / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": [listed[0], ordinary]}))
    decoder = CausalDecoder(folder)
    assert decoder.stop_ids().tolist() == sorted(listed)
    assert decoder.codec.target_ids("", "a bell")[-1] == listed[2]
    state = decoder.append(decoder.prefill(Prefix.empty(1, decoder.width)), ["the"])
    for number in listed:
        bias = torch.zeros(len(decoder.tokenizer)).index_fill(0, torch.tensor([number]), 1e4)
        decoder.lm.lm_head.register_forward_hook(lambda _, __, out, bias=bias: out + bias)
        ids = decoder.search_tokens(state, GenerateOptions(max_new_tokens=5), decoder.stop_ids())[0][0][0]
        assert ids == [number]
        decoder.lm.lm_head._forward_hooks.clear()


def chat_score(decoder: CausalDecoder, before: Tensor, embeds: Tensor, message: str, answer: str) -> float:
    """Log-probability of an answer by one pass over ``before`` (N E) and a chat, ``embeds`` (P E) in its message."""
    words: Any = decoder.tokenizer
    chat = [{"role": "user", "content": "@"}]
    start, end = words.apply_chat_template(chat, tokenize=False, add_generation_prompt=True).split("@")
    after = words(f"{answer}<|im_end|>")["input_ids"]
    embed = decoder.lm.get_input_embeddings()
    parts = [embed(torch.tensor(words(start)["input_ids"])), embeds]
    parts += [embed(torch.tensor(words(text)["input_ids"], dtype=torch.long)) for text in (message, end)]
    whole = torch.cat([before, *parts, embed(torch.tensor(after))])
    logits = decoder.lm(inputs_embeds=whole[None]).logits[0, -len(after) - 1 : -1].log_softmax(-1)
    return float(logits[range(len(after)), after].sum())


@pytest.mark.parametrize("kind", ["none", "soft", "deep", "mixed"])
def test_the_score_of_an_answer_is_that_of_the_whole_chat(folder: str, kind: str) -> None:
    decoder = CausalDecoder(folder, chat=True)
    soft, empty = ragged_prefix(decoder, [4, 2]), Prefix.empty(2, decoder.width)
    first = ragged_prefix(decoder, [3, 2], seed=1)
    cache = CausalDecoder(folder).prefill(first).cache
    deep = DeepPrefix(torch.stack([k for k, _ in cache]), torch.stack([v for _, v in cache]), first.mask)
    prefix = {"none": empty, "soft": soft, "deep": deep, "mixed": MixedPrefix(deep, soft)}[kind]
    inner, outer = soft if kind in ("soft", "mixed") else empty, first if kind in ("deep", "mixed") else empty
    state = decoder.prefill(prefix)
    scores = decoder.score(state, ["the cat", ""], [["a bell", "rain"], ["a hill"]], [[" barks"] * 2, ["twice"]])
    for b, (message, answers) in enumerate((("the cat barks", ["a bell", "rain"]), ("twice", ["a hill"]))):
        parts = outer.embeds[b][outer.mask[b]], inner.embeds[b][inner.mask[b]], message
        expected = [chat_score(decoder, *parts, answer) for answer in answers]
        assert scores[b] == pytest.approx(expected, abs=1e-3)


def test_an_answer_of_llama_2_keeps_its_space() -> None:
    words: Any = make_chat_tokenizer(bos_token="<s>", eos_token="</s>", chat_template=LLAMA2)
    codec = ChatCodec(words, "x")
    assert words.decode(codec.opening_ids) == "<s>[INST] "
    ids = [*codec.opening_ids, *codec.prompt_ids("the cat", False), *codec.question_ids("the cat", "")]
    assert words.decode([*ids, *codec.target_ids("", "a bell")]) == "<s>[INST] the cat [/INST] a bell</s>"
    assert codec.eos == words.eos_token_id


def test_a_template_that_writes_the_date_writes_one_and_the_same() -> None:
    template = CHAT_TEMPLATE.replace("a bell", "' + strftime_now('%d %b %Y') + '")
    turns = chat_turns(make_chat_tokenizer(chat_template=template))
    assert turns is not None
    assert "26 Jul 2024" in turns.opening


@pytest.mark.parametrize(("options", "problem"), [
    ({"chat_template": None}, "chat template, which is missing"),
    ({"chat_template": "{{ messages[0].content }}"}, "cannot write a user's message and an answer"),
])  # fmt: skip
def test_a_chat_needs_a_template(tmp_path: Path, options: dict[str, Any], problem: str) -> None:
    folder = save_decoder(tmp_path, words=make_chat_tokenizer(**options))
    with pytest.raises(InputError, match=f"chat: true needs .* {problem}"):
        CausalDecoder(folder, chat=True)


def test_begin_and_chat_contradict_each_other(folder: str) -> None:
    with pytest.raises(InputError, match=r"begin: with chat: true .* leave out one of the two"):
        CausalDecoder(folder, chat=True, begin=END)


@pytest.mark.models
def test_smollm2_begins_plain_text_like_a_document(real_model: Callable[[str], str]) -> None:
    name = real_model("smollm2-135m-instruct")
    texts = ["A woman stands in the dining area at the table.", "Two dogs run over a green field.", "A red bus."]
    scores: list[float] = []
    for begin in (None, "<|im_start|>"):
        decoder = CausalDecoder(name, begin=begin)
        with torch.no_grad():
            state = decoder.prefill(Prefix.empty(3, decoder.width))
            scores.append(float(decoder.text_loss(state, [""] * 3, [[text] for text in texts]).mean()))
    assert scores[0] < scores[1] - 0.2


@pytest.mark.models
def test_smollm2_answers_a_question_through_its_template(real_model: Callable[[str], str]) -> None:
    decoder = CausalDecoder(real_model("smollm2-135m-instruct"), chat=True)
    state = decoder.prefill(Prefix.empty(1, decoder.width))
    answer = decoder.generate(state, ["What is the capital of France?"], GenerateOptions(max_new_tokens=20))[0][0].text
    assert answer == "The capital of France is Paris."
