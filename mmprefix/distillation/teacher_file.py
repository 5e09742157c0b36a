"""Teacher's expectations in a file, so that a stopped or repeated distillation does not run the teacher again.

A safetensors file: token ids of all texts one after the other (N,), the tokens of each text (M,), the likeliest tokens
(N top) and their log-probabilities (N top). Its key is a digest of the decoder's weights and options, the context, the
texts and ``top``; values of another key are never read, but computed anew and written over.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmprefix.atomic import disk_errors_as_input_errors, write_atomically
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.distillation.teacher import Expected, Text, ask_teacher
from mmprefix.errors import InputError
from mmprefix.parts import to_recipe
from mmprefix.types import to_list
from mmprefix.version import __version__
from mmprefix.weights.source import settings
from mmprefix.weights.trained_file import digest

log = logging.getLogger(__name__)
_KEY = "teacher"  # of the file's metadata
_NAMES = {"ids", "counts", "tokens", "log_probs"}


def teacher_key(decoder: ComposedDecoder, context: str, texts: Sequence[Text], top: int) -> str:
    """Digest of all that the teacher's expectations depend on."""
    options = {name: value for name, value in to_recipe(decoder)["init_args"].items() if name != "model"}
    tensors = {name: tensor for name, tensor in decoder.state_dict().items() if name.startswith(decoder.trained)}
    pairs = [("", text) if isinstance(text, str) else tuple(text) for text in texts]
    belongs = {
        "mmprefix": __version__,
        "weights": decoder.identity.sha256 or digest(decoder.state_dict()),
        "settings": settings(decoder.identity),
        "options": options,
        "trained": digest(tensors),
        "context": context,
        "texts": pairs,
        "top": top,
    }
    return hashlib.sha256(json.dumps(belongs, sort_keys=True).encode()).hexdigest()


def remembered_teacher(
    file: Path, decoder: ComposedDecoder, context: str, texts: Sequence[Text], *, top: int, batch_size: int
) -> list[Expected]:
    """``ask_teacher``, or what ``file`` holds of the same question; the answer is written there.

    Raises InputError for a file that holds something else, and where none can be written.
    """
    key = teacher_key(decoder, context, texts, top)
    held = _read(file) if file.exists() else None
    if held is not None and held[0] == key:
        log.info("teacher: not run, its values are those of %s", file)
        return _expected(held[1], texts, file)
    if held is not None:
        log.warning("teacher: %s is of another decoder, context or texts; it is computed and written anew", file)
    expected = ask_teacher(decoder, context, texts, top=top, batch_size=batch_size)
    data = save(_tensors(expected), {_KEY: key})
    with disk_errors_as_input_errors(file):
        write_atomically(file, lambda fresh: fresh.write_bytes(data))
    return expected


def _tensors(expected: Sequence[Expected]) -> dict[str, Tensor]:
    return {
        "ids": torch.tensor([number for own in expected for number in own.ids], dtype=torch.int32),
        "counts": torch.tensor([len(own.ids) for own in expected], dtype=torch.int32),
        "tokens": torch.cat([own.tokens for own in expected]),
        "log_probs": torch.cat([own.log_probs for own in expected]),
    }


def _read(file: Path) -> tuple[str, dict[str, Tensor]]:
    """Key and tensors of a file. InputError for any other file, so that none is written over."""
    try:
        with safe_open(file, "pt") as opened:
            metadata: Any = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no dictionary)
    except (OSError, SafetensorError) as error:
        raise InputError(f"teacher {file}: cannot be read ({error}); remove it, or name another file") from error
    if _KEY not in metadata or tensors.keys() != _NAMES:
        raise InputError(f"teacher {file}: holds something else than a teacher's values; name another file")
    return str(metadata[_KEY]), tensors


def _expected(tensors: dict[str, Tensor], texts: Sequence[Text], file: Path) -> list[Expected]:
    counts = [int(count) for count in to_list(tensors["counts"])]
    names = ("ids", "tokens", "log_probs")
    if len(counts) != len(texts) or any(len(tensors[name]) != sum(counts) for name in names):
        raise InputError(f"teacher {file}: is damaged; remove it")
    parts = zip(texts, *(tensors[name].split(counts) for name in names), strict=True)
    return [
        Expected("" if isinstance(text, str) else text[0], to_list(ids), tokens, log_probs)
        for text, ids, tokens, log_probs in parts
    ]
