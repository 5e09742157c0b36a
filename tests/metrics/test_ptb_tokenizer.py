"""Treebank tokens: the documented rules, and Stanford's program on real captions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from mmprefix.metrics.ptb_tokenizer import TOKENIZERS, ptb_tokens, whitespace_tokens
from tiny.stanford import stanford

SHARED = Path(__file__).resolve().parents[3] / "shared"
FIXTURE = SHARED / "parity" / "caption_scores.json"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's dog isn't barking, is it?", "a man 's dog is n't barking is it"),
        ("I'm sure they'll say we've won; I'd go", "i 'm sure they 'll say we 've won i 'd go"),
        ("Don’t! It’s theirs’", "do n't it 's theirs"),
        ("cannot gonna wanna gotta 'tis 'twas", "can not gon na wan na got ta 't is 't was"),
        ("A T-shirt, mother-in-law's x-ray", "a t-shirt mother-in-law 's x-ray"),
        ("at 9:30 a.m. for $5,000.50 or 10%", "at 9:30 a.m. for $ 5,000.50 or 10 %"),
        ("Mr. Smith vs. Dr. Jones, e.g. in the U.S. Army.", "mr. smith vs. dr. jones e.g. in the u.s. army"),
        ("\"Quoted\" ``words'' and “these” ‘too’", "quoted words and these too"),
        ("(aside) [music] {x}", "-lrb- aside -rrb- -lsb- music -rsb- -lcb- x -rcb-"),
        ("well... yes -- no… a--b, a – b — c", "well yes no a b a b c"),
        ("1 1/2 men, 3/4 full, ½", "1\u00a01/2 men 3/4 full 1/2"),
        ("and/or black/white/red", "and/or black/white/red"),
        ("five o'clock, d'oeuvre O'Brien ma'am", "five o'clock d'oeuvre o'brien ma'am"),
        ("A clear vase. Letter B. The end", "a clear vase letter b the end"),
        ("they said no. But no. 5 won", "they said no but no. 5 won"),
        ("£5 €6 5¢ 100 °C", "# 5 $ 6 5 cents 100 ° c"),
        ("wind & rain &amp; R&B &lt;", "wind & rain & r&b <"),
        ("the '90s, 1990's, 1st, 50's", "the '90s 1990 's 1st 50 's"),
        ("dog 🐶 soft\u00adhyphen zero\u200bwidth", "dog softhyphen zero width"),
        ("see http://example.org/a_b, www.example.com", "see http://example.org/a_b www.example.com"),
        ("Really?! Yes!! #tag @user star*star", "really ?! yes !! #tag @user star * star"),
        ("Füße in der Straße, café", "füße in der straße café"),
    ],
)
def test_documented_rules(text: str, words: str) -> None:
    assert ptb_tokens(text) == words.split(" ")


@pytest.mark.parametrize("text", ["", " \t\n ", ".", "...", "'", '" "', "\u200b"])
def test_nothing_but_punctuation_has_no_words(text: str) -> None:
    assert ptb_tokens(text) == []


def test_any_string_is_read_to_its_end() -> None:
    # Every character is consumed, no token is empty or holds a plain space, whatever the string.
    rng = random.Random(7)
    alphabet = "aB9 .,'’\"-_/&;:!?()[]{}<>#@$%*+=~^|\\`“”…½🐶\u0301\u00a0\u00ad\n日é"
    for _ in range(3000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(25)))
        words = ptb_tokens(text)
        assert all(word and word == word.lower() and not set(word) & set(" \n\t") for word in words), text
        letters = sum(character in "aB9日é" for character in text)
        assert sum(character in "ab9日é" for word in words for character in word) >= letters, text


def test_words_of_words_are_the_same_words() -> None:
    words = ptb_tokens("A man's dog isn't barking at 9:30 a.m. in St. Louis, and/or the U.S.")
    assert ptb_tokens(" ".join(words)) == words


def test_white_space_only() -> None:
    assert whitespace_tokens("  A dog's  bark. ") == ["A", "dog's", "bark."]
    assert set(TOKENIZERS) == {"ptb", "none"}


def test_the_recorded_tokens_of_400_items() -> None:
    if not FIXTURE.is_file():
        pytest.skip(f"no {FIXTURE}")
    items = json.loads(FIXTURE.read_text(encoding="utf-8"))["items"]
    pairs = [(text, words) for item in items for text, words in _recorded(item)]
    wrong = [(text, words) for text, words in pairs if " ".join(ptb_tokens(text)) != words]
    assert len(pairs) > 1800
    assert wrong == []


def _recorded(item: dict) -> list[tuple[str, str]]:
    references = zip(item["references"], item["reference_tokens"], strict=True)
    return [(item["prediction"], item["prediction_tokens"]), *references]


def _captions(number: int) -> list[str]:
    folder = SHARED / "data" / "captions"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    texts = []
    for name in ("audiocaps_val", "clotho_development", "coco_val2017", "multi30k_en", "nlvr2_writers"):
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
        texts += [text for line in lines if line for text in json.loads(line)["captions"]]
    return random.Random(11).sample(texts, number)


def _agreement(texts: list[str]) -> float:
    pairs = zip(texts, stanford(texts), strict=True)
    return sum(" ".join(ptb_tokens(text)) == words for text, words in pairs) / len(texts)


def test_stanford_agrees_on_real_captions() -> None:
    assert _agreement(_captions(8000)) >= 0.9995


def test_stanford_agrees_on_captions_with_scattered_punctuation() -> None:
    rng = random.Random(12)

    def scattered(text: str) -> str:
        words = [rng.choice(["", "", "", ",", ".", "-", '"', "("]) + word for word in text.split()]
        ends = ["", "", "", "", ",", ".", "...", "!", "?", ";", "'s", "n't", "’s", "'", ")", " --", ".,"]
        return " ".join(word + rng.choice(ends) for word in words)

    assert _agreement([scattered(text) for text in _captions(3000)]) >= 0.99
