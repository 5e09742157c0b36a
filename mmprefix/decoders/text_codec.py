"""Text codecs: prompts, questions and targets → token ids, and ids → text.

For causal language models, for Whisper (its order of special tokens), and for text models like BART.
"""

from __future__ import annotations

import re
from copy import deepcopy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from mmprefix.errors import InputError, did_you_mean, require_one_of, require_text
from mmprefix.generation.token_texts import TokenTexts, token_bytes

MAX_KEPT_TEXTS = 1 << 17  # texts whose token ids are cached
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # token that is a byte
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"
_CLEANED = re.compile(r"(\s+\S{0,3})?\s*$")  # the latest of " n't", " 've", " ' ", " ." ... with the space before it


def special_ids_of(tokenizer: Any) -> set[int]:
    """Ids of the special tokens of ``tokenizer``."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}


class TextCodec:
    """Subword tokens of a causal language model.

    ``stop``: a text that ends a caption and is kept in it, such as "."; None: the model's end-of-text token ends it.
    ``ends``: more token ids that end a generated text. ``name`` of the model is for error messages. Raises InputError
    if there is neither stop nor end.

    ``begin`` are the ids that stand for an empty prompt where nothing precedes it: at first BOS, else end-of-text.
    """

    opening_ids: tuple[int, ...] = ()  # tokens before every prefix

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, name: str, stop: str | None = None, *, ends: tuple[int, ...] = ()
    ) -> None:
        self.tokenizer: Any = tokenizer  # its calls have no useful types
        self.stop, self.ends = stop, ends
        self.eos: int | None = self.tokenizer.eos_token_id
        if stop is None and self.eos is None:
            raise InputError(f"decoder {name!r}: its tokenizer has no end-of-text token; give stop, such as '.'")
        first = self.eos if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id
        self.begin: list[int] = [] if first is None else [first]
        self._ids: dict[str, list[int]] = {}
        self._marked_ids: dict[str, list[int]] = {}  # of texts that name special tokens
        self._stop_ids: Tensor | None = None

    def subword_ids(self, text: str) -> list[int]:
        """Token ids of ``text`` alone, cached: a text returns every epoch.

        The name of a special token in it is ordinary text, so a caption that holds ``<|endoftext|>`` keeps its words.
        """
        if text not in self._ids:
            require_text("a text for the decoder", text)
            if len(self._ids) >= MAX_KEPT_TEXTS:
                self._ids.clear()
                self._marked_ids.clear()
            ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
            if self._names_special(text, ids):
                self._marked_ids[text] = ids
                plain: list[int] = self._splitting(text, add_special_tokens=False)["input_ids"]
                ids = [part for number in plain for part in self._spelled(number)]
            self._ids[text] = ids
        return [*self._ids[text]]

    def marked_ids(self, text: str) -> list[int]:
        """Token ids of a prompt, a question or ``stop``, where the name of a special token is that token."""
        ids = self.subword_ids(text)
        return [*self._marked_ids.get(text, ids)]

    @cached_property
    def token_texts(self) -> TokenTexts:
        """Texts of all tokens as they stand in a decoded text."""
        return TokenTexts(token_bytes(self.tokenizer, self.special))

    @cached_property
    def special(self) -> set[int]:
        """Ids of the special tokens."""
        return special_ids_of(self.tokenizer)

    def _names_special(self, text: str, ids: list[int]) -> bool:
        """True if one of ``ids`` is a special token that ``text`` names; an unknown word may be one without a name."""
        names = self.tokenizer.convert_ids_to_tokens([number for number in ids if number in self.special])
        return any(name.lower() in text.lower() for name in names)

    def _spelled(self, number: int) -> list[int]:
        """Letters of a special token that the vocabulary itself holds as a piece of text (Unigram); else the token."""
        unknown = self.tokenizer.unk_token_id
        if number not in self.special or number == unknown:
            return [number]
        letters = self.tokenizer.convert_tokens_to_ids(list(self.tokenizer.convert_ids_to_tokens(number)))
        return [number] if None in letters or unknown in letters else letters

    @cached_property
    def _splitting(self) -> Any:
        """Copy of the tokenizer that splits special tokens; a switch on one tokenizer would not be safe in threads."""
        tokenizer = deepcopy(self.tokenizer)
        tokenizer.split_special_tokens = True
        return tokenizer

    def prompt_ids(self, prompt: str, first: bool) -> list[int]:
        """Token ids of a prompt; with ``first`` (nothing precedes it) those of an empty one are ``begin``."""
        return self.marked_ids(prompt) or ([*self.begin] if first else [])

    def question_ids(self, prompt: str, question: str) -> list[int]:
        """Token ids between a prompt and a text."""
        return self.marked_ids(question)

    def target_ids(self, before: str, text: str) -> list[int]:
        """Token ids of a text that follows ``before`` (a question, else a prompt), end of text included."""
        space = " " if before and not before[-1].isspace() and not text[:1].isspace() else ""
        if self.stop is None:
            return [*self.subword_ids(space + text), *self._end()]
        end = self.marked_ids(self.stop)
        if self.special.isdisjoint(end) or not text.endswith(self.stop):
            return self.subword_ids(space + text)
        return [*self.subword_ids(space + text.removesuffix(self.stop)), *end]  # a special token that ends captions

    def choice_ids(self, before: str, text: str) -> list[int]:
        """Token ids of an allowed answer, with ``stop`` appended if the codec has one."""
        return self.target_ids(before, text) + ([] if self.stop is None else self.marked_ids(self.stop))

    def stop_ids(self, exactly: bool = False) -> Tensor:
        """Token ids (any number) that end a text: end-of-text, and every token that contains the ``stop`` text.

        ``exactly``: only the token that equals the ``stop`` text, as in ClipCap's published code.
        """
        if exactly and self.stop is not None:
            ids = self.marked_ids(self.stop)
            if len(ids) != 1:
                raise InputError(f"stop={self.stop!r}: has {len(ids)} tokens, but ranking='clipcap' stops at one token")
            return torch.tensor(ids)
        if self._stop_ids is None:
            ids = [*self._end(), *self.ends]
            if self.stop is not None:
                words = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
                ids += [i for i, word in enumerate(words) if self.stop in word]
                if len(ids) <= (self.eos is not None) + len(self.ends):
                    raise InputError(
                        f"stop={self.stop!r}: no single token of the decoder contains it; choose a shorter one"
                    )
            self._stop_ids = torch.tensor(sorted(set(ids)))
        return self._stop_ids

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def settled_text(self, ids: list[int]) -> str:
        """Start of the text of ``ids`` that no later token changes.

        It lacks parts of characters, a run of single bytes (decoded together), and what cleaning up spaces may join.
        """
        words = self.tokenizer.convert_ids_to_tokens(ids)
        while words and _BYTE.fullmatch(words[-1] or ""):
            words.pop()
        text = self.decode(ids[: len(words)]).rstrip(_UNREADABLE)
        return _CLEANED.sub("", text) if self.tokenizer.clean_up_tokenization_spaces else text.rstrip()

    def count(self, texts: list[str]) -> list[int]:
        """Number of tokens of each text, end of text included."""
        batch = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        plain = [
            self.subword_ids(text) if self._names_special(text, ids) else ids
            for text, ids in zip(texts, batch, strict=True)
        ]
        return [len(ids) + (self.stop is None) for ids in plain]

    def _end(self) -> list[int]:
        """Token id of end-of-text, if the tokenizer has one."""
        return [] if self.eos is None else [self.eos]


class WhisperCodec(TextCodec):
    """``<|startofprev|>``, prompt, question, ``<|startoftranscript|>``, language, task, ``<|notimestamps|>``, answer.

    ``begins`` are the ids from ``<|startoftranscript|>`` to ``<|notimestamps|>``; those of a model of English alone
    name no language and no task. ``language`` is a code or an English name; None: that of the generation ``config``, no
    token where it has none. Raises InputError for an unknown language or task.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, name: str, language: str | None, task: str, *, config: Any = None
    ) -> None:
        super().__init__(tokenizer, name)
        require_one_of("task", task, ("transcribe", "translate"))
        self.name = name
        self.previous, (silent,) = (self.special_ids([word]) for word in ("<|startofprev|>", "<|notimestamps|>"))
        self.english_only = _english_only(config, silent)
        language = _language_of(config, silent, self.tokenizer) if language is None else _bare(language)
        code = None if language is None else TO_LANGUAGE_CODE.get(language, language)
        if code in ("transcribe", "translate"):
            raise InputError(f"decoder {name!r}: language {code!r} is a task; give it as task")
        words = [] if self.english_only else [*([] if code is None else [f"<|{code}|>"]), f"<|{task}|>"]
        if self.english_only and (code not in (None, "en") or task != "transcribe"):
            raise InputError(
                f"decoder {name!r}: this Whisper writes English speech as English text, so that it takes no language "
                f"{language!r} and no task {task!r}; leave them out, or take a model of many languages"
            )
        self.begins = [*self.special_ids(["<|startoftranscript|>", *words]), silent]

    def prompt_ids(self, prompt: str, first: bool) -> list[int]:
        """Token ids of the prompt as preceding text; none for an empty one."""
        return [*self.previous, *self.marked_ids(f" {prompt}")] if prompt else []

    def question_ids(self, prompt: str, question: str) -> list[int]:
        """Token ids of the question, then those that begin an answer."""
        before = self.previous if question and not prompt else []
        return [*before, *(self.marked_ids(f" {question}") if question else []), *self.begins]

    def target_ids(self, before: str, text: str) -> list[int]:
        """Token ids of a text with a space before it, end of text included."""
        return [*self.subword_ids(f" {text}"), *self._end()]

    def count(self, texts: list[str]) -> list[int]:
        """Number of tokens of each text, end of text included."""
        return [len(self.target_ids("", text)) for text in texts]

    def no_speech_ids(self) -> list[int]:
        """Id of the no-speech token, by its newer or older name; empty if the tokenizer has none."""
        return self.special_ids([w for w in ("<|nospeech|>", "<|nocaptions|>") if w in self.tokenizer.get_vocab()][:1])

    def special_ids(self, words: list[str]) -> list[int]:
        """Ids of special tokens. Raises InputError for one that the tokenizer lacks."""
        ids: list[int] = [self.tokenizer.convert_tokens_to_ids(word) for word in words]
        for word, number in zip(words, ids, strict=True):
            if number is None or (number == self.tokenizer.unk_token_id and word != self.tokenizer.unk_token):
                raise InputError(
                    f"decoder {self.name!r}: its tokenizer has no {word}; it is not Whisper's, or lacks this language: "
                    f"give a code or an English name, or none{did_you_mean(_bare(word), TO_LANGUAGE_CODE)}"
                )
        return ids


