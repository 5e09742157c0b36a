"""Whole words as output: what is read and written, against plain passes of the language model; saved with the words."""

from __future__ import annotations

import json
import pickle
from copy import deepcopy
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


def prefix(decoder: ComposedDecoder, lengths: list[int]) -> Prefix:
    torch.manual_seed(1)
    embeds = torch.randn(len(lengths), max(lengths), decoder.width)
    return Prefix(embeds, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def mean_of_pieces(decoder: WordDecoder, word: str) -> Tensor:
    """What the model reads for a word, worked out on its own."""
    ids = [decoder.tokenizer.eos_token_id] if word == END else decoder.tokenizer(f" {word}")["input_ids"]
    return decoder.lm.get_input_embeddings().weight[ids].mean(0)


@torch.no_grad()
def by_hand(decoder: WordDecoder, given: Tensor, words: list[str]) -> Tensor:
    """Log-probability of each word and of the end behind a prefix (P E): one pass of the model, and the head."""
    read = torch.stack([mean_of_pieces(decoder, word) for word in words])
    hidden = decoder.lm.transformer(inputs_embeds=torch.cat([given, read])[None]).last_hidden_state[0]
    assert decoder.own_head is not None
    logits = (hidden @ decoder.own_head.weight.T)[len(given) - 1 :].log_softmax(-1)
    return torch.stack([logits[i, WORDS.index(word)] for i, word in enumerate([*words, END])])


def test_scores_equal_a_plain_pass(decoder: WordDecoder) -> None:
    given = prefix(decoder, [4, 2])
    found = decoder.score(decoder.prefill(given), ["", ""], TEXTS)
    for b, texts in enumerate(TEXTS):
        for text, score in zip(texts, found[b], strict=True):
            want = by_hand(decoder, given.embeds[b][given.mask[b]], text.split()).sum().item()
            assert score == pytest.approx(want, abs=1e-4)


def test_unknown_words_are_unknown(decoder: WordDecoder, folder: str) -> None:
    given = prefix(decoder, [3])
    state = decoder.prefill(given)
    both = decoder.score(state, [""], [["a zebra barks", f"a {UNKNOWN} barks"]])[0]
    assert both[0] == pytest.approx(both[1])
    strict = WordDecoder(folder, [word for word in WORDS if word != UNKNOWN])
    with pytest.raises(InputError, match="the word 'zebra' of 'a zebra barks' is not among its 11 words"):
        strict.score(strict.prefill(given), [""], [["a zebra barks"]])


def test_what_is_written_is_the_likeliest_of_all_texts(decoder: WordDecoder) -> None:
    """Greedy against a loop of plain passes; beams wide enough see at least as much."""
    assert decoder.own_head is not None
    with torch.no_grad():
        decoder.own_head.weight.mul_(3)
    given = prefix(decoder, [4])
    words: list[str] = []
    while len(words) < 6:
        read = [mean_of_pieces(decoder, word) for word in words]
        embeds = torch.cat([given.embeds[0], *(one[None] for one in read)])[None]
        hidden = decoder.lm.transformer(inputs_embeds=embeds).last_hidden_state[0, -1]
        word = WORDS[int((decoder.own_head.weight @ hidden).argmax())]
        if word == END:
            break
        words.append(word)
    (found,) = decoder.generate(decoder.prefill(given), [""], GenerateOptions(max_new_tokens=6))
    assert found[0].text == " ".join(words)
    (best,) = decoder.generate(decoder.prefill(given), [""], GenerateOptions(max_new_tokens=6, num_beams=8))
    assert best[0].score >= found[0].score - 1e-5


def test_a_prompt_is_read_in_the_models_own_tokens(decoder: WordDecoder) -> None:
    given = prefix(decoder, [3])
    told = decoder.score(decoder.prefill(given), ["the cat"], [["a dog"]])[0][0]
    ids = torch.tensor(decoder.tokenizer("the cat")["input_ids"])
    longer = torch.cat([given.embeds[0], decoder.lm.get_input_embeddings()(ids)])
    assert told == pytest.approx(by_hand(decoder, longer, ["a", "dog"]).sum().item(), abs=1e-4)


def test_only_the_head_learns(decoder: WordDecoder) -> None:
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    assert [name for name, p in decoder.named_parameters() if p.requires_grad] == ["own_head.weight"]
    assert decoder.trained == ("own_head.",)
    optimiser = torch.optim.SGD([p for p in decoder.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(30):
        loss = decoder.loss(decoder.prefill(prefix(decoder, [4, 2])), ["", ""], TEXTS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    changed = {name for name, value in decoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"own_head.weight"}


def test_a_tuned_model_reads_words_by_what_it_has_become(folder: str) -> None:
    """The embeddings of words follow those of their pieces, in training and after it."""
    decoder = WordDecoder(folder, WORDS, frozen=False)
    assert decoder.trained == ("",)
    source = decoder.lm.get_input_embeddings().weight
    for learns in (True, False):
        decoder.train(learns)
        for _ in range(2):
            with torch.set_grad_enabled(learns):
                read = decoder.embed(torch.tensor([[WORDS.index("barks")]]))[0, 0]
            assert torch.allclose(read, mean_of_pieces(decoder, "barks"), atol=1e-6)
            assert read.requires_grad == learns
            if learns:
                with torch.no_grad():
                    source.add_(0.1)
    decoder.load_state_dict({name: value * 2 for name, value in decoder.state_dict().items()})  # seen without ``train``
    for reader in (decoder, deepcopy(decoder)):
        with torch.no_grad():
            read = reader.embed(torch.tensor([[WORDS.index("barks")]]))[0, 0]
        assert torch.allclose(read, mean_of_pieces(decoder, "barks"), atol=1e-6)
    frozen = WordDecoder(folder, WORDS).eval()
    with torch.inference_mode():
        frozen.embed(torch.tensor([[1]]))
    frozen.loss(frozen.prefill(prefix(frozen, [3])), [""], [["a dog"]]).backward()  # what was kept can be trained on


def test_as_published(folder: str) -> None:
    """Word i is read by row i of the model's embeddings, the logit of word 0 is 0, and a text has one full stop."""
    torch.manual_seed(0)
    quirky = WordDecoder(folder, WORDS, as_published=True)
    given = prefix(quirky, [4])
    ids = [WORDS.index(word) for word in ("a", "dog", "barks")]
    read = quirky.lm.get_input_embeddings().weight[ids]
    hidden = quirky.lm.transformer(inputs_embeds=torch.cat([given.embeds[0], read])[None]).last_hidden_state[0]
    assert quirky.own_head is not None
    logits = hidden @ quirky.own_head.weight.T
    logits[:, 0] = 0.0
    lines = logits[3:].log_softmax(-1).detach()
    want = sum(float(lines[i, n]) for i, n in enumerate([*ids, WORDS.index(END)]))
    assert quirky.score(quirky.prefill(given), [""], [["a dog barks"]])[0][0] == pytest.approx(want, abs=1e-4)
    assert quirky.codec.decode([4, 10, 5]) == "loudly rings,."
    assert WordDecoder(folder, WORDS).codec.decode([4, 10, 5]) == "loudly. rings,"
    with pytest.raises(InputError, match="the logit of word 0 is fixed at 0, and word 0 is '<eos>'"):
        WordDecoder(folder, [END, "a"], as_published=True)
    with pytest.raises(InputError, match=r"400 words, but .* has only 320 embeddings"):
        WordDecoder(folder, ["!", END, *(f"w{i}" for i in range(398))], as_published=True)


def test_a_recipe_holds_the_words(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("".join(f"{word}\n" for word in WORDS))
    made = WordDecoder(folder, str(file))
    described = to_recipe(made)
    file.unlink()
    again: Any = from_recipe(described, WordDecoder)
    assert again.words == WORDS
    contents = {"json": json.dumps(WORDS).encode(), "pickle": pickle.dumps(WORDS), "crlf": "\r\n".join(WORDS).encode()}
    for format, content in contents.items():
        (tmp_path / format).write_bytes(content)
        assert WordDecoder(folder, str(tmp_path / format)).words == WORDS
    with pytest.raises(InputError, match="its 2 words lack '<eos>'"):
        WordDecoder(folder, ["a", "b"])
    with pytest.raises(InputError, match="no such file"):
        WordDecoder(folder, str(tmp_path / "none"))
    for broken in (b"\x80\x02]}b.", b"\x80\x02]K\x01K\x02s.", b"[" * 200000, b"\xff\xfe", b"\x80\x04"):
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises(InputError, match="the vocabulary cannot be read"):
            WordDecoder(folder, str(tmp_path / "broken"))


def test_the_first_head_takes_rows_by_word(folder: str) -> None:
    old = {"decoder.own_head.weight": torch.arange(3.0)[:, None].expand(3, 32), "mappers.x": torch.ones(2)}
    new = WordDecoder(folder, ["a", END, "hill", "dog"])
    assert new.own_head is not None
    before = new.own_head.weight.detach().clone()
    found = new.remap_saved(old, {"vocabulary": ["dog", "a", END]})
    weight = found["decoder.own_head.weight"]
    assert weight[:, 0].tolist()[:2] == [1.0, 2.0]
    assert weight[3, 0] == 0.0
    assert torch.equal(weight[2], before[2])  # a word that the other did not have
    assert torch.equal(found["mappers.x"], old["mappers.x"])
    assert new.remap_saved(old, {}) == old


def test_a_head_of_its_own_over_the_models_tokens(folder: str) -> None:
    plain, own = CausalDecoder(folder, stop="."), CausalDecoder(folder, stop=".", train_head=True)
    given = prefix(plain, [4])
    scores = [one.score(one.prefill(given), [""], [["a dog barks."]])[0][0] for one in (plain, own)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)  # it starts as the model's
    assert own.trained == ("own_head.",)
    own.loss(own.prefill(given), [""], [["a dog."]]).backward()
    assert [name for name, p in own.named_parameters() if p.grad is not None] == ["own_head.weight"]
    assert own.own_head is not None
    with torch.no_grad():
        own.own_head.weight.zero_()
    assert torch.equal(own.lm.get_input_embeddings().weight, plain.lm.get_input_embeddings().weight)


def test_the_published_search_stops_at_the_very_token(folder: str) -> None:
    decoder = CausalDecoder(folder, stop=".")
    alone = decoder.tokenizer(".", add_special_tokens=False)["input_ids"]
    assert decoder.stop_ids(exactly=True).tolist() == alone
    with pytest.raises(InputError, match="stops at one token"):
        CausalDecoder(folder, stop="ba").stop_ids(exactly=True)
    assert set(decoder.stop_ids().tolist()) > set(alone)  # the end of text too, and tokens that end with a full stop


def test_noise_of_a_frozen_model_is_an_option(folder: str) -> None:
    for noisy in (False, True):
        decoder = CausalDecoder(folder, noisy=noisy).train()
        given = prefix(decoder, [4])
        first, again = (decoder.loss(decoder.prefill(given), [""], [["a dog"]]).item() for _ in range(2))
        assert (first == again) != noisy
        decoder.eval()
        first, again = (decoder.loss(decoder.prefill(given), [""], [["a dog"]]).item() for _ in range(2))
        assert first == again


@pytest.mark.parametrize("frozen", [True, False])
def test_a_decoder_is_in_the_mode_that_training_wants(frozen: bool, folder: str) -> None:
    """A trainer leaves parts in the mode that they are in: dropout is on where the model is tuned, and only there."""
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
