"""Chat templates: the turns of a chat model, its begin token, and the text codec of a decoder that answers in a chat.

A chat template is the Jinja text in a tokenizer that writes messages as one text. It is rendered once, for one user's
message and one answer, and split at both:

    <|im_start|>system ... <|im_end|> <|im_start|>user      opening: before the prefix
    PREFIX prompt question                                  the user's message
    <|im_end|> <|im_start|>assistant                        reply: before the answer
    ANSWER <|im_end|>                                       the turn's end
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from mmprefix.decoders.text_codec import TextCodec, special_ids_of
from mmprefix.errors import InputError

_USER, _ANSWER = "0user0", "0answer0"  # words that no template holds
_DAY = "26 Jul 2024"  # for templates that write the date: a prefix is trained behind one and the same text
_TODAY = f"{{% macro strftime_now(format) %}}{_DAY}{{% endmacro %}}"
_SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>", "</s>", "<s>", "<eos>", "<bos>")


@dataclass(frozen=True)
class ChatTurns:
    """Text around the user's message and the answer, and the special token (an id) that ends the answer's turn."""

    opening: str
    reply: str
    space: str  # before the answer
    end: int | None
    marks: frozenset[int]  # special tokens that occur in each turn


def chat_turns(tokenizer: PreTrainedTokenizerBase) -> ChatTurns | None:
    """Turns of the chat template of ``tokenizer``; None without a template, or for one that writes no such chat."""
    words: Any = tokenizer
    if not words.chat_template:
        return None
    messages = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}]
    try:
        template = _TODAY + words.get_chat_template()
        options = {"date_string": _DAY, "enable_thinking": False}
        text = words.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
        opening, rest = text.split(_USER)
        reply, closing = rest.split(_ANSWER)
    except Exception:  # templates raise what they like
        return None
    special = special_ids_of(words)
    ids = [number for number in words(text, add_special_tokens=False)["input_ids"] if number in special]
    after = [number for number in words(closing, add_special_tokens=False)["input_ids"] if number in special]
    marks = frozenset(number for number in ids if ids.count(number) >= len(messages))
    return ChatTurns(opening, reply.rstrip(" "), reply[len(reply.rstrip(" ")) :], next(iter(after), None), marks)


def begin_ids(codec: TextCodec, begin: str | None, turns: ChatTurns | None) -> list[int]:
    """Token ids of what stands for an empty prompt where nothing precedes it: of the text ``begin``, "" for nothing.

    None: chosen by the model's family, that is BOS, else end-of-text, unless this token marks the ``turns`` of a chat.
    Such a mark (SmolLM2's BOS is ``<|im_start|>``) was never seen before plain text; the token between documents was,
    such as ``<|endoftext|>``. Raises InputError for the name of a special token that the tokenizer does not have.
    """
    if begin is None:
        marks = turns.marks if turns is not None else frozenset[int]()
        if marks.isdisjoint(codec.begin):
            return codec.begin
        vocabulary = codec.tokenizer.get_vocab()
        numbers = [vocabulary[name] for name in _SEPARATORS if name in vocabulary]
        return [number for number in numbers if number in codec.special - marks][:1] or codec.begin
    ids = codec.marked_ids(begin)
    if re.fullmatch(r"<\S+>", begin) and len(ids) > 1:
        names = ", ".join(sorted(codec.tokenizer.convert_ids_to_tokens(sorted(codec.special))[:8]))
        raise InputError(f"begin: the tokenizer has no token {begin!r}; its special tokens are {names}")
    return ids


def end_ids(tokenizer: PreTrainedTokenizerBase, generation_config: Any, turns: ChatTurns | None) -> tuple[int, ...]:
    """Special tokens that end a text: the tokenizer's, those of ``generation_config``, the end of a chat's turn."""
    words: Any = tokenizer
    listed = getattr(generation_config, "eos_token_id", None)
    ids: set[Any] = {*(listed if isinstance(listed, list | tuple) else [listed])}
    ids |= {words.eos_token_id, turns.end if turns is not None else None}
    return tuple(sorted(ids & special_ids_of(tokenizer)))


class ChatCodec(TextCodec):
    """Prompts and questions as a user's message, targets as the answer to it.

    Raises InputError for a tokenizer without a chat template, or whose template writes no user and assistant.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, name: str, stop: str | None = None, *, ends: tuple[int, ...] = ()
    ) -> None:
        super().__init__(tokenizer, name, stop, ends=ends)
        turns = chat_turns(tokenizer)
        if turns is None:
            has = "cannot write a user's message and an answer" if self.tokenizer.chat_template else "is missing"
            raise InputError(f"decoder {name!r}: chat: true needs the tokenizer's chat template, which {has}")
        if turns.end is not None:
            self.eos = turns.end
        self.turns = turns
        self.begin = []
        self.opening_ids = tuple(self.marked_ids(turns.opening))

    def question_ids(self, prompt: str, question: str) -> list[int]:
        """Token ids of the rest of the user's message, then those that begin the answer."""
        return [*self.marked_ids(question), *self.marked_ids(self.turns.reply)]

    def target_ids(self, before: str, text: str) -> list[int]:
        """Token ids of an answer, end of its turn included."""
        return super().target_ids("", self.turns.space + text)
