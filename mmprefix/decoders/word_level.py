"""A decoder that writes whole words: a trained output head over a vocabulary built from the captions.

Prefix-AAC (https://arxiv.org/abs/2303.17489) does so where training and test captions come from one data set. The
language model stays frozen and reads each word as the mean of the embeddings of its own tokens for it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.language_model import LanguageModel, Tuning, load_causal, locate
from mmprefix.decoders.text_codec import TextCodec
from mmprefix.errors import InputError
from mmprefix.fast.small_batch_linear import WeightKey
from mmprefix.weights import dry_run, untrusted
from mmprefix.weights.transformers import load_tokenizer

log = logging.getLogger(__name__)

END, UNKNOWN = "<eos>", "<unk>"


def _words(file: str) -> list[str]:
    if dry_run.sizes_only() and not Path(file).exists():
        log.warning(
            "%s is not there yet (recipes/prepare/vocabulary.py writes it): the head is counted without words", file
        )
        return ["!", END]
    return untrusted.read_vocabulary(untrusted.fetch_file(file))


class WordCodec(TextCodec):
    """Words of ``words`` as tokens of a text, numbered from 0; prompts and questions stay in the model's own tokens.

    ``single_stop``: texts are written with one full stop, at the end. Raises InputError where ``<eos>`` is missing.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, name: str, words: list[str], single_stop: bool = False
    ) -> None:
        super().__init__(tokenizer, name, stop="")
        self.words, self.single_stop = words, single_stop
        self.number = {word: i for i, word in enumerate(words)}
        if END not in self.number:
            raise InputError(f"vocabulary: its {len(words)} words lack {END!r}, which ends a text")

    def target_ids(self, before: str, text: str) -> list[int]:
        """The numbers of the words of ``text``, and of the end. Raises InputError for a word that is not among them."""
        unknown = self.number.get(UNKNOWN)
        ids = [self.number.get(word, unknown) for word in text.split()]
        if None in ids:
            word = text.split()[ids.index(None)]
            raise InputError(f"vocabulary: the word {word!r} of {text!r} is not among its {len(self.words)} words")
        return [*(i for i in ids if i is not None), self.number[END]]

    def choice_ids(self, before: str, text: str) -> list[int]:
        """The numbers of the words, and of the end."""
        return self.target_ids(before, text)

    def stop_ids(self, exactly: bool = False) -> Tensor:
        """The number of the word that ends a text."""
        return torch.tensor([self.number[END]])

    def decode(self, ids: list[int]) -> str:
        """The words of ``ids``, joined by spaces."""
        text = " ".join(self.words[i] for i in ids if i != self.number[END])
        return text.replace(".", "") + "." if self.single_stop else text

    def count(self, texts: list[str]) -> list[int]:
        """The number of words of each text, its end included."""
        return [len(text.split()) + 1 for text in texts]

    def pieces(self) -> tuple[Tensor, Tensor]:
        """The model's own tokens for all words, one word after the other (N,), and where each word begins (V,)."""
        pieces = [self.subword_ids(f" {word}") for word in self.words]
        if self.eos is not None:
            pieces[self.number[END]] = [self.eos]
        flat = torch.tensor([i for ids in pieces for i in ids])
        return flat, torch.tensor([0, *map(len, pieces[:-1])]).cumsum(0)


class WordEmbeddings:
    """The embedding of each word (V E): the mean over the model's own tokens for it, behind a space."""

    def __init__(self, language_model: LanguageModel, codec: WordCodec) -> None:
        self.language_model, self.codec = language_model, codec
        self._pieces: tuple[Tensor, Tensor] | None = None
        self._table: tuple[Any, Tensor] | None = None  # the key of the model's embeddings, and those of all words

    def __call__(self, ids: Tensor) -> Tensor:
        """Words (B N) → embeddings (B N E)."""
        return self.table()[ids]

    def forget(self) -> None:
        """Compute the table anew when it is next used."""
        self._table = None

    def table(self) -> Tensor:
        """All embeddings (V E), kept until the model's change."""
        source = self.language_model.lm.get_input_embeddings().weight
        key = WeightKey(source)
        if self._table is not None and self._table[0] == key:
            return self._table[1]
        learns = torch.is_grad_enabled() and source.requires_grad
        with torch.inference_mode(False):  # what is kept may be read by a training later
            if self._pieces is None:
                self._pieces = self.codec.pieces()
            flat, starts = self._pieces
            table = nn.functional.embedding_bag(flat.to(source.device), source, starts.to(source.device), mode="mean")
        if learns:  # it changes with each step
            return table
        self._table = key, table.detach()
        return self._table[1]


class ZeroFirstHead(nn.Linear):
    """An output head (V E') in which word 0 has the logit 0 whatever the weights are."""

    def forward(self, input: Tensor) -> Tensor:
        """Hidden states (... E') → logits (... V)."""
        logits = super().forward(input)
        return logits.index_fill(-1, torch.zeros(1, dtype=torch.long, device=logits.device), 0.0)


class WordDecoder(ComposedDecoder):
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
        folder, identity = locate(model, revision)
        language_model = load_causal(model, folder, dtype)
        tokenizer = load_tokenizer(language_model.lm, model, folder)
        words = _words(vocabulary) if isinstance(vocabulary, str) else list(vocabulary)
        codec = WordCodec(tokenizer, model, words, single_stop=as_published)
        embeddings = None if as_published else WordEmbeddings(language_model, codec)
        if as_published:
            _refuse_unpublished(model, words, language_model.lm.get_input_embeddings().num_embeddings)
        super().__init__(language_model, codec, identity, Tuning(frozen, noisy), embed=embeddings)
        self.init_args["vocabulary"] = words  # a recipe of this decoder needs no file
        self.words, self.word_embeddings = words, embeddings
        head = ZeroFirstHead if as_published else nn.Linear
        self.own_head = head(language_model.head.in_features, len(words), bias=False)
        nn.init.kaiming_uniform_(self.own_head.weight)

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

    def train(self, mode: bool = True) -> Self:
        """As for every decoder; the model's embeddings may have changed meanwhile."""
        if self.word_embeddings is not None:
            self.word_embeddings.forget()
        return super().train(mode)


def _refuse_unpublished(model: str, words: list[str], rows: int) -> None:
    """InputError for words that Prefix-AAC's code cannot read by ``rows`` embeddings, or whose first has no logit."""
    if words[0] in (END, UNKNOWN):
        raise InputError(f"as_published: word 0 has the logit 0 there, and here it is {words[0]!r}; put '!' first")
    if len(words) > rows:
        raise InputError(f"as_published: {len(words)} words, but {model!r} has only {rows} embeddings")
