"""Text codecs of encoder-decoders: Whisper's order of special tokens, and that of text models like BART."""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from mmprefix.decoders.text_codec import TextCodec
from mmprefix.errors import InputError


class WhisperCodec(TextCodec):
    """``<|startofprev|>`` prompt and question, then ``<|startoftranscript|>``, language, task and ``<|notimestamps|>``.

    The answer follows. ``begins`` are the tokens from ``<|startoftranscript|>`` on. Raises InputError where the
    tokenizer lacks one of them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, language: str | None, task: str) -> None:
        super().__init__(tokenizer, name)
        self.name = name
        spoken = [] if language is None else [f"<|{language}|>"]
        self.previous = self.special_ids(["<|startofprev|>"])
        self.begins = self.special_ids(["<|startoftranscript|>", *spoken, f"<|{task}|>", "<|notimestamps|>"])

    def prompt_ids(self, prompt: str, first: bool) -> list[int]:
        """The prompt as text that came before; nothing for an empty one."""
        return [*self.previous, *self.subword_ids(f" {prompt}")] if prompt else []

    def question_ids(self, prompt: str, question: str) -> list[int]:
        """The question behind the prompt, then the tokens that begin an answer."""
        before = self.previous if question and not prompt else []
        return [*before, *(self.subword_ids(f" {question}") if question else []), *self.begins]

    def target_ids(self, before: str, text: str) -> list[int]:
        """The tokens of a text, which begins with a space, and of its end."""
        return [*self.subword_ids(f" {text}"), cast(int, self.eos)]

    def count(self, texts: list[str]) -> list[int]:
        """The number of tokens of each text, its end included."""
        return [len(self.target_ids("", text)) for text in texts]

    def no_speech_ids(self) -> list[int]:
        """The token that says that there is no speech, by its newer or older name; none where it has none."""
        words = [w for w in ("<|nospeech|>", "<|nocaptions|>") if w in self.tokenizer.get_vocab()]
        return self.special_ids(words[:1])

    def special_ids(self, words: list[str]) -> list[int]:
        """The ids of special tokens. Raises InputError for one that the tokenizer lacks."""
        ids = [cast(int | None, self.tokenizer.convert_tokens_to_ids(word)) for word in words]
        unknown = self.tokenizer.unk_token_id
        for word, number in zip(words, ids, strict=True):
            if number is None or (number == unknown and word != self.tokenizer.unk_token):
                raise InputError(
                    f"decoder {self.name!r}: its tokenizer has no {word}; it is not Whisper's, or not of "
                    "this language (null where the model knows one language only)"
                )
        return cast(list[int], ids)


class Seq2SeqCodec(TextCodec):
    """A text model's encoder reads the prompt, its decoder start tokens and the question.

    ``begins`` are the start token and, where the model has one, a forced first token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, generation_config: Any) -> None:
        super().__init__(tokenizer, name)
        forced = getattr(generation_config, "forced_bos_token_id", None)
        self.begins = [int(generation_config.decoder_start_token_id), *([] if forced is None else [int(forced)])]

    def source_ids(self, prompt: str) -> list[int]:
        """The tokens of a prompt for the encoder, special tokens included."""
        return cast(list[int], self.tokenizer(prompt)["input_ids"])

    def prompt_ids(self, prompt: str, first: bool) -> list[int]:
        """None: the prompt is read by the encoder."""
        return []

    def question_ids(self, prompt: str, question: str) -> list[int]:
        """The tokens that begin every text, and the question."""
        return [*self.begins, *self.subword_ids(question)]

    def target_ids(self, before: str, text: str) -> list[int]:
        """The tokens of a text, and of its end."""
        return [*self.subword_ids(text), cast(int, self.eos)]

    def count(self, texts: list[str]) -> list[int]:
        """The number of tokens of each text, its end included."""
        return [len(self.target_ids("", text)) for text in texts]
