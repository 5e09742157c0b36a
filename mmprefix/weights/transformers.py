"""A frozen network of Hugging Face Transformers from a folder, or one plain line that says why there is none.

Transformers fills a weight that the file lacks with random numbers and says so in a log. Here that is an error:
a mapper that was trained on random features of one run is worth nothing in the next.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
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
from mmprefix.weights import dry_run
from mmprefix.weights import source as sources
from mmprefix.weights.dry_run import placeholder_tokenizer

_OUTLINED = (AutoModelForCausalLM, AutoModelForSeq2SeqLM, WhisperForConditionalGeneration, WhisperModel)
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def precision(dtype: str) -> torch.dtype:
    """The torch type that is called ``dtype``: float32, float16 or bfloat16."""
    require_one_of("dtype", dtype, _DTYPES)
    return _DTYPES[dtype]


def model_type(name: str, path: Path) -> str:
    """The ``model_type`` that config.json in the folder ``path`` (asked for as ``name``) declares.

    InputError when there is no config.json or it declares none.
    """
    if not (path / "config.json").is_file():
        found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        raise InputError(f"{name!r}: the folder {path} holds no config.json of a Transformers model (it holds {found})")
    model_type = sources.read_json(path / "config.json").get("model_type")
    if not isinstance(model_type, str):
        raise InputError(f"{name!r}: {path / 'config.json'} names no model_type")
    return model_type


def require_model_type(name: str, path: Path, allowed: Collection[str], encoder: str) -> None:
    """InputError when the model in ``path`` is of another kind than those ``encoder`` reads."""
    found = model_type(name, path)
    if found not in allowed:
        raise InputError(
            f"{name!r}: the folder {path} holds a {found!r} model, which {encoder} cannot read; "
            f"it reads {', '.join(sorted(allowed))}"
        )


def config(name: str, path: Path) -> Any:
    """The Transformers configuration in the folder ``path``; InputError when this version does not know its kind."""
    found = model_type(name, path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name!r}: {path / 'config.json'}: no known configuration of kind {found!r}") from error


def load_model(cls: Any, name: str, path: Path, dtype: str, optional: Sequence[str] = ()) -> tuple[Any, set[str]]:
    """The network ``cls`` with the weights in ``path``, and those of its weights that the folder lacks.

    Weights may be lacking only where their name starts with one of ``optional``; the caller then drops that part.
    InputError when others lack, shapes disagree, or the file is damaged.
    """
    wanted = precision(dtype)
    if dry_run.sizes_only() and cls in _OUTLINED:
        known = config(name, path)
        with torch.device("meta"):
            return getattr(cls, "from_config", cls)(known), set()
    try:
        with _quietly():
            network, report = cls.from_pretrained(
                path, dtype=wanted, output_loading_info=True, trust_remote_code=False, local_files_only=True
            )
    except Exception as error:  # the readers of safetensors, pickle and configurations raise a dozen kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"{name!r}: the model in {path} cannot be read: {reason}") from error
    missing = set(report["missing_keys"])
    fatal = sorted(key for key in missing if not key.startswith(tuple(optional)))
    fatal += sorted(str(item[0]) for item in report["mismatched_keys"])
    if fatal:
        raise InputError(
            f"{name!r}: the weights in {path} lack {len(fatal)} tensors of {type(network).__name__}: {fatal[0]} ..."
        )
    return network, missing


def extractor(cls: Any, path: Path, default: dict[str, Any]) -> Any:
    """The feature extractor ``cls`` as the folder ``path`` describes it; made from ``default`` where it does not."""
    if any((path / file).is_file() for file in ("preprocessor_config.json", "processor_config.json")):
        try:
            return cls.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path / 'preprocessor_config.json'}: {str(error).splitlines()[0]}") from error
    return cls(**default)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the loading report: what it would say is checked, or meant (a text tower that stays on disk)."""
    level, bar = transformers_log.get_verbosity(), transformers_log.is_progress_bar_enabled()
    transformers_log.set_verbosity_error()
    transformers_log.disable_progress_bar()
    try:
        yield
    finally:
        transformers_log.set_verbosity(level)
        if bar:
            transformers_log.enable_progress_bar()


def load_tokenizer(lm: Any, name: str, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``; InputError where there is none, or one that is not the model's."""
    try:
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        rows = lm.get_input_embeddings().num_embeddings
        if not 1 < len(found) <= rows:  # without its files transformers makes an empty tokenizer, and says nothing
            raise ValueError(f"it has {len(found)} tokens, the model {rows} embeddings")
        return found
    except (OSError, ValueError) as error:
        if dry_run.sizes_only():
            return placeholder_tokenizer()
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"decoder {name!r}: the folder {folder} holds no tokenizer that can be loaded: {reason}"
        ) from error