def _forced_first(config: Any) -> int | None:
    """Id that the generation ``config`` of an older model forces behind ``<|startoftranscript|>``, or None."""
    forced = getattr(config, "forced_decoder_ids", None) or [[0, None]]
    return forced[0][1] if forced[0][0] == 1 else None


def _english_only(config: Any, silent: int) -> bool:
    """True if the generation ``config`` is that of a Whisper of English alone (``whisper-base.en``)."""
    multilingual = getattr(config, "is_multilingual", None)
    return _forced_first(config) == silent if multilingual is None else not multilingual


def _language_of(config: Any, silent: int, tokenizer: Any) -> str | None:
    """Language that the generation ``config`` names, or forces by an id as older ones do; else None."""
    language, forced = getattr(config, "language", None), _forced_first(config)
    if language is None and forced not in (None, silent):
        language = tokenizer.convert_ids_to_tokens(forced)
    return None if language in (None, "", "<|transcribe|>", "<|translate|>") else _bare(language)


def _bare(language: str) -> str:
    return language.lower().removeprefix("<|").removesuffix("|>")


class Seq2SeqCodec(TextCodec):
    """Subword tokens of a text model like BART: its encoder reads the prompt, its decoder start tokens and question.

    ``begins`` are the start token and, if the model has one, a forced first token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, generation_config: Any) -> None:
        super().__init__(tokenizer, name)
        forced = getattr(generation_config, "forced_bos_token_id", None)
        self.begins = [int(generation_config.decoder_start_token_id), *([] if forced is None else [int(forced)])]

    def source_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt for the encoder, special tokens included."""
        return self.tokenizer(prompt)["input_ids"]

    def prompt_ids(self, prompt: str, first: bool) -> list[int]:
        """Empty: the encoder reads the prompt."""
        return []

    def question_ids(self, prompt: str, question: str) -> list[int]:
        """Token ids that begin every text, then those of the question."""
        return [*self.begins, *self.marked_ids(question)]

    def target_ids(self, before: str, text: str) -> list[int]:
        """Token ids of a text, end of text included."""
        return [*self.subword_ids(text), *self._end()]

    def count(self, texts: list[str]) -> list[int]:
        """Number of tokens of each text, end of text included."""
        return [len(self.target_ids("", text)) for text in texts]
