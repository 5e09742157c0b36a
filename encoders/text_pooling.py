"""Summary of a text as the files of sentence-transformers describe it: modules.json, and the folder of its pooling.

Sentence-BERT, https://arxiv.org/abs/1908.10084; https://github.com/UKPLab/sentence-transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.weights import source as sources

_OPTIONS = {  # option of a Pooling → its mode; summaries of several modes stand one after the other, in this order
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_KNOWN = ("Transformer", "Pooling", "Normalize", "Dropout")


@dataclass(frozen=True)
class SentenceModules:
    """Sentence vectors as a folder describes them.

    Args:
        modes: of pooling; several give one summary behind the other.
        unit: scale the summary to length 1.
        limit: longest input in tokens; None: the model's.
        lower: write texts in small letters first.
        prompt: text before each text.
        settings: file that describes the pooling, None without one.
    """

    modes: tuple[str, ...] = ("mean",)
    unit: bool = False
    limit: int | None = None
    lower: bool = False
    prompt: str = ""
    settings: Path | None = None


def sentence_modules(name: str, path: Path) -> SentenceModules:
    """Modules of the sentence encoder in the folder ``path``; the mean over all tokens where it has no modules.json.

    Raises InputError for a module that is none of Transformer, Pooling and Normalize, such as a trained layer, and
    where the description of the pooling is missing.
    """
    places = _modules(name, path)
    settings = _optional(path / "sentence_bert_config.json")
    prompts = _optional(path / "config_sentence_transformers.json")
    limit, prompt = settings.get("max_seq_length"), ""
    if prompts.get("default_prompt_name"):
        named = prompts.get("prompts")
        prompt = str(named.get(prompts["default_prompt_name"], "")) if isinstance(named, dict) else ""
    file = None
    if "Pooling" in places:
        file = _pooling_file(name, path, places["Pooling"])
    return SentenceModules(
        ("mean",) if file is None else _modes(file),
        "Normalize" in places,
        limit if isinstance(limit, int) and limit > 0 else None,
        bool(settings.get("do_lower_case")),
        prompt,
        file,
    )


def pooled(frames: Tensor, mask: Tensor, modes: Sequence[str]) -> Tensor:
    """Frames (B T D) where ``mask`` (B T) is True → summary (B G), G = D for each of the ``modes``."""
    real = mask.unsqueeze(2).to(frames.dtype)
    counts = real.sum(1).clamp(min=1)
    place = torch.arange(1, frames.shape[1] + 1, device=frames.device, dtype=frames.dtype)[None, :, None] * real
    last = (mask.sum(1) - 1).clamp(min=0)
    parts = {
        "cls": lambda: frames[:, 0],
        "max": lambda: frames.masked_fill(~mask.unsqueeze(2), -torch.inf).amax(1),
        "mean": lambda: (frames * real).sum(1) / counts,
        "mean_sqrt_len_tokens": lambda: (frames * real).sum(1) / counts.sqrt(),
        "weightedmean": lambda: (frames * place).sum(1) / place.sum(1).clamp(min=1),
        "lasttoken": lambda: frames[torch.arange(len(frames), device=frames.device), last],
    }
    return torch.cat([parts[mode]() for mode in modes], dim=1)


def _modules(name: str, path: Path) -> dict[str, str]:
    """Folder of each module by the last part of its type; none without a modules.json."""
    file = path / "modules.json"
    if not file.is_file():
        return {}
    try:
        rows: Any = json.loads(file.read_text(encoding="utf-8"))
        places = {str(row["type"]).rpartition(".")[2]: str(row["path"]) for row in rows}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{name!r}: {file} is no list of modules with type and path ({error})") from error
    if other := [kind for kind in places if kind not in _KNOWN]:
        raise InputError(
            f"{name!r}: {file} names a module {other[0]}, which Text cannot read; it reads {', '.join(_KNOWN)}"
        )
    return places


def _pooling_file(name: str, path: Path, folder: str) -> Path:
    """Description of the pooling in ``folder`` of a model; of a hub's model it is fetched where it is missing."""
    file = path / folder / "config.json"
    if ".." in Path(folder).parts or Path(folder).is_absolute():
        raise InputError(f"{name!r}: modules.json names the folder {folder!r}, which is not in {path}")
    commit = sources.revision_of(path)
    if not file.is_file() and commit is not None:
        sources.fetch_file(name, commit, f"{folder}/config.json")
    if not file.is_file():
        raise InputError(f"{name!r}: modules.json names a Pooling, but there is no {file}")
    return file


def _modes(file: Path) -> tuple[str, ...]:
    settings = sources.read_json(file)
    newer = settings.get("pooling_mode")
    if isinstance(newer, str):
        modes = tuple(newer.split("+"))
    else:
        modes = tuple(mode for option, mode in _OPTIONS.items() if settings.get(option))
    if not modes or not set(modes) <= set(_OPTIONS.values()):
        raise InputError(f"{file}: no pooling that Text knows; it knows {', '.join(_OPTIONS.values())}")
    return modes


def _optional(file: Path) -> dict[str, Any]:
    return dict(sources.read_json(file)) if file.is_file() else {}
