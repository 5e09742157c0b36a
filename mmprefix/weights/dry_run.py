"""Configurations of well-known hub models, so that a dry run counts their parameters without the hub.

A dry run prints how many parameters a recipe has and trains; it needs neither weights nor vocabularies.
Layers, width and heads are those of https://github.com/openai/gpt-2, https://github.com/openai/whisper,
https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2, BERT-base (https://arxiv.org/abs/1810.04805) and LLaMA of
7 billion parameters (https://arxiv.org/abs/2302.13971).
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

_GPT2 = {"gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-large": (36, 1280, 20), "gpt2-xl": (48, 1600, 25)}
_WHISPER = {  # layers of encoder and decoder, width, heads
    "tiny": (4, 4, 384, 6),
    "base": (6, 6, 512, 8),
    "small": (12, 12, 768, 12),
    "medium": (24, 24, 1024, 16),
    **dict.fromkeys(("large", "large-v2", "large-v3"), (32, 32, 1280, 20)),
    "large-v3-turbo": (32, 4, 1280, 20),
}

_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


@cache
def known_config_folder(name: str) -> Path | None:
    """Folder with the configuration of the hub's model ``name``, and a tokenizer; None if it is unknown.

    GPT-2 and Whisper are known, in all their sizes, all-MiniLM-L6-v2, bert-base-uncased and llama-7b.
    """
    config = _gpt2(name.removeprefix("openai-community/")) or _whisper(name) or _bert(name) or _llama(name)
    if config is None:
        return None
    temporary = tempfile.TemporaryDirectory(prefix="config.")
    _FOLDERS.append(temporary)  # removed when the program ends
    folder = Path(temporary.name)
    config.save_pretrained(folder)
    placeholder_tokenizer().save_pretrained(folder)
    return folder


def placeholder_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer in the place of any other where no text is written: it has the tokens that parts look up by name."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    end, tasks = "<|endoftext|>", ("startoftranscript", "startofprev", "nospeech", "notimestamps")
    known = [end, ".", *(f"<|{word}|>" for word in (*tasks, "transcribe", "translate", *LANGUAGES))]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token=end))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end, bos_token=end)


def is_placeholder(tokenizer: Any) -> bool:
    """True for a ``placeholder_tokenizer``, also one that was saved and loaded."""
    return tokenizer.get_vocab() == placeholder_tokenizer().get_vocab()


def _gpt2(name: str) -> PreTrainedConfig | None:
    from transformers import GPT2Config

    if name not in _GPT2:
        return None
    layers, width, heads = _GPT2[name]
    return GPT2Config(n_layer=layers, n_embd=width, n_head=heads)


def _bert(name: str) -> PreTrainedConfig | None:
    from transformers import BertConfig

    if name.removeprefix("google-bert/") == "bert-base-uncased":
        return BertConfig()  # the library's defaults are its sizes
    if name.removeprefix("sentence-transformers/") != "all-MiniLM-L6-v2":
        return None
    return BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)


def _llama(name: str) -> PreTrainedConfig | None:
    from transformers import LlamaConfig

    return LlamaConfig() if name.removeprefix("huggyllama/") == "llama-7b" else None  # the defaults are its sizes


def _whisper(name: str) -> PreTrainedConfig | None:
    from transformers import WhisperConfig

    kind = name.removeprefix("openai/whisper-")
    plain = kind.removesuffix(".en")
    if kind == name or plain not in _WHISPER:
        return None
    encoder_layers, decoder_layers, width, heads = _WHISPER[plain]
    mels, vocabulary = (128, 51866) if "-v3" in kind else (80, 51865 if kind == plain else 51864)
    encoder = {"encoder_layers": encoder_layers, "encoder_attention_heads": heads, "encoder_ffn_dim": 4 * width}
    decoder = {"decoder_layers": decoder_layers, "decoder_attention_heads": heads, "decoder_ffn_dim": 4 * width}
    return WhisperConfig(vocab_size=vocabulary, num_mel_bins=mels, d_model=width, **encoder, **decoder)


_SIZES_ONLY: ContextVar[bool] = ContextVar("sizes_only", default=False)


@contextmanager
def without_weights() -> Generator[None]:
    """Build large parts with their sizes but without fetching their weights, inside the ``with`` block.

    No random weights are drawn either, which takes seconds for large parts: they are zero.
    """
    import torch
    from torch.nn import init
    from torch.overrides import TorchFunctionMode

    draws = {torch.Tensor.normal_, torch.Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_}

    class Zeros(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func not in draws:
                return func(*args, **(kwargs or {}))
            tensor: torch.Tensor = args[0] if args else kwargs["tensor"]
            tensor.data.zero_()
            return tensor

    token = _SIZES_ONLY.set(True)
    try:
        with Zeros():
            yield
    finally:
        _SIZES_ONLY.reset(token)


def sizes_only() -> bool:
    """True while parts are built for their sizes alone (see ``without_weights``)."""
    return _SIZES_ONLY.get()
