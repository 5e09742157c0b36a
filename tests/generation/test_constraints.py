"""Texts that hold and avoid phrases: random trials, the best text by brute force, Hugging Face, every decoder."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.cross_attention import CrossDecoder
from mmprefix.decoders.word_level import END, WordDecoder
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.generation.phrase_tables import PhraseTables, TextState
from mmprefix.kv_cache.state import State
from mmprefix.types import Features, Prefix
from tiny.decoders import ragged_prefix, save_decoder
from tiny.whisper import save_whisper

PROMPTS = ["", "a dog", "a dog "]
VOCABULARY = [
    *["a", "dog", "barks", "loudly", "the cat", "runs", "green hill", "rain falls", "old roof", "bell rings"],
    *"é日?;",
]


def occurs(phrase: str, text: str) -> bool:
    """Written without the library: in any case, and no word at its ends goes on."""
    words = [re.escape(part) for part in re.findall(r"\w+|\W", phrase.casefold())]
    return (
        re.search("".join(rf"(?<!\w){part}(?!\w)" if part[-1].isalnum() else part for part in words), text.casefold())
        is not None
    )


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> CausalDecoder:
    return CausalDecoder(save_decoder(tmp_path_factory.mktemp("gpt2")))


@pytest.fixture(scope="module")
def state(decoder: CausalDecoder) -> State:
    return decoder.prefill(ragged_prefix(decoder, [3, 5, 2]))


def random_options(generator: random.Random) -> dict[str, Any]:
    """Phrases of the vocabulary, some that the model writes by itself, and a way of searching."""
    search = generator.choice([{}, {"num_beams": 3}, {"sample": True, "seed": generator.randrange(99)}])
    words = [*VOCABULARY, "0", "A", "roof roof", "�", "000"]
    held = [" ".join(generator.sample(words, generator.randint(1, 2))) for _ in range(generator.randint(0, 2))]
    avoid = generator.sample(words, generator.randint(0, 4))
    start = generator.choice(["", "", "the cat", "A"])
    return {
        "max_new_tokens": generator.randint(8, 15),
        "must_hold": held,
        "avoid": avoid,
        "start_with": start,
        **search,
    }


@pytest.mark.slow
def test_two_hundred_random_texts_hold_what_they_should(decoder: CausalDecoder, state: State) -> None:
    generator, counts = random.Random(7), {"texts": 0, "refused": 0}
    while counts["texts"] < 200:
        options = random_options(generator)
        try:
            rows = decoder.generate(state, PROMPTS, GenerateOptions(**options))
        except InputError:  # a contradiction, or too few tokens
            counts["refused"] += 1
            continue
        for (best,) in rows:
            assert best.text.startswith(options["start_with"])
            assert all(occurs(phrase, best.text) for phrase in options["must_hold"]), (options, best.text)
            assert not any(occurs(phrase, best.text) for phrase in options["avoid"]), (options, best.text)
            counts["texts"] += 1
    assert counts["refused"] < 50


@pytest.mark.parametrize("search", [{}, {"num_beams": 3, "num_return": 2}, {"sample": True, "seed": 3}])
def test_a_batch_equals_its_items(decoder: CausalDecoder, state: State, search: dict[str, Any]) -> None:
    options = GenerateOptions(max_new_tokens=12, must_hold=("green hill",), avoid=("0",), start_with="the", **search)
    together = decoder.generate(state, PROMPTS, options)
    for row, prompt in enumerate(PROMPTS):
        (alone,) = decoder.generate(state.select(torch.tensor([row])), [prompt], options)
        assert [c.text for c in alone] == [c.text for c in together[row]]
        assert [c.score for c in alone] == pytest.approx([c.score for c in together[row]], abs=1e-4)


# ------------------------------------------------------------------------------------------------ against others


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> WordDecoder:
    torch.manual_seed(5)
    return WordDecoder(save_decoder(tmp_path_factory.mktemp("words")), ["a", "red", "car", "cars", END])


@pytest.mark.parametrize(
    "phrases",
    [
        {"must_hold": ["car"]},
        {"must_hold": ["red car"]},
        {"must_hold": ["red", "cars"], "avoid": ["a"]},
        {"must_hold": ["a car"], "avoid": ["car car", "a a"], "start_with": "red"},
        {"avoid": ["red", "car"]},
    ],
    ids=str,
)
def test_the_widest_beam_gives_the_best_text_of_all(words: WordDecoder, phrases: dict[str, Any]) -> None:
    """Every text of at most four words, scored by a pass of its own; the sum of log-probabilities ranks them."""
    state, most = words.append(words.prefill(ragged_prefix(words, [3])), [""]), 4
    ids: list[list[int]] = [list(t) for n in range(most) for t in itertools.product(range(4), repeat=n)]
    texts = [[*each, 4] for each in ids] + [list(t) for t in itertools.product(range(4), repeat=most)]
    scores = -words.token_loss(state, [texts]).nll.detach()
    best: tuple[float, str] = max(
        (float(score), text)
        for score, each in zip(scores, texts, strict=True)
        if (text := words.codec.decode(each)).startswith(phrases.get("start_with", ""))
        and all(occurs(phrase, text) for phrase in phrases.get("must_hold", []))
        and not any(occurs(phrase, text) for phrase in phrases.get("avoid", []))
    )
    options = GenerateOptions(max_new_tokens=most, num_beams=300, length_penalty=0.0, **phrases)
    ((widest, *_),) = words.generate_from(state, options)
    assert widest.text == best[1]
    assert widest.score == pytest.approx(best[0], abs=1e-3)


def test_greedy_avoid_equals_bad_words_of_hugging_face(tmp_path: Path) -> None:
    """Excluded by both: the token of a phrase that is one character, which no other token has."""
    compared = 0
    for seed in range(3):
        decoder = CausalDecoder(save_decoder(tmp_path / str(seed), seed=seed))
        texts = decoder.codec.token_texts.texts
        for prompt in ("a dog", "the cat", "rain;"):
            ids = torch.tensor([decoder.codec.subword_ids(prompt)])
            state = decoder.append(decoder.prefill(Prefix.empty(1, decoder.width)), [prompt])
            free = decoder.search_tokens(state, GenerateOptions(max_new_tokens=12), decoder.stop_ids())[0][0][0]
            signs = {
                texts[n].decode() for n in free if texts[n].isascii() and not re.search(r"[\w\s]", texts[n].decode())
            }
            bad = [sign for sign in signs if sum(sign.encode() in text for text in texts) == 1]
            if not bad:
                continue
            options = GenerateOptions(max_new_tokens=12, avoid=tuple(bad))
            (own,) = decoder.generate_from(state, options)
            config = hf.GenerationConfig(
                max_new_tokens=12, bad_words_ids=[[texts.index(sign.encode())] for sign in bad],
                eos_token_id=0, pad_token_id=0, do_sample=False,
            )  # fmt: skip
            reference = decoder.lm.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
            )
            assert own[0].text == decoder.codec.decode(reference[0, ids.shape[1] :].tolist())
            compared += 1
    assert compared >= 2


def test_avoid_holds_however_a_word_is_spelled(decoder: CausalDecoder) -> None:
    """Tokens other than those of the tokenizer write the word as well; a longer word stays possible."""
    tables = PhraseTables.of(decoder.codec.token_texts, (), ("dog",))
    texts = decoder.codec.token_texts.texts
    state = TextState(0)
    for letter in (b"d", b"o", b"g"):
        assert tables.left(state) == 0
        state = tables.advance(state, texts.index(letter))
    assert tables.left(state) == 1  # it may not end as it is
    allowed = tables.allowed(state, 9)
    assert not allowed[texts.index(b".")]
    assert allowed[texts.index(b"s")]


# ------------------------------------------------------------------------------------------------- start, decoders


def test_the_start_counts_as_part_of_the_text(decoder: CausalDecoder, state: State) -> None:
    """Score: the mean log-probability of all tokens, those of the start included, as the loss of the text has it."""
    options = GenerateOptions(max_new_tokens=9, start_with="the cat")
    prompted = decoder.append(state, [""] * 3)
    rows = decoder.search_tokens(prompted, options, decoder.stop_ids())
    nll = decoder.token_loss(prompted, [[row[0][0]] for row in rows]).nll
    for row, value in zip(rows, nll.tolist(), strict=True):
        ids, score = row[0]
        assert decoder.codec.decode(ids).startswith("the cat")
        assert len(ids) <= 9
        assert score == pytest.approx(-value / len(ids), abs=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_pieces_are_the_constrained_text(decoder: CausalDecoder, state: State, beams: int) -> None:
    options = GenerateOptions(max_new_tokens=14, num_beams=beams, must_hold=("cat",), start_with="the", avoid=("0",))
    one = state.select(torch.tensor([1]))
    pieces = list(decoder.stream(one, ["a dog"], options))
    assert "".join(pieces) == decoder.generate(one, ["a dog"], options)[0][0].text


def test_whisper_and_words_hold_phrases(words: WordDecoder, tmp_path: Path) -> None:
    whisper = CrossDecoder(save_whisper(tmp_path / "whisper"))
    torch.manual_seed(0)
    frames = Features(torch.randn(2, 20, whisper.memory_dim or 0), torch.ones(2, 20).bool(), torch.zeros(2, 0))
    states: dict[ComposedDecoder, State] = {
        whisper: whisper.prefill(Prefix.empty(2, whisper.width), frames),
        words: words.prefill(ragged_prefix(words, [2, 3])),
    }
    for own, state in states.items():
        searches: list[dict[str, Any]] = [{}, {"num_beams": 2}, {"sample": True, "seed": 1}]
        for search in searches:
            options = GenerateOptions(max_new_tokens=12, must_hold=("car",), avoid=("red",), start_with="a", **search)
            for (best,) in own.generate(state, ["", ""], options):
                assert occurs("car", best.text)
                assert not occurs("red", best.text)
                assert best.text.startswith("a")


def refusal(decoder: ComposedDecoder, state: State, **options: Any) -> str:
    with pytest.raises(InputError) as refused:
        decoder.generate(state, [""] * len(state.mask), GenerateOptions(**options))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_a_decoder_cannot_write_is_refused(decoder: CausalDecoder, state: State, words: WordDecoder) -> None:
    own = words.prefill(ragged_prefix(words, [2]))
    assert "must_hold='dog': this decoder cannot write" in refusal(words, own, must_hold=["dog"])
    assert "must_hold='rac': this decoder has no tokens" in refusal(words, own, must_hold=["car", "rac"])
    assert "start_with='a dog'" in refusal(words, own, start_with="a dog")
    assert "takes 3 tokens, and max_new_tokens leaves 2" in refusal(decoder, state, must_hold=["日"], max_new_tokens=2)
    assert "raise max_new_tokens=3" in refusal(decoder, state, start_with="xyz xyz", max_new_tokens=3)
    both = {"must_hold": ["a a a a"], "no_repeat_ngram_size": 1, "max_new_tokens": 6}
    assert "no text of this decoder holds all" in refusal(words, own, **both)
