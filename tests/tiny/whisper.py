"""Tiny Whisper models with Whisper's special tokens, a tiny BART, and training until their choices are clear."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers as hf
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mmprefix.types import Candidate
from tiny import decoders as tiny_decoders

STEPS, LEAD = 600, 3.0  # at most so many steps, until every taught token leads by so many nats
SPECIAL = [
    "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startofprev|>", "<|nospeech|>",
    "<|notimestamps|>",
]  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of ``tiny.decoders`` with Whisper's special tokens."""
    words = tiny_decoders.make_tokenizer()
    words.add_tokens(cast(Any, [AddedToken(word, special=True) for word in SPECIAL]), special_tokens=True)
    return words


def save_whisper(folder: Path, seed: int = 0, sharp: float = 4.0, window: int = 100, layers: int = 2) -> str:
    """Save a random WhisperForConditionalGeneration with windows of ``window`` / 50 seconds and clear choices."""
    words = tokenizer()
    start = cast(int, words.convert_tokens_to_ids("<|startoftranscript|>"))
    config = hf.WhisperConfig(
        d_model=32, encoder_layers=1, decoder_layers=layers, encoder_attention_heads=2, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=window, max_target_positions=96, num_mel_bins=16,
        vocab_size=len(words), pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=start,
        suppress_tokens=[], begin_suppress_tokens=None, dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = hf.WhisperForConditionalGeneration(config)
    _sharpen(model, sharp)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    hf.WhisperFeatureExtractor(feature_size=16, chunk_length=window // 50).save_pretrained(folder)
    return str(folder)


def loss_and_lead(logits: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Loss, and the smallest lead (nats) of a right token over all others; labels (C N), -100 for none."""
    values, right = logits.detach()[labels >= 0], labels[labels >= 0][:, None]
    leads = values.gather(1, right) - values.scatter(1, right, -torch.inf).amax(1, keepdim=True)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), float(leads.min())


def assert_same_hypotheses(actual: Sequence[Candidate], expected: Sequence[Candidate], tolerance: float) -> None:
    """Assert equal scores up to ``tolerance``, and equal texts where the neighbouring scores are far enough apart."""
    scores = [candidate.score for candidate in expected]
    assert [candidate.score for candidate in actual] == pytest.approx(scores, abs=tolerance)
    bounds = [torch.inf, *scores, -torch.inf]
    for own, other, before, after in zip(actual, expected, bounds, bounds[2:], strict=False):
        if min(before - other.score, other.score - after) > 20 * tolerance:
            assert own.text == other.text


def train_until_clear(model: torch.nn.Module, run: Callable[[], tuple[Tensor, float]], rate: float = 0.01) -> None:
    """Train until each token leads by ``LEAD``; ``run`` returns loss and smallest lead of a pass over all texts.

    Processors round differently, and training multiplies that: a fixed number of steps would not do on all of them.
    """
    optimizer, least = torch.optim.Adam(model.parameters(), lr=rate), -torch.inf
    for _ in range(STEPS):
        loss, least = run()
        if least >= LEAD:
            return
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    raise AssertionError(f"after {STEPS} steps the smallest lead of a token is {least:.2f} nats; expected {LEAD}")


def save_bart(folder: Path, seed: int = 0, sharp: float = 3.0) -> str:
    """Save a random BartForConditionalGeneration."""
    words = tiny_decoders.make_tokenizer()
    sizes: dict[str, Any] = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in {"layers": 2, "attention_heads": 4, "ffn_dim": 48}.items()
    }
    config = hf.BartConfig(
        d_model=32, vocab_size=len(words), max_position_embeddings=96, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        decoder_start_token_id=0, forced_eos_token_id=None, dropout=0.0, **sizes,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = hf.BartForConditionalGeneration(config)
    _sharpen(model, sharp)
    model.final_logits_bias.normal_()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def _sharpen(model: torch.nn.Module, sharp: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed_positions" not in name:
                parameter.mul_(sharp)


TIMED_SPECIAL = [
    "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|startofprev|>", "<|nospeech|>",
    "<|notimestamps|>",
]  # fmt: skip


def timed_tokenizer() -> hf.WhisperTokenizer:
    """Tokenizer of Whisper's class and order: words, end of text, special tokens, ``<|notimestamps|>`` the last."""
    model = json.loads(tiny_decoders.make_tokenizer().backend_tokenizer.to_str())["model"]
    end = tiny_decoders.END
    pieces = sorted(model["vocab"], key=lambda piece: (piece == end, model["vocab"][piece]))
    return hf.WhisperTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[tuple(pair) for pair in model["merges"]],
        pad_token=end,
        extra_special_tokens=TIMED_SPECIAL,
    )


def save_timed_whisper(folder: Path, seed: int = 0, **generation: Any) -> str:
    """Save a random Whisper with timestamps and a window of two seconds.

    ``generation`` are further entries of its generation_config.json; None leaves an entry out.
    """
    words = timed_tokenizer()
    start, english, german, translate, transcribe, _, _, silent = cast(
        list[int], words.convert_tokens_to_ids(TIMED_SPECIAL)
    )
    end = cast(int, words.convert_tokens_to_ids(tiny_decoders.END))
    config = hf.WhisperConfig(
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=100, max_target_positions=48, num_mel_bins=16,
        vocab_size=silent + 102, pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
        suppress_tokens=[], begin_suppress_tokens=None, dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = hf.WhisperForConditionalGeneration(config)
    _sharpen(model, 4.0)
    with torch.no_grad():  # so that the sound matters
        encoder: Any = model.get_encoder()
        for convolution in (encoder.conv1, encoder.conv2):
            convolution.weight.mul_(30.0)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    hf.WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)
    entries: dict[str, Any] = {
        "bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start,
        "no_timestamps_token_id": silent, "is_multilingual": True, "max_length": 48, "max_initial_timestamp_index": 50,
        "lang_to_id": {"<|en|>": english, "<|de|>": german},
        "task_to_id": {"transcribe": transcribe, "translate": translate},
        "suppress_tokens": [start, english, german, translate, transcribe], "begin_suppress_tokens": [3, end],
        "return_timestamps": False,
    }  # fmt: skip
    entries = {name: value for name, value in (entries | generation).items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(entries), encoding="utf-8")
    return str(folder)
