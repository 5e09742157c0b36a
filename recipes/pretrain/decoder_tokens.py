"""Texts as one stream of token ids to train a language model on: tokenizer, windows, weights of the loss.

The tokenizer is a byte-level BPE as in GPT-2 (Radford et al., 2019). Texts of one group, such as the captions of one
picture, stand side by side in the stream.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"

Text = str | Sequence[str]
"""One text, or a group of texts with one meaning."""


def read_texts(files: Sequence[Path], split: str | None = None) -> Iterator[Text]:
    """Texts of plain files (one a line) and manifests (.jsonl: ``captions``, or ``target``; one group a row).

    ``split`` keeps only the rows of that split; rows without the key always count.
    """
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for line in filter(None, map(str.strip, lines)):
                if file.suffix != ".jsonl":
                    yield line
                    continue
                row = json.loads(line)
                if split is None or row.get("split", split) == split:
                    yield [text for text in row.get("captions") or [row.get("target", "")] if text]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most ``vocab_size`` entries; any text can be written with it.

    Raises ValueError below 257 entries.
    """
    if vocab_size < 257:
        raise ValueError(f"vocab_size {vocab_size}: 256 bytes and {END} already take 257")
    tokenizer: Any = Tokenizer(models.BPE())  # whose stubs know its parts as read-only
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END)


def end_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Id of the end token, which also stands before the first text."""
    end = tokenizer.eos_token_id
    assert isinstance(end, int)
    return end


def stream(
    groups: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerFast, row: int | None = None
) -> tuple[Tensor, Tensor]:
    """Token ids (N,) of all texts, an end token before and after each, and the indices (S,) where windows may begin.

    They begin with a group or, if ``row`` is not None, with each row of so many tokens. A row holds whole groups (one
    that is longer than a row is cut) and is filled up with end tokens.
    """
    end = end_id(tokenizer)
    ids, starts = [end], []
    for group in groups:
        lines = [[*line, end] for line in tokenizer(list(group))["input_ids"]] if group else []
        tokens = [token for line in lines for token in line]
        if row is None:
            starts.append(len(ids) - 1)
        else:
            tokens = tokens[: row - 1]
            used = len(ids) % row or row
            if used + len(tokens) > row:
                ids += [end] * (row - used + 1)
        ids += tokens
    if row is not None:
        ids += [end] * (-len(ids) % row)
        starts = range(0, len(ids), row)
    return torch.tensor(ids), torch.tensor(starts)


def weights(ids: Tensor, tokenizer: PreTrainedTokenizerFast, answers: str | None, rest: float) -> Tensor:
    """Weight in the loss of each token of a stream (N,): 1, and ``rest`` outside of the answers behind ``answers``.

    An answer lasts to the end of its text. An end token that follows another only fills a row and weighs nothing.
    """
    end = ids == end_id(tokenizer)
    after_end = torch.cat([end.new_ones(1), end[:-1]])
    weight = torch.ones(len(ids))
    if answers is not None:
        mark = torch.tensor(tokenizer(answers)["input_ids"])
        index = torch.arange(len(ids))
        marked = torch.zeros(len(ids), dtype=torch.bool)
        marked[len(mark) - 1 :] = (ids.unfold(0, len(mark), 1) == mark).all(1)
        last_mark = torch.where(marked, index, -1).cummax(0).values
        last_end = torch.where(after_end, index - 1, -1).cummax(0).values
        weight[(last_mark <= last_end) | marked] = rest
    weight[end & after_end] = 0
    return weight


@dataclass(frozen=True)
class TokenWindows:
    """Windows of ``size`` tokens of a stream: its ids and weights (N,), and the starts (S,) of whole windows."""

    ids: Tensor
    weight: Tensor
    starts: Tensor
    size: int

    def at(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and weights (B size each) of the windows that begin at ``starts`` (B,)."""
        indices = starts[:, None] + torch.arange(self.size)
        return self.ids[indices], self.weight[indices]
