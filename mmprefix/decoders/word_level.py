"""A decoder that writes in whole words of its own: a trained output head over a vocabulary built from the captions.

Prefix-AAC (https://arxiv.org/abs/2303.17489) does so where training and test captions come from one data set. The
language model stays frozen and reads each word as the mean of the embeddings of its own tokens for it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.fast.small_batch_linear import Content
from mmprefix.weights import dry_run, untrusted

log = logging.getLogger(__name__)

END, UNKNOWN = "<eos>", "<unk>"


def _words(file: str) -> list[str]:
    if dry_run.sizes_only() and not Path(file).exists():
        log.warning(
            "%s is not there yet (recipes/prepare/vocabulary.py writes it): the head is counted without words", file
        )
        return ["!", END]
    return untrusted.read_vocabulary(untrusted.fetch_file(file))


class WordDecoder(CausalDecoder):
    """A frozen causal language model with a trained head over ``vocabulary``.

    Args:
        model, revision, frozen, dtype, noisy: as for ``CausalDecoder``.
        vocabulary: a file with a word a line (or a JSON list), or the words themselves. ``<eos>`` must be among them
            and ends a text; ``<unk>`` stands for words of training captions that are not there. Words are what spaces
            part, punctuation included. A saved model holds its words.
        as_published: Prefix-AAC's code reads word number i by row i of the model's own embeddings, which are those of
            unrelated tokens; takes 0 for the logit of word 0; and writes texts with one full stop, at the end. Only
            for checkpoints of theirs, and to measure what it costs.
    """

    _embeddings: tuple[Any, Tensor] | None = None  # what the model's own were like, and those of all words
    _tokens: tuple[Tensor, Tensor] | None = None  # of all words

    def __init__(
        self,
        model: str,
        vocabulary: str | list[str],
        revision: str | None = None,
        frozen: bool = True,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        noisy: bool = False,
        as_published: bool = False,
    ) -> None:
        super().__init__(model, revision, stop="", frozen=frozen, dtype=dtype, noisy=noisy)
        self.words = _words(vocabulary) if isinstance(vocabulary, str) else list(vocabulary)
        self.init_args["vocabulary"] = self.words  # what is written down needs no file
        self.as_published = as_published
        self.number = {word: i for i, word in enumerate(self.words)}
        if END not in self.number:
            raise InputError(f"vocabulary: its {len(self.words)} words lack {END!r}, which ends a text")
        if as_published and self.words[0] in (END, UNKNOWN):
            raise InputError(
                f"as_published: word 0 has the logit 0 there, and here it is {self.words[0]!r}; put '!' first"
            )
        rows = self.lm.get_input_embeddings().num_embeddings
        if as_published and len(self.words) > rows:
            raise InputError(f"as_published: {len(self.words)} words, but {model!r} has only {rows} embeddings")
        self.own_head = nn.Linear(self.lm.get_output_embeddings().in_features, len(self.words), bias=False)
        nn.init.kaiming_uniform_(self.own_head.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (... E') → logits (... V) over the words."""
        logits = super().logits(hidden)
        if not self.as_published:
            return logits
        return logits.index_fill(-1, torch.zeros(1, dtype=torch.long, device=logits.device), 0.0)

    def output_matrix(self) -> nn.Linear | None:
        """None where word 0 is another than the head says."""
        return None if self.as_published else super().output_matrix()

    def embed(self, ids: Tensor) -> Tensor:
        """Words (B N) → what the model reads (B N E)."""
        return self._embed(ids) if self.as_published else self._word_embeddings()[ids]

    def stop_ids(self, exactly: bool = False) -> Tensor:
        """The number of the word that ends a text."""
        return torch.tensor([self.number[END]], device=self._device)

    def remap_saved(self, tensors: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
        """A saved head's rows, each to the word it was for; words that it lacks keep the rows that they have."""
        assert self.own_head is not None
        name, before = "decoder.own_head.weight", options.get("vocabulary")
        if name not in tensors or not before:
            return tensors
        row = {word: i for i, word in enumerate(before)}
        known = [(i, row[word]) for i, word in enumerate(self.words) if word in row]
        weight = self.own_head.weight.detach().clone()
        if known:
            to, of = (list(numbers) for numbers in zip(*known, strict=True))
            weight[to] = tensors[name][of].to(weight)
        return {**tensors, name: weight}

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Words, and the end."""
        return [len(text.split()) + 1 for text in texts]

    def _target_ids(self, prompt: str, text: str) -> list[int]:
        unknown = self.number.get(UNKNOWN)
        ids = [self.number.get(word, unknown) for word in text.split()]
        if None in ids:
            word = text.split()[ids.index(None)]
            raise InputError(f"vocabulary: the word {word!r} of {text!r} is not among its {len(self.words)} words")
        return [*(i for i in ids if i is not None), self.number[END]]

    def _text(self, ids: list[int]) -> str:
        text = " ".join(self.words[i] for i in ids if i != self.number[END])
        return text.replace(".", "") + "." if self.as_published else text

    def _word_embeddings(self) -> Tensor:
        """The embedding of each word (V E): the mean over the model's own tokens for it, behind a space."""
        source = self.lm.get_input_embeddings().weight
        content = Content(source)
        if self._embeddings is not None and self._embeddings[0] == content:
            return self._embeddings[1]
        flat, starts = self._pieces()
        learns = torch.is_grad_enabled() and source.requires_grad
        with torch.inference_mode(False):  # what is kept may be read by a training later
            table = nn.functional.embedding_bag(flat.to(source.device), source, starts.to(source.device), mode="mean")
        if learns:  # it is another after each step
            return table
        self._embeddings = content, table.detach()
        return self._embeddings[1]

    def _pieces(self) -> tuple[Tensor, Tensor]:
        """The model's own tokens for all words, one word after the other (N,), and where each word begins (V,)."""
        if self._tokens is None:
            pieces = [self._ids(f" {word}") for word in self.words]
            if self.eos is not None:
                pieces[self.number[END]] = [self.eos]
            with torch.inference_mode(False):
                flat = torch.tensor([i for ids in pieces for i in ids])
                self._tokens = flat, torch.tensor([0, *map(len, pieces[:-1])]).cumsum(0)
        return self._tokens

    def train(self, mode: bool = True) -> Self:
        """As for ``CausalDecoder``; the model's embeddings may have changed meanwhile."""
        self._embeddings = None
        return super().train(mode)
