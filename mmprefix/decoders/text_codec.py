"""Text codec: prompts, questions and targets → token ids, and ids → text."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mmprefix.errors import InputError

MAX_KEPT_TEXTS = 1 << 17  # texts whose tokens are kept


class TextCodec:
    """Subword tokens of a causal language model.

    ``stop``: a text that ends a caption (kept in it), such as "."; None: the model's end-of-text token ends it.
    ``name`` is the model's, for errors. Raises InputError where there is neither.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, stop: str | None = None) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.eos = cast(int | None, tokenizer.eos_token_id)
        if stop is None and self.eos is None:
            raise InputError(f"decoder {name!r}: its tokenizer has no end-of-text token; give stop='.' or the like")
        self._ids: dict[str, list[int]] = {}
        self._stop_ids: Tensor | None = None

    def subword_ids(self, text: str) -> list[int]:
        """The tokens of ``text`` alone. They are kept: a text comes again every epoch."""
        ids = self._ids.get(text)
        if ids is None:
            ids = cast(list[int], self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
            if len(self._ids) >= MAX_KEPT_TEXTS:
                self._ids.clear()
            self._ids[text] = ids
        return [*ids]

    def prompt_ids(self, prompt: str, first: bool) -> list[int]:
        """The tokens of a prompt; ``first`` where nothing was read before: an empty one is the begin-of-text token."""
        begin = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.eos
        return self.subword_ids(prompt) or ([cast(int, begin)] if first and begin is not None else [])

    def question_ids(self, prompt: str, question: str) -> list[int]:
        """The tokens between a prompt and a text."""
        return self.subword_ids(question)

    def target_ids(self, before: str, text: str) -> list[int]:
        """The tokens of a text behind the text ``before`` (a question, else a prompt), its end included."""
        space = " " if before and not before[-1].isspace() and not text[:1].isspace() else ""
        ids = self.subword_ids(space + text)
        return ids if self.stop is not None else [*ids, cast(int, self.eos)]

    def choice_ids(self, before: str, text: str) -> list[int]:
        """The tokens of an allowed answer, ended even where answers are written without ``stop``."""
        return self.target_ids(before, text) + ([] if self.stop is None else self.subword_ids(self.stop))

    def stop_ids(self, exactly: bool = False) -> Tensor:
        """The token ids (any number) that end a text: end-of-text, or every token that completes the ``stop`` text.

        ``exactly``: only the token that is the ``stop`` text and nothing more, as ClipCap's published code has it.
        """
        if exactly and self.stop is not None:
            ids = self.subword_ids(self.stop)
            if len(ids) != 1:
                raise InputError(f"stop={self.stop!r}: is {len(ids)} tokens, and ranking='clipcap' stops at one token")
            return torch.tensor(ids)
        if self._stop_ids is None:
            ids = [] if self.eos is None else [self.eos]
            if self.stop is not None:
                words = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
                ids += [i for i, word in enumerate(words) if self.stop in word]
                if len(ids) <= (self.eos is not None):
                    raise InputError(
                        f"stop={self.stop!r}: no single token of the decoder holds it; choose a shorter one"
                    )
            self._stop_ids = torch.tensor(sorted(set(ids)))
        return self._stop_ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens left out."""
        return cast(str, self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def count(self, texts: list[str]) -> list[int]:
        """The number of tokens of each text, its end included."""
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [len(own) + (self.stop is None) for own in cast(list[list[int]], ids)]
