"""GGUF files: a language model of llama.cpp with its tokenizer in one file, often quantised.

Transformers reads them through the package ``gguf``; all weights are unpacked to one floating-point type. Of the
tokenizer it knows only some rules by which a text is split before its subwords, and takes GPT-2's for all others. A
``tokenizer.json`` beside the file is used instead; without one, an unknown rule is refused.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, GgufConfig, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from mmprefix.errors import InputError

log = logging.getLogger(__name__)

_PACKAGES = ("gguf", "accelerate")
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # token of Transformers → of GGUF
_DIGITS = ("smollm",)  # rules that take each digit by itself, then split as GPT-2 does
_GPT2 = "gpt-2"


@dataclass(frozen=True)
class Header:
    """Facts at the beginning of a file: its tokenizer's kind and rule of splitting, special tokens, stored types.

    ``special`` are token ids by Transformers' names (bos, eos, unk, pad); ``stored`` are names of types, the one with
    the most numbers first. ``rescaled``: its rotary positions are scaled.
    """

    tokenizer: str
    rule: str
    special: dict[str, int]
    chat_template: str | None
    stored: tuple[str, ...]
    rescaled: bool


def header(name: str, file: Path) -> Header:
    """Header of the model ``name`` in ``file``. Raises InputError without the packages, and for a damaged file."""
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise InputError(f"{name!r}: a .gguf file needs {' and '.join(missing)}; install mmprefix[gguf]")
    try:
        return _header(file, *_version(file))
    except Exception as error:  # the reader of a damaged file raises many kinds of errors
        raise InputError(f"{name!r}: {file} cannot be read as a .gguf file: {_reason(error)}") from error


def _version(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)
def _header(file: Path, size: int, changed: int) -> Header:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    fields: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items() if len(field.data) == 1}
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[_FLOATS.get(tensor.tensor_type.name, tensor.tensor_type.name)] += int(tensor.n_elements)
    ids = {ours: fields.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in _SPECIAL.items()}
    scaling = fields.get(f"{fields['general.architecture']}.rope.scaling.type", "none")
    return Header(
        str(fields.get("tokenizer.ggml.model", "")),
        str(fields.get("tokenizer.ggml.pre", "")),
        {key: int(number) for key, number in ids.items() if number is not None},
        fields.get("tokenizer.chat_template"),
        tuple(kind for kind, _ in sizes.most_common()),
        scaling != "none" or any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors),
    )


def config(name: str, file: Path) -> Any:
    """Transformers configuration of the model in ``file``. Raises InputError for an architecture unknown to it."""
    header(name, file)
    try:
        return deepcopy(_config(file, *_version(file)))
    except Exception as error:  # as above
        raise InputError(f"{name!r}: {file}: Transformers cannot read this .gguf file: {_reason(error)}") from error


@lru_cache(maxsize=4)
def _config(file: Path, size: int, changed: int) -> Any:
    return AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)


def load_options(name: str, file: Path) -> dict[str, Any]:
    """Options by which ``from_pretrained`` reads ``file`` in its folder; a warning for positions that it misreads."""
    known = config(name, file)
    if header(name, file).rescaled and known.model_type != "gpt_oss":
        log.warning(
            "%s: scales its positions, which Transformers does not read from a .gguf file: scores differ from the "
            "original model's, most of all in long texts; load its safetensors if that matters",
            name,
        )
    return {"gguf_file": file.name, "config": known, "quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Hide the progress bar of unpacking, which has no switch of its own."""
    with redirect_stderr(StringIO()):
        yield


def load_tokenizer(name: str, file: Path) -> Any:
    """Tokenizer of the model in ``file``: ``tokenizer.json`` beside it, else its own.

    Raises InputError for a rule of splitting that is not known here, without such a ``tokenizer.json``.
    """
    facts = header(name, file)
    if (file.parent / "tokenizer.json").is_file():
        beside: Any = PreTrainedTokenizerFast.from_pretrained(file.parent, local_files_only=True)
        for kind, number in facts.special.items():
            if getattr(beside, f"{kind}_token") is None:
                setattr(beside, f"{kind}_token", beside.convert_ids_to_tokens(number))
        beside.chat_template = beside.chat_template or facts.chat_template
        return beside
    bytewise = facts.tokenizer == "gpt2"
    if bytewise and facts.rule not in (*GGUF_PRE_TOKENIZER_SPLITS, *_DIGITS, _GPT2):
        rule = (
            f"by the rule {facts.rule!r}, which is not known here" if facts.rule else "by a rule that it does not name"
        )
        raise InputError(
            f"{name!r}: the tokenizer in {file} splits texts {rule}; put the model's tokenizer.json beside the file"
        )
    reader = PreTrainedTokenizerFast if bytewise else AutoTokenizer  # the latter reads the whole header once more
    own: Any = reader.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    if bytewise and facts.rule in _DIGITS:
        own.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return own


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
