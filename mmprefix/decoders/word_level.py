"""Word-level decoder: a trained output head over a vocabulary of whole words, built from the captions.

Prefix-AAC (https://arxiv.org/abs/2303.17489) uses one when training and test captions come from the same data set. The
language model stays frozen; its input for a word is the mean embedding of its own tokens for that word.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mmprefix.decoders.chat import begin_ids, chat_turns
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.language_model import LanguageModel, Tuning, load_causal, locate
from mmprefix.decoders.text_codec import TextCodec
from mmprefix.errors import InputError
from mmprefix.fast.small_batch_linear import WeightKey
from mmprefix.generation.token_texts import TokenTexts
from mmprefix.weights import dry_run, untrusted
from mmprefix.weights.transformers import load_tokenizer

log = logging.getLogger(__name__)

END, UNKNOWN = "<eos>", "<unk>"


def _read_words(file: str) -> list[str]:
    """Words of a vocabulary file; a placeholder in a dry run without the file."""
    if dry_run.sizes_only() and not Path(file).exists():
        log.warning(
            "%s does not exist yet (recipes/prepare/vocabulary.py writes it): the head is counted without words", file
        )
        return ["!", END]
    return untrusted.read_vocabulary(untrusted.fetch_file(file))


class WordCodec(TextCodec):
    """Texts as indices into ``words``; prompts and questions as the model's own tokens.

    ``single_stop``: decoded texts have one full stop, at the end. Raises InputError if ``<eos>`` is missing.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, name: str, words: list[str], single_stop: bool = False
    ) -> None:
        super().__init__(tokenizer, name, stop="")
        self.words, self.single_stop = words, single_stop
        self.number = {word: i for i, word in enumerate(words)}
        if END not in self.number:
            raise InputError(f"vocabulary: its {len(words)} words lack {END!r}, which ends a text; add it")

    def target_ids(self, before: str, text: str) -> list[int]:
        """Indices of the words of ``text``, then of ``<eos>``. Raises InputError for a word not in the vocabulary."""
        unknown = self.number.get(UNKNOWN)
        ids = [unknown if word == END else self.number.get(word, unknown) for word in text.split()]  # END ends a text
        if None in ids:
            word = text.split()[ids.index(None)]
            raise InputError(f"vocabulary: the word {word!r} of {text!r} is not among its {len(self.words)} words")
        return [*(i for i in ids if i is not None), self.number[END]]

    def choice_ids(self, before: str, text: str) -> list[int]:
        """Indices of the words of ``text``, then of ``<eos>``."""
        return self.target_ids(before, text)

    def stop_ids(self, exactly: bool = False) -> Tensor:
        """Index of ``<eos>``."""
        return torch.tensor([self.number[END]])

    def decode(self, ids: list[int]) -> str:
        """Words at ``ids``, joined by spaces."""
        text = " ".join(self.words[i] for i in ids if i != self.number[END])
        return text.replace(".", "") + "." if self.single_stop else text

    @cached_property
    def token_texts(self) -> TokenTexts:
        """Each word with a space before it; ``<eos>`` has no text."""
        words = [word.replace(".", "") if self.single_stop else word for word in self.words]
        return TokenTexts([b"" if i == self.number[END] else f" {word}".encode() for i, word in enumerate(words)])

    def settled_text(self, ids: list[int]) -> str:
        """Words at ``ids``, without the full stop at the end."""
        text = self.decode(ids)
        return text.removesuffix(".") if self.single_stop else text

    def count(self, texts: list[str]) -> list[int]:
        """Number of words of each text, ``<eos>`` included."""
        return [len(text.split()) + 1 for text in texts]

    def subwords(self) -> tuple[Tensor, Tensor]:
        """The model's own token ids of all words, concatenated (N,), and the offset of each word (V,)."""
        subwords = [self.marked_ids(f" {word}") for word in self.words]
        if self.eos is not None:
            subwords[self.number[END]] = [self.eos]
        flat = torch.tensor([i for ids in subwords for i in ids])
        return flat, torch.tensor([0, *map(len, subwords[:-1])]).cumsum(0)


