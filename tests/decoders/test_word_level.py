"""Word-level decoder against plain passes of the language model; saved with its vocabulary."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.word_level import END, UNKNOWN, WordDecoder
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.parts import from_recipe, to_recipe
from mmprefix.recipes.prepare import vocabulary as build_vocabulary
from mmprefix.types import Prefix
from tiny.decoders import save_decoder

WORDS = ["!", "a", "dog", "barks", "loudly.", END, "green", "hill", "bell", UNKNOWN, "rings,", "twice"]
TEXTS = [["a dog barks loudly.", "a bell rings, twice"], ["a green hill"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_decoder(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def decoder(folder: str) -> WordDecoder:
    torch.manual_seed(0)
    return WordDecoder(folder, WORDS)


def random_prefix(decoder: ComposedDecoder, lengths: list[int]) -> Prefix:
    torch.manual_seed(1)
    embeds = torch.randn(len(lengths), max(lengths), decoder.width)
    return Prefix(embeds, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def mean_of_subwords(decoder: WordDecoder, word: str) -> Tensor:
    """Mean embedding of the model's own tokens for a word."""
    ids = [decoder.tokenizer.eos_token_id] if word == END else decoder.tokenizer(f" {word}")["input_ids"]
    return decoder.lm.get_input_embeddings().weight[ids].mean(0)


@torch.no_grad()
def plain_log_probs(decoder: WordDecoder, prefix: Tensor, words: list[str]) -> Tensor:
    """Log-probabilities of each word and of ``<eos>`` after a prefix (P E), by one pass of the model and the head."""
    words_read = torch.stack([mean_of_subwords(decoder, word) for word in words])
    hidden = decoder.lm.transformer(inputs_embeds=torch.cat([prefix, words_read])[None]).last_hidden_state[0]
    assert decoder.own_head is not None
    logits = (hidden @ decoder.own_head.weight.T)[len(prefix) - 1 :].log_softmax(-1)
    return torch.stack([logits[i, WORDS.index(word)] for i, word in enumerate([*words, END])])


def test_scores_equal_a_plain_pass(decoder: WordDecoder) -> None:
    prefix = random_prefix(decoder, [4, 2])
    scores = decoder.score(decoder.prefill(prefix), ["", ""], TEXTS)
    for b, texts in enumerate(TEXTS):
        for text, score in zip(texts, scores[b], strict=True):
            expected = plain_log_probs(decoder, prefix.embeds[b][prefix.mask[b]], text.split()).sum().item()
            assert score == pytest.approx(expected, abs=1e-4)


def test_unknown_words_are_unknown(decoder: WordDecoder, folder: str) -> None:
    prefix = random_prefix(decoder, [3])
    state = decoder.prefill(prefix)
    both = decoder.score(state, [""], [["a zebra barks", f"a {UNKNOWN} barks"]])[0]
    assert both[0] == pytest.approx(both[1])
    strict = WordDecoder(folder, [word for word in WORDS if word != UNKNOWN])
    with pytest.raises(InputError, match="the word 'zebra' of 'a zebra barks' is not among its 11 words"):
        strict.score(strict.prefill(prefix), [""], [["a zebra barks"]])


def test_greedy_search_equals_plain_passes(decoder: WordDecoder) -> None:
    """Greedy search equals a loop of plain passes; a beam search of eight scores at least as high."""
    assert decoder.own_head is not None
    with torch.no_grad():
        decoder.own_head.weight.mul_(3)
    prefix = random_prefix(decoder, [4])
    words: list[str] = []
    while len(words) < 6:
        read_words = [mean_of_subwords(decoder, word) for word in words]
        embeds = torch.cat([prefix.embeds[0], *(word_embeds[None] for word_embeds in read_words)])[None]
        hidden = decoder.lm.transformer(inputs_embeds=embeds).last_hidden_state[0, -1]
        word = WORDS[int((decoder.own_head.weight @ hidden).argmax())]
        if word == END:
            break
        words.append(word)
    (greedy,) = decoder.generate(decoder.prefill(prefix), [""], GenerateOptions(max_new_tokens=6))
    assert greedy[0].text == " ".join(words)
    (best,) = decoder.generate(decoder.prefill(prefix), [""], GenerateOptions(max_new_tokens=6, num_beams=8))
    assert best[0].score >= greedy[0].score - 1e-5


