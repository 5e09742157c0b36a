"""A pretrained decoder for the benchmarks: where it lies, its matrices, and words that are one token each."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from benchmarks.lib.flops import Matrices, llama_matrices
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.language_model import locate


def locate_named(model: str) -> tuple[Path, Matrices]:
    """Folder and matrices of a decoder of LLaMA's structure, a folder or ``models:NAME``."""
    folder, _ = locate(model, None)
    return folder, llama_matrices(AutoConfig.from_pretrained(folder))


def one_token_words(decoder: ComposedDecoder, count: int) -> list[str]:
    """At most ``count`` words, each of one token at the start of a caption and after a space."""
    codec = decoder.codec
    vocabulary = codec.tokenizer.get_vocab()
    starts = {token[1:] for token in vocabulary if token[:1] in ("Ġ", "▁")}
    words = sorted(word for word in starts & vocabulary.keys() if word.isascii() and word.isalpha() and word.islower())
    chosen: list[str] = []
    for word in words:
        alone, twice = codec.target_ids("", word), codec.target_ids("", f"{word} {word}")
        if len(alone) == 2 and len(twice) == 3:  # the end of text is a token too
            chosen.append(word)
    return chosen[:count]
