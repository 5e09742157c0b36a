"""Tokeniser of the COCO caption evaluation: Penn Treebank tokens, in lower case, without punctuation.

The rules are those of the Treebank's tokenisation (Marcus et al. 1993, https://aclanthology.org/J93-2004, and LDC's
guidelines), with the choices behind published caption scores: clitics are words (``do n't``, ``it 's``, ``can not``,
``gon na``); hyphenated words and numbers such as ``5,000`` or ``9:30`` stay whole; an abbreviation keeps its period;
quotes, dashes and sentence punctuation are dropped. Brackets are *not* dropped: the evaluation lists them in upper
case after it has lowered the text, so ``(`` counts as the word ``-lrb-`` in every published score, and in this file.

A text is split at white space. Each piece is read from the left: every rule of ``_RULES`` is tried and the longest
match wins, the earlier rule on a tie. Letters of all alphabets are letters; characters beyond the basic multilingual
plane (emoji) are dropped and split words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache

from mmprefix.metrics.ptb_lists import (
    ABBREVIATIONS,
    APOSTROPHE_WORDS,
    BEFORE_NUMBER,
    CAPITALISED_ABBREVIATIONS,
    SENTENCE_STARTS,
    SPLIT_WORDS,
)

_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_MONEY = {"£": "#", "€": "$", "¤": "$", "₠": "$", "¢": "cents"}
_FRACTIONS = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_ENTITIES = {"&amp;": "&", "&amp": "&", "&lt;": "<", "&gt;": ">", **dict.fromkeys(("&quot;", "&apos;", "&mdash;"), "")}
_SILENT = dict.fromkeys('‘’‛‹›“”«»–—―…\u0091\u0092\u0093\u0094\u0096\u0097‐‑\u00ad"', "") | {"&nbsp;": ""}
_REWRITTEN = _BRACKETS | _MONEY | _FRACTIONS | _ENTITIES | _SILENT

# Superscripts, fractions and circled numbers are word characters in Python, but signs in the Treebank.
_L = r"(?:[^\W\d_²³¹¼-¾\u2070-\u209f\u2150-\u218f\u2460-\u24ff\U00010000-\U0010ffff]|[\u0300-\u036f])"
_A = rf"(?:{_L}|\d)"
_H = r"[-‐‑]"
_Q = "['’\u0092]"
_CLITIC = rf"{_Q}(?:s|m|d|re|ve|ll)(?!{_A})"
_ELISION = (
    rf"(?!{_L}{_CLITIC})(?:(?-i:[A-HJ-XZ]){_Q}{_L}{{2,}}|[dl]{_Q}{_L}+|o{_Q}{_L}{{2,}}|qu{_Q}{_L}+|[cnst]{_Q}[aeiou]{_L}+"
    rf"|{_L}+[aeiouy](?!{_CLITIC}){_Q}(?:[aeiou]|(?-i:[A-Z])){_L}*)(?<!y{_Q}all)"
)
_RUN = rf"{_A}+(?:_{_A}+)*"
_WORD = rf"{_RUN}(?:{_H}{_RUN})*"
_DOTTED = rf"{_L}{_A}*(?:[.]{_L}{_A}*)+(?:{_H}{_RUN})*"
_INITIALS = rf"(?:{_RUN}{_H})*{_L}(?:[.]{_L})+(?!{_A})[.]?(?:{_H}{_RUN})*"
_NUMBER = r"(?:\d*(?:[.,:]\d+)+|\d+)"
_ADDRESS = r"[^\s\"<>|().@]+(?:[.][^\s\"<>|().@]+)*"
_URL_END = r"[^\s\"<>|()]*[^\s\"<>|().!?{},;:'-]"


def _either(words: Iterable[str]) -> str:
    return "(?:" + "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + ")"


_RULES = [
    re.compile(rule, re.IGNORECASE)
    for rule in (
        # words
        _WORD,
        _DOTTED,  # two sentences without a space between them, file names, hosts: one word
        rf"{_L}+[!?]{_L}+",
        rf"{_WORD}(?:/{_WORD}){{1,2}}",
        rf"(?:{_RUN}{_H})*{_ELISION}(?:{_H}{_RUN})*",
        rf"(?:{_RUN}{_H})*{_either(APOSTROPHE_WORDS)}(?!{_A})",
        rf"[yj]{_Q}(?={_L})",
        r"(?-i:[A-Z]+)(?:&amp;|&)(?-i:[A-Z]+)",
        r"c\+\+",
        # words that keep their period: abbreviations, initials, and any word where the period cannot end a sentence
        rf"{_either(ABBREVIATIONS)}[.](?!{_A})",
        rf"(?-i:{_either([*CAPITALISED_ABBREVIATIONS, *map(str.upper, CAPITALISED_ABBREVIATIONS)])})[.](?!{_A})",
        rf"{_INITIALS}",
        rf"{_L}[.]",
        rf"(?!\d+[.])(?:{_WORD}|{_DOTTED})[.](?=[,;:])",
        # clitics
        _CLITIC,
        rf"n(?:{_Q}|`)t{_L}*",
        rf"{_Q}(?:em|till?|cause|n(?!{_A}))",  # also at the start of a quoted word, as in published scores
        rf"{_Q}n{_Q}",
        rf"{_Q}t(?=is(?!{_A})|was(?!{_A}))",
        # numbers
        rf"[-+]?{_NUMBER}",
        rf"{_NUMBER}(?:{_H}{_L}{_A}*)+",
        rf"\d+(?:{_H}\d+)?/\d+(?:{_H}{_L}{_A}*)?",
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
        rf"{_Q}(?:\d0s|\d\d(?![\d.]))",
        # network addresses and names
        rf"https?://{_URL_END}",
        rf"(?:[^\s\"<>|()./]+[.])+(?:com|net|org|edu)(?:/{_URL_END})?(?!{_A})",
        rf"{_ADDRESS}@{_ADDRESS}",
        r"@[A-Za-z]\w*|#[A-Za-z]+",
        # signs
        r"[:;=]'?-?[()DP](?!\w)|\^_\^",
        r"[.]{3,}|[!?]{2,}|-{2,}|[*]+|#+|_+|``|''",
        r"(?-i:[A-Z]{1,2})\$(?!\s)|(?-i:US|HK|NZ)\$",
        r"&(?:(?:amp|lt|gt|quot|apos|nbsp|mdash);|amp)|&#\d+;|&eacute;",
    )
]
_CLITICS = re.compile(rf"{_CLITIC}|n{_Q}t{_L}*|{_Q}(?:em|till?|cause|t)", re.IGNORECASE)
_NEGATED = re.compile(rf"({_L}+?)(?<!n)(n(?:{_Q}|`)t{_L}*)", re.IGNORECASE)
# The few tokens with a space inside: 1 1/2, <b class="x">, (555) 123-4567.
_SPANNING = re.compile(r"((?<![\w.,:/+-])\d+\s\d+/\d+(?!\d)|</?[A-Za-z!][^<>]*>|\(\d{2,3}\)\s?\d{3,4}-\d{4,5})")
_PLAIN = re.compile(r"[A-Za-z]+")
_OPENER = re.compile(rf"(?:{'|'.join(sorted(SENTENCE_STARTS))})(?![A-Za-z.])|Mr[.]")


def _sign(character: str) -> str:
    """Token of a character that no rule matches: itself if it is a printed sign, else (control, emoji) nothing."""
    code = ord(character)
    known = code < 0x590 or 0x2010 <= code < 0x2C00 or 0x3000 <= code < 0x3100 or 0xFF00 <= code < 0xFFF0
    return character if known and unicodedata.category(character)[0] in "PSN" else ""


def _straight(word: str) -> str:
    """Replace typographic apostrophes by the ASCII one."""
    return word.replace("’", "'").replace("\u0092", "'")


def _words_of(token: str) -> list[str]:
    """Words of one match: split or rewritten, or none for punctuation."""
    lowered = token.lower()
    if parts := SPLIT_WORDS.get(lowered if lowered.isascii() else token):
        return list(parts)
    if len(token) > 1 and token[0] in ":;=" and token[-1] in "()":
        return [token[:-1] + _REWRITTEN[token[-1]]]
    word = _REWRITTEN.get(lowered, lowered.replace("&amp;", "&"))
    if _CLITICS.fullmatch(word):
        word = _straight(word)
    return [] if not word or word in _DROPPED or word.startswith(("---", "....")) else [word]


@lru_cache(maxsize=1 << 16)
def _piece(text: str) -> tuple[str, ...]:
    """Words of a piece of text without white space."""
    text = text.replace("\u00ad", "")
    words: list[str] = []
    start = 0
    while start < len(text):
        negated = _NEGATED.match(text, start)
        if negated:
            words += [negated[1].lower(), _straight(negated[2].lower())]
            start = negated.end()
            continue
        end = max((match.end() for rule in _RULES if (match := rule.match(text, start))), default=start)
        if end > start:
            words += _words_of(text[start:end])
        else:
            end = start + 1
            words += _words_of(text[start]) if text[start] in _REWRITTEN else _words_of(_sign(text[start]))
        start = end
    return tuple(words)


def _pieces(part: str) -> list[str]:
    """Split a text at white space; a token with a space inside stays whole, with no-break spaces instead."""
    return [re.sub(r"\s", "\u00a0", part)] if _SPANNING.fullmatch(part) else part.split()


def ptb_tokens(text: str) -> list[str]:
    """Penn Treebank words of ``text``, in lower case, without punctuation: ``"It isn't a dog."`` → it is n't a dog.

    ``tests/metrics/test_ptb_tokenizer.py`` compares them with Stanford's tokeniser as the COCO evaluation runs it.
    """
    words: list[str] = []
    pieces = [piece for part in _SPANNING.split(text) for piece in _pieces(part)]
    for piece, following in zip(pieces, [*pieces, ""][1:], strict=False):
        lowered = piece.lower()
        plain = _PLAIN.fullmatch(piece) and lowered not in SPLIT_WORDS
        if plain or (lowered in BEFORE_NUMBER and following[:1].isdigit()):
            words.append(lowered)
        elif len(piece) == 2 and piece[1] == "." and piece[0].isalpha() and _OPENER.match(following):
            words.append(lowered[0])
        elif "\u00a0" in piece or _SPANNING.fullmatch(piece):
            words.append(lowered.replace("(", "-lrb-").replace(")", "-rrb-") if piece[0] == "(" else lowered)
        else:
            words += _piece(piece)
    return words


def whitespace_tokens(text: str) -> list[str]:
    """Split at white space only: for text that is tokenised already."""
    return text.split()


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {"ptb": ptb_tokens, "none": whitespace_tokens}
"""Values of the option ``tokenize``."""