def test_a_prompt_is_read_in_the_models_own_tokens(decoder: WordDecoder) -> None:
    prefix = random_prefix(decoder, [3])
    score = decoder.score(decoder.prefill(prefix), ["the cat"], [["a dog"]])[0][0]
    ids = torch.tensor(decoder.tokenizer("the cat")["input_ids"])
    longer = torch.cat([prefix.embeds[0], decoder.lm.get_input_embeddings()(ids)])
    assert score == pytest.approx(plain_log_probs(decoder, longer, ["a", "dog"]).sum().item(), abs=1e-4)


def test_only_the_head_is_trained(decoder: WordDecoder) -> None:
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    assert [name for name, p in decoder.named_parameters() if p.requires_grad] == ["own_head.weight"]
    assert decoder.trained == ("own_head.",)
    optimizer = torch.optim.SGD([p for p in decoder.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(30):
        loss = decoder.loss(decoder.prefill(random_prefix(decoder, [4, 2])), ["", ""], TEXTS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    changed = {name for name, value in decoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"own_head.weight"}


def test_word_embeddings_follow_a_tuned_model(folder: str) -> None:
    """Embeddings of words follow those of their subwords, in training and after it."""
    decoder = WordDecoder(folder, WORDS, frozen=False)
    assert decoder.trained == ("",)
    source = decoder.lm.get_input_embeddings().weight
    for trains in (True, False):
        decoder.train(trains)
        for _ in range(2):
            with torch.set_grad_enabled(trains):
                embedding = decoder.embed(torch.tensor([[WORDS.index("barks")]]))[0, 0]
            assert torch.allclose(embedding, mean_of_subwords(decoder, "barks"), atol=1e-6)
            assert embedding.requires_grad == trains
            if trains:
                with torch.no_grad():
                    source.add_(0.1)
    doubled = {name: value * 2 for name, value in decoder.state_dict().items()}
    decoder.load_state_dict(doubled)  # without a call of ``train``
    for model in (decoder, deepcopy(decoder)):
        with torch.no_grad():
            embedding = model.embed(torch.tensor([[WORDS.index("barks")]]))[0, 0]
        assert torch.allclose(embedding, mean_of_subwords(decoder, "barks"), atol=1e-6)
    frozen = WordDecoder(folder, WORDS).eval()
    with torch.inference_mode():
        frozen.embed(torch.tensor([[1]]))
    loss = frozen.loss(frozen.prefill(random_prefix(frozen, [3])), [""], [["a dog"]])
    loss.backward()  # through the cached table


def test_as_published(folder: str) -> None:
    """Word i is embedded by row i of the model's embeddings, the logit of word 0 is 0, a text has one full stop."""
    torch.manual_seed(0)
    published = WordDecoder(folder, WORDS, as_published=True)
    prefix = random_prefix(published, [4])
    ids = [WORDS.index(word) for word in ("a", "dog", "barks")]
    embeds = published.lm.get_input_embeddings().weight[ids]
    hidden = published.lm.transformer(inputs_embeds=torch.cat([prefix.embeds[0], embeds])[None]).last_hidden_state[0]
    assert published.own_head is not None
    logits = hidden @ published.own_head.weight.T
    logits[:, 0] = 0.0
    log_probs = logits[3:].log_softmax(-1).detach()
    expected = sum(float(log_probs[i, n]) for i, n in enumerate([*ids, WORDS.index(END)]))
    score = published.score(published.prefill(prefix), [""], [["a dog barks"]])[0][0]
    assert score == pytest.approx(expected, abs=1e-4)
    assert published.codec.decode([4, 10, 5]) == "loudly rings,."
    assert WordDecoder(folder, WORDS).codec.decode([4, 10, 5]) == "loudly. rings,"
    with pytest.raises(InputError, match="the logit of word 0 is fixed at 0, and word 0 is '<eos>'"):
        WordDecoder(folder, [END, "a"], as_published=True)
    with pytest.raises(InputError, match=r"400 words, but .* has only 320 embeddings"):
        WordDecoder(folder, ["!", END, *(f"w{i}" for i in range(398))], as_published=True)


def test_a_recipe_holds_the_words(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("".join(f"{word}\n" for word in WORDS))
    decoder = WordDecoder(folder, str(file))
    recipe = to_recipe(decoder)
    file.unlink()
    rebuilt: Any = from_recipe(recipe, WordDecoder)
    assert rebuilt.words == WORDS
    contents = {"json": json.dumps(WORDS).encode(), "pickle": pickle.dumps(WORDS), "crlf": "\r\n".join(WORDS).encode()}
    for form, content in contents.items():
        (tmp_path / form).write_bytes(content)
        assert WordDecoder(folder, str(tmp_path / form)).words == WORDS
    with pytest.raises(InputError, match="its 2 words lack '<eos>'"):
        WordDecoder(folder, ["a", "b"])
    with pytest.raises(InputError, match="no such file"):
        WordDecoder(folder, str(tmp_path / "none"))
    for broken in (b"\x80\x02]}b.", b"\x80\x02]K\x01K\x02s.", b"[" * 200000, b"\xff\xfe", b"\x80\x04"):
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises(InputError, match="the vocabulary cannot be read"):
            WordDecoder(folder, str(tmp_path / "broken"))


def test_a_saved_head_is_assigned_by_word(folder: str) -> None:
    old = {"decoder.own_head.weight": torch.arange(3.0)[:, None].expand(3, 32), "mappers.x": torch.ones(2)}
    new = WordDecoder(folder, ["a", END, "hill", "dog"])
    assert new.own_head is not None
    before = new.own_head.weight.detach().clone()
    remapped = new.remap_saved(old, {"vocabulary": ["dog", "a", END]})
    weight = remapped["decoder.own_head.weight"]
    assert weight[:, 0].tolist()[:2] == [1.0, 2.0]
    assert weight[3, 0] == 0.0
    assert torch.equal(weight[2], before[2])  # a word without a saved row
    assert torch.equal(remapped["mappers.x"], old["mappers.x"])
    assert new.remap_saved(old, {}) == old


def test_a_separate_head_over_the_models_tokens(folder: str) -> None:
    plain, own = CausalDecoder(folder, stop="."), CausalDecoder(folder, stop=".", train_head=True)
    prefix = random_prefix(plain, [4])
    scores = [decoder.score(decoder.prefill(prefix), [""], [["a dog barks."]])[0][0] for decoder in (plain, own)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)  # initialized from the model's head
    assert own.trained == ("own_head.",)
    own.loss(own.prefill(prefix), [""], [["a dog."]]).backward()
    assert [name for name, p in own.named_parameters() if p.grad is not None] == ["own_head.weight"]
    assert own.own_head is not None
    with torch.no_grad():
        own.own_head.weight.zero_()
    assert torch.equal(own.lm.get_input_embeddings().weight, plain.lm.get_input_embeddings().weight)


HEADS: dict[str, Callable[..., ComposedDecoder]] = {
    "train_head": partial(CausalDecoder, stop=".", train_head=True),
    "words": partial(WordDecoder, vocabulary=WORDS),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_of_its_own_stays_in_float32_over_a_model_of_half_precision(folder: str, kind: str, dtype: str) -> None:
    whole, half = HEADS[kind](folder), HEADS[kind](folder, dtype=dtype)
    head = half.get_parameter("own_head.weight")
    head.data = whole.get_parameter("own_head.weight").data.clone()
    assert (str(half.language_model.dtype), head.dtype) == (f"torch.{dtype}", torch.float32)
    prefix, targets = random_prefix(whole, [4, 2]), [["a dog barks loudly."], ["a green hill."]]
    expected = whole.loss(whole.prefill(prefix), ["", ""], targets).item()
    loss = half.loss(half.prefill(prefix), ["", ""], targets)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=0.1)
    assert head.grad is not None
    half.requires_grad_(False)  # as in use, where a frozen head takes faster paths
    assert half.loss(half.prefill(prefix), ["", ""], targets).item() == pytest.approx(expected, rel=0.1)
    for beams in (1, 5):  # few rows, and more than MAX_ROWS
        many = Prefix(prefix.embeds.repeat(8, 1, 1), prefix.mask.repeat(8, 1))
        options = GenerateOptions(max_new_tokens=3, num_beams=beams)
        assert len(half.generate(half.prefill(many), [""] * 16, options)) == 16


def test_the_published_search_stops_at_the_exact_token(folder: str) -> None:
    decoder = CausalDecoder(folder, stop=".")
    exact = decoder.tokenizer(".", add_special_tokens=False)["input_ids"]
    assert decoder.stop_ids(exactly=True).tolist() == exact
    with pytest.raises(InputError, match="stops at one token"):
        CausalDecoder(folder, stop="ba").stop_ids(exactly=True)
    assert set(decoder.stop_ids().tolist()) > set(exact)  # the end of text too, and tokens that end with a full stop


def test_dropout_of_a_frozen_model_is_an_option(folder: str) -> None:
    for noisy in (False, True):
        decoder = CausalDecoder(folder, noisy=noisy).train()
        prefix = random_prefix(decoder, [4])
        first, second = (decoder.loss(decoder.prefill(prefix), [""], [["a dog"]]).item() for _ in range(2))
        assert (first == second) != noisy
        decoder.eval()
        first, second = (decoder.loss(decoder.prefill(prefix), [""], [["a dog"]]).item() for _ in range(2))
        assert first == second


@pytest.mark.parametrize("frozen", [True, False])
def test_a_decoder_is_built_in_its_training_mode(frozen: bool, folder: str) -> None:
    """Lightning leaves modules in their mode: dropout is on in a tuned or noisy model only."""
    assert CausalDecoder(folder, frozen=frozen).lm.training is not frozen
    assert CausalDecoder(folder, frozen=True, noisy=True).lm.training
    assert not CausalDecoder(folder, frozen=frozen).eval().lm.training


def test_build_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    rows = [
        {"id": "1", "audio": "a.wav", "captions": ["a dog barks.", "a bell, twice."], "split": "train"},
        {"id": "2", "audio": "a.wav", "captions": ["the dog runs."], "split": "val"},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "made" / "words.txt"
    words = [str(tmp_path / "m.jsonl"), "--out", str(out)]
    assert build_vocabulary.main([*words, "--split", "train"]) == 0
    assert out.read_text().split("\n") == ["!", END, UNKNOWN, "a", "dog", "barks.", "bell,", "twice.", ""]
    assert "8 words of 2 captions" in capsys.readouterr().out
    assert build_vocabulary.main([*words, "--least", "2"]) == 0
    assert out.read_text().split() == ["!", END, UNKNOWN, "a", "dog"]
    before = out.read_text()
    assert build_vocabulary.main([str(tmp_path / "none.jsonl"), "--out", str(out)]) == 2
    assert out.read_text() == before
    assert "cannot be read" in capsys.readouterr().err
    assert build_vocabulary.main([*words[:1], "--out", str(tmp_path / "m.jsonl" / "words.txt")]) == 2
    assert "m.jsonl" in capsys.readouterr().err
