"""Word lists of the Treebank tokeniser: every entry has its effect in a sentence, and Stanford's tokens."""

from __future__ import annotations

import re

import pytest

from mmprefix.metrics.ptb_lists import (
    ABBREVIATIONS,
    APOSTROPHE_WORDS,
    BEFORE_NUMBER,
    CAPITALISED_ABBREVIATIONS,
    SENTENCE_STARTS,
    SPLIT_WORDS,
)
from mmprefix.metrics.ptb_tokenizer import ptb_tokens
from tiny.stanford import stanford


@pytest.mark.parametrize("word", sorted(ABBREVIATIONS))
def test_an_abbreviation_keeps_its_period_in_any_case(word: str) -> None:
    for form in (word, word.upper(), word.capitalize()):
        assert ptb_tokens(f"the {form}. dog") == ["the", f"{word}.", "dog"]
    assert ptb_tokens(f"the {word} dog") == ["the", word, "dog"]
    assert ptb_tokens(f"the {word}x. dog") == ["the", f"{word}x", "dog"]  # part of a longer word


@pytest.mark.parametrize("word", sorted(CAPITALISED_ABBREVIATIONS))
def test_a_capitalised_abbreviation_is_another_word_in_lower_case(word: str) -> None:
    assert ptb_tokens(f"the {word}. dog") == ["the", f"{word.lower()}.", "dog"]
    assert ptb_tokens(f"the {word.upper()}. dog") == ["the", f"{word.lower()}.", "dog"]
    assert ptb_tokens(f"the {word.lower()}. dog") == ["the", word.lower(), "dog"]


@pytest.mark.parametrize("word", sorted(BEFORE_NUMBER))
def test_a_word_before_a_number(word: str) -> None:
    assert ptb_tokens(f"the {word} 5 dogs") == ["the", word, "5", "dogs"]
    assert ptb_tokens(f"the {word.capitalize()} 5 dogs") == ["the", word, "5", "dogs"]
    if word.count(".") == 1 and len(word) > 2:  # a single letter keeps its period as an initial
        assert ptb_tokens(f"the {word} dogs") == ["the", word.removesuffix("."), "dogs"]


@pytest.mark.parametrize("word", sorted(SPLIT_WORDS))
def test_words_written_as_one(word: str) -> None:
    parts = list(SPLIT_WORDS[word])
    assert "".join(parts) == word.replace("’", "'")  # letters are neither lost nor made
    for form in (word.upper(), word.capitalize()):
        assert ptb_tokens(f"i {form} see") == ["i", *(parts if word.isascii() else [word]), "see"]
    assert ptb_tokens(f"i {word} see") == ["i", *parts, "see"]
    assert ptb_tokens(f"{word}.") == parts
    if word.isalpha():
        assert ptb_tokens(f"{word}s") == [f"{word}s"]


@pytest.mark.parametrize("word", [word for word in APOSTROPHE_WORDS if word not in SPLIT_WORDS])
def test_an_apostrophe_inside_a_word(word: str) -> None:
    assert ptb_tokens(f"the {word} dog") == ["the", word, "dog"]
    assert ptb_tokens(f"the {word.upper()} dog") == ["the", word, "dog"]
    assert ptb_tokens(f"the {word}.") == ["the", word]


@pytest.mark.parametrize("word", sorted(SENTENCE_STARTS))
def test_a_sentence_start_ends_the_letter_before_it(word: str) -> None:
    assert ptb_tokens(f"letter B. {word} dog") == ["letter", "b", *ptb_tokens(word), "dog"]
    assert ptb_tokens(f"letter B. {word}ling dog")[:2] == ["letter", "b."]  # only the whole word


def test_entries_have_the_form_that_the_tokeniser_looks_for() -> None:
    """Looked up in lower case and without the period, which the tokeniser adds; no entry decides against another."""
    assert all(word == word.lower() and not word.endswith(".") for word in ABBREVIATIONS)
    assert all(word == word.lower() and word.endswith(".") for word in BEFORE_NUMBER)
    assert all(re.fullmatch("[A-Z][a-z]+", word) for word in CAPITALISED_ABBREVIATIONS)
    assert all(re.fullmatch("[A-Z][a-z]*", word) for word in SENTENCE_STARTS)
    assert not {word.lower() for word in CAPITALISED_ABBREVIATIONS} & ABBREVIATIONS
    assert not {word.removesuffix(".") for word in BEFORE_NUMBER} & ABBREVIATIONS
    assert not set(SPLIT_WORDS) & ABBREVIATIONS


def test_stanford_agrees_on_every_entry() -> None:
    """One sentence with each entry, and one where the same letters are an ordinary word."""
    texts = [f"the {form}. dog" for word in ABBREVIATIONS for form in (word, word.capitalize())]
    texts += [f"the {form}. dog" for word in CAPITALISED_ABBREVIATIONS for form in (word, word.lower(), word.upper())]
    texts += [f"the {word} {after}" for word in BEFORE_NUMBER for after in ("5 dogs", "dogs")]
    texts += [
        f"i {form} see"
        for word in (*SPLIT_WORDS, *APOSTROPHE_WORDS)
        for form in (word, word.upper(), word.capitalize())
    ]
    texts += [f"letter B. {word} dog" for word in SENTENCE_STARTS]
    assert [" ".join(ptb_tokens(text)) for text in texts] == stanford(texts)
