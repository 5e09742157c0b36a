"""Texts of a vocabulary's tokens as bytes, and in arrays over which an automaton runs for all tokens at once."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mmprefix.generation.phrase_tables import PhraseTables

_BYTE = re.compile("<0x([0-9A-F]{2})>")


class TokenTexts:
    """``texts``: the bytes that each token adds to a text; b"" for special tokens, which are not shown.

    ``whole`` (V,): True where they are complete characters; others are ``cut`` (a part of a character). ``codes`` are
    the casefolded characters of the tokens in ``order`` (longest first), each from its ``start`` on. ``tables`` are
    those of the latest phrases. ``spells_bytes``: any character can be written byte by byte.
    """

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = list(texts)
        decoded = [_decoded(text) for text in self.texts]
        self.whole = np.array([text is not None for text in decoded])
        self.cut = [number for number, text in enumerate(decoded) if text is None]
        self.silent = [number for number, text in enumerate(self.texts) if not text]
        self.spells_bytes = {bytes([n]) for n in range(256)} - {b"\xc0", b"\xc1"} <= {*self.texts}
        folded = [(text or "").casefold() for text in decoded]
        self.lengths = np.array([len(text) for text in folded])
        self.order = np.argsort(-self.lengths, kind="stable")
        ordered = [folded[int(number)] for number in self.order]
        self.start = np.concatenate([[0], np.cumsum(self.lengths[self.order])[:-1]])
        joined = np.frombuffer("".join(ordered).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        self.characters, self.codes = np.unique(joined, return_inverse=True)  # codes index characters
        self.tables: OrderedDict[tuple[tuple[str, ...], tuple[str, ...]], PhraseTables] = OrderedDict()

    def letters(self) -> list[str]:
        """The different casefolded characters of all tokens, by code."""
        return [chr(number) for number in self.characters.tolist()]


def _decoded(text: bytes) -> str | None:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return None


def token_bytes(tokenizer: Any, special: Iterable[int]) -> list[bytes]:
    """Bytes that each token of ``tokenizer`` adds to a text behind other words; b"" for ``special`` ones."""
    hidden, count = set(special), len(tokenizer)
    words: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(count)))
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    kinds = re.findall(r'"type": ?"(\w+)"', json.dumps(json.loads(decoder.__getstate__()))) if decoder else []
    if kinds == ["ByteLevel"]:
        added = {number: str(token.content) for number, token in tokenizer.added_tokens_decoder.items()}
        letters = _byte_letters()
        texts = [
            added[n].encode() if n in added else bytes(letters[c] for c in word or "" if c in letters)
            for n, word in enumerate(words)
        ]
    else:
        texts = [text.encode() for text in _between(tokenizer, words, hidden)]
        if "ByteFallback" in kinds:
            bytes_of = [_BYTE.fullmatch(word or "") for word in words]
            texts = [bytes.fromhex(m[1]) if m else text for m, text in zip(bytes_of, texts, strict=True)]
    return [b"" if number in hidden else text for number, text in enumerate(texts)]


def _byte_letters() -> dict[str, int]:
    """Letter of a byte-level vocabulary → byte: printable ones stand for themselves, the others follow from 256 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _between(tokenizer: Any, words: Sequence[str | None], hidden: set[int]) -> list[str]:
    """Text that each token adds between two equal words: at the start of a text some decoders write it otherwise."""
    decode = getattr(tokenizer, "backend_tokenizer", tokenizer).decode
    letters = (n for n, word in enumerate(words) if n not in hidden and word and decode([n]).strip().isalpha())
    anchor = next((n for n in letters if words[n] and str(words[n]).isascii()), None) or next(letters, 0)
    first = decode([anchor])
    tail = decode([anchor, anchor])[len(first) :]
    texts: list[str] = []
    for number in range(len(words)):
        whole = decode([anchor, number, anchor])
        texts.append(whole[len(first) : len(whole) - len(tail)] if number not in hidden else "")
    return texts


def letter_ids(tokenizer: Any, special: set[int]) -> list[int]:
    """Ids of all tokens whose text has a letter, in the order of the vocabulary, without ``special`` ones."""
    texts: list[str] = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    return [i for i, text in enumerate(texts) if i not in special and any(map(str.isalpha, text))]
