"""Phrases that a text holds or avoids: the automaton against regular expressions, token by token, options refused."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import transformers as hf
from tokenizers import Tokenizer, decoders, models

from mmprefix.decoders.text_codec import TextCodec
from mmprefix.decoders.word_level import WordCodec
from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.generation.phrase_tables import FAR, PhraseTables, TextState
from mmprefix.generation.phrases import PhraseAutomaton, contains
from tiny.decoders import make_tokenizer


def occurs(phrase: str, text: str) -> bool:
    """Written without the library: in any case, and no word at its ends goes on."""
    words = [re.escape(part) for part in re.findall(r"\w+|\W", phrase.casefold())]
    return (
        re.search("".join(rf"(?<!\w){part}(?!\w)" if part[-1].isalnum() else part for part in words), text.casefold())
        is not None
    )


@pytest.mark.parametrize(
    ("text", "phrase", "held"),
    [
        ("A man.", "man", True), ("a woman", "man", False), ("many", "man", False), ("MAN", "man", True),
        ("two men, one man", "Man", True), ("a red car", "red car", True), ("a red cart", "red car", False),
        ("a red  car", "red car", False), ("Straße", "STRASSE", True), ("naïve", "na", False), ("it's", "it", True),
    ],
)  # fmt: skip
def test_a_phrase_is_whole_words_in_any_case(text: str, phrase: str, held: bool) -> None:
    assert contains(text, phrase) is held


def test_the_automaton_is_the_regular_expression() -> None:
    """Random texts over few characters, so that phrases overlap, begin anew and end at the end."""
    generator, seen = random.Random(1), {True: 0, False: 0}
    for _ in range(60):
        phrases = {"".join(generator.choices("ab c", k=generator.randint(1, 5))).strip() for _ in range(4)} - {""}
        held, avoided = sorted(phrases)[:2], sorted(phrases)[2:]
        automaton = PhraseAutomaton(held, avoided)
        for _ in range(40):
            text = "".join(generator.choices("abABc x.", k=generator.randint(0, 12)))
            state, bits = automaton.read(0, text)
            bad = any(occurs(phrase, text) for phrase in avoided)
            assert (state == automaton.dead or bool(automaton.bad_end[state])) == bad
            if not bad:
                bits |= int(automaton.held_at_end[state])
                assert bits == sum(1 << n for n, phrase in enumerate(held) if occurs(phrase, text))
            seen[bad] += 1
    assert min(seen.values()) > 100


def _byte_fallback() -> Any:
    words = ["</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁", "▁a", "▁dog", "s", "é", "▁the"]
    core = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, [], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(parts)
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def _wordpiece() -> Any:
    words = ["[UNK]", "[SEP]", "do", "##g", "it", "##s", "!", "the"]
    core = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece(cleanup=False)
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="[SEP]", unk_token="[UNK]")


CODECS = {
    "bytes": lambda: TextCodec(make_tokenizer(), "x"),
    "metaspace": lambda: TextCodec(_byte_fallback(), "x"),
    "wordpiece": lambda: TextCodec(_wordpiece(), "x"),
    "words": lambda: WordCodec(make_tokenizer(), "x", ["!", "<eos>", "a", "dog.", "Barks"]),
}


@pytest.mark.parametrize("name", CODECS)
def test_the_texts_of_tokens_add_up_to_the_decoded_text(name: str) -> None:
    codec, generator = CODECS[name](), random.Random(3)
    texts = codec.token_texts.texts
    plain = [n for n, text in enumerate(texts) if name != "metaspace" or not (0 < n <= 256)]  # bytes: as a run only
    for _ in range(200):
        ids = [plain[2], *generator.choices(plain, k=8)]  # a text of BERT's begins with a whole word
        assert b"".join(texts[n] for n in ids).decode(errors="replace").strip() == codec.decode(ids)


def test_tokens_lead_where_their_characters_do() -> None:
    """The lifted table of every state against its automaton, for whole tokens and for parts of characters."""
    codec = TextCodec(make_tokenizer(), "x")
    tables, generator = PhraseTables(codec.token_texts, ("a dog", "é"), ("rain", "dog barks")), random.Random(4)
    texts = codec.token_texts.texts
    words = [n for n, text in enumerate(texts) if text.strip() and text.isascii()]
    for _ in range(200):
        ids = generator.choices([*words, *codec.token_texts.cut, *codec.subword_ids(" a dog barks. é rain")], k=9)
        state = TextState(0)
        for token in ids:
            state = tables.advance(state, token)
        text = b"".join(texts[n] for n in ids).decode(errors="replace")
        if any(occurs(phrase, text) for phrase in ("rain", "dog barks")):
            assert tables.left(state) > 0
        else:
            missing = [phrase for phrase in ("a dog", "é") if not occurs(phrase, text)]
            assert (tables.left(state) > 0) == bool(missing)
            assert tables.left(state) < FAR


def test_the_distance_is_the_least_number_of_tokens() -> None:
    codec = TextCodec(make_tokenizer(), "x")
    for phrase in ("dog", "a dog barks", "cat", "xyz", "日", "é1"):
        tables = PhraseTables(codec.token_texts, (phrase,), ())
        spelled = min(len(codec.subword_ids(lead + phrase)) for lead in ("", " "))
        assert 1 <= tables.left(TextState(0)) <= spelled
    assert PhraseTables(codec.token_texts, ("日",), ()).left(TextState(0)) == 3  # no token has it whole
    dog = PhraseTables(codec.token_texts, ("dog",), ())
    state = TextState(0)
    for token in codec.subword_ids("do"):
        state = dog.advance(state, token)
    assert dog.left(state) == 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"must_hold": [""]}, "must_hold=['']: a phrase is empty"),
    ({"avoid": ["a", "  "]}, "a phrase is empty"),
    ({"must_hold": ["red car"], "avoid": ["Car"]}, "must_hold='red car': contains 'Car'"),
    ({"start_with": "A man walks", "avoid": ["man"]}, "start_with='A man walks': contains 'man'"),
    ({"start_with": "A man "}, "begins or ends with a space"),
    ({"must_hold": list("abcdefghi")}, "9 phrases; at most 8"),
    ({"must_hold": "dog"}, "must_hold: 'dog' is no tuple"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_contradictions_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        GenerateOptions(**options)
    assert "\n" not in str(refused.value)


def test_phrases_are_kept_once_and_without_spaces_around() -> None:
    assert GenerateOptions(must_hold=["dog ", "dog", " a  cat"]).must_hold == ("dog", "a  cat")  # pyright: ignore
