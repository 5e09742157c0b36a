"""Tokens of a small Whisper: its tokenizer, previous texts, and the decoder's inputs and targets for one window.

The order of tokens is Whisper's (Radford et al. 2022, https://arxiv.org/abs/2212.04356, figure 1):
`<|startofprev|>` previous text `<|startoftranscript|><|en|><|transcribe|><|notimestamps|>` text `<|endoftext|>`, and
`<|startoftranscript|><|nospeech|><|endoftext|>` where nobody speaks. Texts begin with a space, as Whisper's do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, WhisperTokenizer

from mmprefix.recipes.pretrain.augment import whole
from mmprefix.recipes.pretrain.decoder_tokens import END, train_tokenizer

START, LANGUAGE, TASK, PREVIOUS = "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|startofprev|>"
TRANSLATE, SILENCE, NO_TIMES = "<|translate|>", "<|nospeech|>", "<|notimestamps|>"
SPECIAL = (START, LANGUAGE, TRANSLATE, TASK, PREVIOUS, SILENCE, NO_TIMES)  # timestamps would follow
IGNORED = -100  # target for which cross_entropy counts no loss

QUESTIONS = (
    "what did the speaker say?",
    "what is said in the audio?",
    "what is the intent of the speaker?",
    "which action does the user want?",
    "what is the scenario?",
    "which word is spoken?",
    "which digit is said?",
    "is this a wake word? answer yes or no.",
    "is the speaker talking to the device, or to somebody else?",
    "is the speech directed at the assistant? directed, non-directed",
    "how many words are there?",
    "what is the value of the slot?",
    "what is the place, the date, the time, the name of the person?",
    "which of these is mentioned: none, all, some, both?",
    "who is speaking, a man or a woman?",
    "where, when, why, which, whose, how much, how often?",
    "the answer is not mentioned, unknown or empty.",
    "true or false?",
    "choose one of the following options.",
    "list all entities with their types and values.",
    "repeat the command that was given.",
    "question: answer:",
    "yes",
    "no",
    "none",
    "other",
)


def make_tokenizer(texts: Iterable[str], vocab_size: int) -> WhisperTokenizer:
    """Train Whisper's tokenizer: byte-level BPE of ``texts``, at most ``vocab_size`` entries, special ones included."""
    learned = train_tokenizer([f" {text}" for text in texts], vocab_size - len(SPECIAL))
    model: dict[str, Any] = json.loads(learned.backend_tokenizer.to_str())["model"]
    pieces = sorted(model["vocab"], key=lambda piece: (piece == END, model["vocab"][piece]))
    return WhisperTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[tuple(pair) for pair in model["merges"]],
        pad_token=END,
        language="english",
        task="transcribe",
        extra_special_tokens=list(SPECIAL),
    )


def ids(tokenizer: WhisperTokenizer, names: Sequence[str]) -> list[int]:
    """Ids of special tokens."""
    special = tokenizer.convert_tokens_to_ids(list(names))
    assert isinstance(special, list)
    return special


def end_id(tokenizer: WhisperTokenizer) -> int:
    """Id of `<|endoftext|>`: smaller ones are text, greater ones special."""
    return ids(tokenizer, [END])[0]


def encode(tokenizer: WhisperTokenizer, text: str) -> list[int]:
    """Token ids of ``text`` after a space, without special tokens."""
    return tokenizer(f" {text}", add_special_tokens=False)["input_ids"]


def generation(tokenizer: WhisperTokenizer, positions: int) -> GenerationConfig:
    """Configure Transformers' `generate`: English, no timestamps, the tokens at the start and at the end."""
    special = dict(zip(SPECIAL, ids(tokenizer, SPECIAL), strict=True))
    end = end_id(tokenizer)
    return GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=special[START],
        prev_sot_token_id=special[PREVIOUS],
        no_timestamps_token_id=special[NO_TIMES],
        lang_to_id={LANGUAGE: special[LANGUAGE]},
        task_to_id={"transcribe": special[TASK], "translate": special[TRANSLATE]},
        language="en",
        task="transcribe",
        is_multilingual=True,
        return_timestamps=False,
        max_length=positions,
    )


def previous(tokenizer: WhisperTokenizer, texts: Sequence[str], most: int) -> list[int]:
    """Draw the previous text of a window: in half of the cases none, else one random text, now and then several.

    The ids are `<|startofprev|>` and the last ``most`` - 1 tokens of the texts.
    """
    if whole(2):
        return []
    number = 1 if whole(4) else 2 + whole(4)
    tokens = [token for _ in range(number) for token in encode(tokenizer, texts[whole(len(texts))])]
    return [*ids(tokenizer, [PREVIOUS]), *tokens[max(0, len(tokens) - most + 1) :]]


def window_tokens(tokenizer: WhisperTokenizer, before: Sequence[int], text: str | None) -> tuple[Tensor, Tensor]:
    """Make inputs (N,) and targets (N,) of the decoder, ``IGNORED`` over the previous text ``before``.

    ``text`` is None in a window in which nobody speaks.
    """
    first = [SILENCE] if text is None else [LANGUAGE, TASK, NO_TIMES]
    judged = [*ids(tokenizer, first), *(encode(tokenizer, text) if text else []), *ids(tokenizer, [END])]
    read = [*before, *ids(tokenizer, [START]), *judged[:-1]]
    return torch.tensor(read), torch.tensor([IGNORED] * len(before) + judged)


def batch(rows: Sequence[tuple[Tensor, Tensor]], filler: int) -> tuple[Tensor, Tensor]:
    """Pad rows of ``window_tokens`` on the right and stack them (B N each)."""
    read = pad_sequence([row[0] for row in rows], True, filler)
    return read, pad_sequence([row[1] for row in rows], True, IGNORED)


def garble(read: Tensor, judged: Tensor, share: float, below: int) -> Tensor:
    """Replace a random ``share`` of the text's tokens in ``read`` (B N) by any that are ``below`` the special ones.

    A decoder that cannot trust the text so far listens, and learns no sentences by heart.
    """
    wrong = (torch.rand(read.shape) < share) & (read < below) & (judged != IGNORED)
    return torch.where(wrong, torch.randint(below, read.shape), read)