class WordEmbeddings:
    """Embedding of each word (V E): mean over the model's own tokens for the word with a space before it."""

    def __init__(self, language_model: LanguageModel, codec: WordCodec) -> None:
        self.language_model, self.codec = language_model, codec
        self._subwords: tuple[Tensor, Tensor] | None = None
        self._table: tuple[Any, Tensor] | None = None  # key of the model's embeddings, and table

    def __call__(self, ids: Tensor) -> Tensor:
        """Words (B N) → embeddings (B N E)."""
        return self.table()[ids]

    def forget(self) -> None:
        """Compute the table anew when it is next used."""
        self._table = None

    def table(self) -> Tensor:
        """Embeddings of all words (V E), cached until the model's embeddings change."""
        source = self.language_model.lm.get_input_embeddings().weight
        key = WeightKey(source)
        if self._table is not None and self._table[0] == key:
            return self._table[1]
        needs_grad = torch.is_grad_enabled() and source.requires_grad
        with torch.inference_mode(False):  # a cached table may be used in training later
            if self._subwords is None:
                self._subwords = self.codec.subwords()
            flat, starts = self._subwords
            table = nn.functional.embedding_bag(flat.to(source.device), source, starts.to(source.device), mode="mean")
        if needs_grad:  # the table changes with each step
            return table
        self._table = key, table.detach()
        return self._table[1]


class ZeroFirstHead(nn.Linear):
    """Output head (V E') in which the logit of word 0 is always 0."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (as ``nn.Linear`` names it)
        """Hidden states (... E') → logits (... V)."""
        logits = super().forward(input)
        return logits.index_fill(-1, torch.zeros(1, dtype=torch.long, device=logits.device), 0.0)


class WordDecoder(ComposedDecoder):
    """Frozen causal language model with a trained head over the words of ``vocabulary``.

    Args:
        model: a folder, ``mmprefix:NAME`` or a hub name.
        vocabulary: a file with one word per line (or a JSON list), or the words themselves. They must include
            ``<eos>``, which ends a text; ``<unk>`` replaces unknown words of training captions. Words are separated by
            spaces and keep their punctuation. A saved model contains its words.
        revision: the hub's branch, tag or commit.
        frozen: False trains the language model too; it is then saved with the trained parts.
        dtype: dtype of the weights.
        noisy: keep the dropout of a frozen model active in training.
        as_published: as in Prefix-AAC's code, the input for word i is row i of the model's own embeddings (those of
            unrelated tokens), the logit of word 0 is 0, and decoded texts have one full stop, at the end. Only for
            their checkpoints, and to measure the effect.
    """

    def __init__(
        self,
        model: str,
        vocabulary: str | list[str],
        revision: str | None = None,
        *,
        frozen: bool = True,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        noisy: bool = False,
        as_published: bool = False,
    ) -> None:
        folder, identity = locate(model, revision)
        language_model = load_causal(model, folder, dtype)
        tokenizer = load_tokenizer(language_model.lm, model, folder)
        words = _read_words(vocabulary) if isinstance(vocabulary, str) else list(vocabulary)
        codec = WordCodec(tokenizer, model, words, single_stop=as_published)
        codec.begin = begin_ids(codec, None, chat_turns(tokenizer))
        embeddings = None if as_published else WordEmbeddings(language_model, codec)
        if as_published:
            _refuse_unpublished(model, words, language_model.lm.get_input_embeddings().num_embeddings)
        super().__init__(language_model, codec, identity, Tuning(frozen, noisy), embed=embeddings)
        self.init_args["vocabulary"] = words  # a recipe of this decoder needs no file
        self.words, self.word_embeddings = words, embeddings
        head = ZeroFirstHead if as_published else nn.Linear
        self.own_head = head(language_model.hidden_width, len(words), bias=False)
        nn.init.kaiming_uniform_(self.own_head.weight)

    def remap_saved(self, tensors: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
        """Assign the rows of a saved head by word; words without a saved row keep their initial one."""
        name, before = "decoder.own_head.weight", options.get("vocabulary")
        if name not in tensors or not before:
            return tensors
        row = {word: i for i, word in enumerate(before)}
        pairs = [(i, row[word]) for i, word in enumerate(self.words) if word in row]
        weight = self.get_parameter("own_head.weight").detach().clone()
        if pairs:
            own_rows, saved_rows = (list(indices) for indices in zip(*pairs, strict=True))
            weight[own_rows] = tensors[name][saved_rows].to(weight)
        return {**tensors, name: weight}

    def train(self, mode: bool = True) -> Self:
        """Set the mode as every decoder does; the word embeddings are computed anew, for the model may have changed."""
        if self.word_embeddings is not None:
            self.word_embeddings.forget()
        return super().train(mode)


def _refuse_unpublished(model: str, words: list[str], rows: int) -> None:
    """Raise InputError for words that ``rows`` embeddings cannot represent, and a special token as word 0."""
    if words[0] in (END, UNKNOWN):
        raise InputError(f"as_published: the logit of word 0 is fixed at 0, and word 0 is {words[0]!r}; put '!' first")
    if len(words) > rows:
        raise InputError(f"as_published: {len(words)} words, but {model!r} has only {rows} embeddings")
