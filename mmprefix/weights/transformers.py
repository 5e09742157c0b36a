"""Frozen networks of Hugging Face Transformers, loaded from a folder; one line of error where that fails.

Transformers fills a weight that the file lacks with random numbers and logs it. Here it is an error: a mapper that was
trained on the random features of one run is worth nothing in the next.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    WhisperForConditionalGeneration,
    WhisperModel,
)
from transformers.utils import logging as transformers_log

from mmprefix.errors import InputError, require_one_of
from mmprefix.weights import dry_run, gguf, quantized
from mmprefix.weights import source as sources
from mmprefix.weights.devices import DTYPES
from mmprefix.weights.dry_run import placeholder_tokenizer
from mmprefix.weights.model_kinds import advice, of_another_library

log = logging.getLogger(__name__)
_WITHOUT_WEIGHTS = (AutoModelForCausalLM, AutoModelForSeq2SeqLM, WhisperForConditionalGeneration, WhisperModel)


def precision(dtype: str) -> torch.dtype:
    """The torch type named ``dtype``: float32, bfloat16 or float16."""
    require_one_of("dtype", dtype, DTYPES)
    return DTYPES[dtype]


def model_type(name: str, path: Path) -> str:
    """The ``model_type`` in config.json of the folder ``path``; ``name`` is the model in errors.

    ``path`` may be a .gguf file, whose header says it. Raises InputError where no model_type is declared.
    """
    if path.is_file():
        return gguf.config(name, path).model_type
    if not (path / "config.json").is_file():
        if other := of_another_library(path):
            raise InputError(f"{name!r}: the folder {path} holds {other}")
        files = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        raise InputError(f"{name!r}: the folder {path} holds no config.json of a Transformers model (it holds {files})")
    model_type = sources.read_json(path / "config.json").get("model_type")
    if not isinstance(model_type, str):
        other = of_another_library(path)
        raise InputError(
            f"{name!r}: {path / 'config.json'} names no model_type" + (f", it is {other}" if other else "")
        )
    return model_type


def require_model_type(name: str, path: Path, allowed: Collection[str], encoder: str) -> None:
    """Raise InputError unless the model in ``path`` is of one of the types ``allowed``, which ``encoder`` reads."""
    kind = model_type(name, path)
    if kind not in allowed:
        raise InputError(
            f"{name!r}: the folder {path} holds a {kind!r} model, which {encoder} cannot read; "
            f"it reads {', '.join(sorted(allowed))}{advice(kind)}"
        )


def config(name: str, path: Path) -> Any:
    """The Transformers configuration in ``path``, a folder or a .gguf file; InputError for a type unknown to it."""
    if path.is_file():
        return gguf.config(name, path)
    kind = model_type(name, path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name!r}: {path / 'config.json'}: no known configuration of kind {kind!r}") from error


def empty_model(cls: Any, name: str, path: Path) -> Any:
    """The network ``cls`` of the configuration in ``path``, with sizes and without weights: on the device "meta"."""
    known = config(name, path)
    with torch.device("meta"):
        return getattr(cls, "from_config", cls)(known)


def load_model(
    cls: Any, name: str, path: Path, dtype: str, *, optional: Sequence[str] = (), quantize: str | None = None
) -> tuple[Any, set[str]]:
    """The network ``cls`` with the weights in ``path``, and the names of its weights that are not there.

    ``path`` is a folder or a .gguf file; ``dtype`` "auto" is the type that most of the weights are stored in, float32
    for a quantised file. Only weights whose name starts with one of ``optional`` may be missing; the caller then drops
    that part. ``quantize`` is one of ``mmprefix.weights.quantized``. Raises InputError when others are missing, shapes
    disagree, or the file is damaged.
    """
    wanted = None if dtype == "auto" else precision(dtype)
    if dry_run.sizes_only() and cls in _WITHOUT_WEIGHTS:
        return empty_model(cls, name, path), set()
    folder, options = (path.parent, gguf.load_options(name, path)) if path.is_file() else (path, {})
    options |= {"output_loading_info": True, "trust_remote_code": False, "local_files_only": True}
    try:
        stored = list(gguf.header(name, path).stored) if path.is_file() else _stored_dtypes(path)
        options["dtype"] = wanted or _stored_precision(stored, name, path)
        with _quietly(), gguf.without_progress_bar() if path.is_file() else nullcontext():
            if quantize is not None:
                options |= quantized.load_options(name, path, quantize, options["dtype"])
            network, report = cls.from_pretrained(folder, **options)
    except InputError:
        raise
    except Exception as error:  # the readers of safetensors, pickle and configurations raise many kinds of errors
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"{name!r}: the model in {path} cannot be read: {reason}") from error
    missing = set(report["missing_keys"])
    fatal = sorted(key for key in missing if not key.startswith(tuple(optional)))
    fatal += sorted(str(item[0]) for item in report["mismatched_keys"])
    if fatal:
        raise InputError(
            f"{name!r}: the weights in {path} lack {len(fatal)} tensors of {type(network).__name__}: {fatal[0]} ..."
        )
    if path.is_file() or quantize is not None:
        _forget_quantizer(network)
    if quantize is not None:
        quantized.require_quantized(name, network, quantize)
    _log_weights(name, network, ", ".join(stored), quantize)
    return network, missing


def _stored_precision(stored: list[str], name: str, path: Path) -> torch.dtype:
    """The first type in ``stored``, else that of the configuration in ``path``; float32 for any other than DTYPES."""
    declared = None if stored else config(name, path).dtype
    return DTYPES.get(stored[0] if stored else str(declared).removeprefix("torch."), torch.float32)


def _stored_dtypes(path: Path) -> list[str]:
    """Names of the dtypes in the safetensors files of ``path``, the one with the most numbers first."""
    sizes: Counter[str] = Counter()
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                part = tensors.get_slice(key)
                sizes[part.get_dtype()] += prod(part.get_shape())
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
    return [names.get(code, code) for code, _ in sizes.most_common()]


def _forget_quantizer(network: Any) -> None:
    """Remove from ``network`` how it was unpacked or quantised: it is copied, moved and trained behind like any other.

    Its configuration is that of ordinary weights again, from which other models are built.
    """
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(network, name):
            delattr(network, name)
    network.is_quantized = False
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config


def _log_weights(name: str, network: Any, stored: str, quantize: str | None) -> None:
    """Log how the weights of ``network`` are stored, which dtype is used, and their memory."""
    size = quantized.stored_bytes(network)
    dtype = f"{quantize} and " if quantize else ""
    dtype += str(network.dtype).removeprefix("torch.")
    log.debug("%s: weights %sused as %s, %.1f MB", name, f"stored as {stored}, " if stored else "", dtype, size / 1e6)


def extractor(cls: Any, path: Path, default: dict[str, Any]) -> Any:
    """The feature extractor ``cls`` as the folder ``path`` configures it, else as ``default`` does."""
    if any((path / file).is_file() for file in ("preprocessor_config.json", "processor_config.json")):
        try:
            return cls.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path / 'preprocessor_config.json'}: {str(error).splitlines()[0]}") from error
    return cls(**default)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the loading report: its findings are checked above, or meant (a text tower that stays on disk).

    So is what torch logs about the classes of torchao, which Transformers imports where it is installed.
    """
    level, bar = transformers_log.get_verbosity(), transformers_log.is_progress_bar_enabled()
    trees = logging.getLogger("torch.utils._pytree")
    before = trees.level
    trees.setLevel(logging.ERROR)
    transformers_log.set_verbosity_error()
    transformers_log.disable_progress_bar()
    try:
        yield
    finally:
        trees.setLevel(before)
        transformers_log.set_verbosity(level)
        if bar:
            transformers_log.enable_progress_bar()


def load_tokenizer(lm: Any, name: str, folder: Path, part: str = "decoder") -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder`` or a .gguf file; InputError where there is none, or one that is not the model's."""
    try:
        if folder.is_file():
            tokenizer = gguf.load_tokenizer(name, folder)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        rows = lm.get_input_embeddings().num_embeddings
        special = len(tokenizer.all_special_ids)  # without its files transformers silently makes an empty tokenizer
        if not max(1, special) < len(tokenizer) <= rows:
            raise ValueError(f"it has {len(tokenizer)} tokens, the model {rows} embeddings")
        return tokenizer
    except InputError:
        raise
    except Exception as error:  # the reader in Rust raises plain exceptions, that of Python many kinds
        if dry_run.sizes_only():
            return placeholder_tokenizer()
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        place = folder if folder.is_file() else f"the folder {folder}"
        raise InputError(f"{part} {name!r}: {place} holds no tokenizer that can be loaded: {reason}") from error
