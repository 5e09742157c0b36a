"""What a small Whisper reads and writes: its tokenizer, previous texts, and the tokens of one window.

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
IGNORED = -100  # where cross_entropy counts no loss

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
    """Whisper's tokenizer: a byte-level BPE of ``texts``, at most ``vocab_size`` entries with the special ones."""
    learned = train_tokenizer([f" {text}" for text in texts], vocab_size - len(SPECIAL))
    model: dict[str, Any] = json.loads(learned.backend_tokenizer.to_str())["model"]
    pieces = sorted(model["vocab"], key=lambda piece: (piece == END, model["vocab"][piece]))
    return WhisperTokenizer(
        vocab={piece: place for place, piece in enumerate(pieces)},
        merges=[tuple(pair) for pair in model["merges"]],
        pad_token=END,
        language="english",
        task="transcribe",
        extra_special_tokens=list(SPECIAL),
    )


def ids(tokenizer: WhisperTokenizer, names: Sequence[str]) -> list[int]:
    """The ids of special tokens."""
    found = tokenizer.convert_tokens_to_ids(list(names))
    assert isinstance(found, list)
    return found


def end_id(tokenizer: WhisperTokenizer) -> int:
    """The id of `<|endoftext|>`: smaller ones are text, greater ones special."""
    return ids(tokenizer, [END])[0]


def encode(tokenizer: WhisperTokenizer, text: str) -> list[int]:
    """``text`` after a space, without special tokens."""
    return tokenizer(f" {text}", add_special_tokens=False)["input_ids"]


def generation(tokenizer: WhisperTokenizer, positions: int) -> GenerationConfig:
    """What `generate` of Transformers must know: English, no timestamps, the tokens at the start and at the end."""
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
    """What may stand before a window: in half of the cases nothing, else one random text, now and then several.

    `<|startofprev|>` and the last ``most`` - 1 tokens of them.
    """
    if whole(2):
        return []
    number = 1 if whole(4) else 2 + whole(4)
    found = [token for _ in range(number) for token in encode(tokenizer, texts[whole(len(texts))])]
    return [*ids(tokenizer, [PREVIOUS]), *found[max(0, len(found) - most + 1) :]]


def window_tokens(tokenizer: WhisperTokenizer, before: Sequence[int], text: str | None) -> tuple[Tensor, Tensor]:
    """What the decoder reads (N) and what it should say next (N), ``IGNORED`` where that is not judged.

    ``before`` is the previous text, which is never judged; ``text`` is None where nobody speaks.
    """
    said = [SILENCE] if text is None else [LANGUAGE, TASK, NO_TIMES]
    judged = [*ids(tokenizer, said), *(encode(tokenizer, text) if text else []), *ids(tokenizer, [END])]
    read = [*before, *ids(tokenizer, [START]), *judged[:-1]]
    return torch.tensor(read), torch.tensor([IGNORED] * len(before) + judged)


def batch(rows: Sequence[tuple[Tensor, Tensor]], filler: int) -> tuple[Tensor, Tensor]:
    """Rows of ``window_tokens`` side by side (B N), filled up on the right."""
    read = pad_sequence([row[0] for row in rows], True, filler)
    return read, pad_sequence([row[1] for row in rows], True, IGNORED)


def garble(read: Tensor, judged: Tensor, share: float, below: int) -> Tensor:
    """``read`` (B N) with a random ``share`` of the text's tokens replaced by any that are ``below`` the special ones.

    A decoder that cannot trust what was written so far listens, and learns no sentences by heart.
    """
    wrong = (torch.rand(read.shape) < share) & (read < below) & (judged != IGNORED)
    return torch.where(wrong, torch.randint(below, read.shape), read)
