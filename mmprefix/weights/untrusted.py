"""Files of weights that other programs wrote: tensors come out of them, no code in them ever runs.

Checkpoints of PyTorch are pickles. They are read by the restricted reader of ``torch.load`` (``weights_only=True``),
which builds tensors and plain containers and refuses everything else; files are mapped, not copied, where their format
allows it.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from mmprefix.errors import InputError

_HUB = "hf://"
_KEPT_BESIDE = ("model", "state_dict")  # where programs that save more than weights put them
# What numpy needs to build an array of numbers: training programs leave the state of a sampler in their checkpoints.
_ARRAY, _SCALAR = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
_ARRAYS: list[Any] = [
    np.ndarray,
    np.dtype,
    _ARRAY,
    _SCALAR,
    (_ARRAY, "numpy.core.multiarray._reconstruct"),  # their place until numpy 2
    (_SCALAR, "numpy.core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "uint32", "uint64", "float32", "float64")),
]


def fetch_file(name: str) -> Path:
    """The file ``name``: a path here, or ``hf://OWNER/NAME/FILE`` (``NAME@REVISION`` too) of the model hub.

    Raises InputError when there is none, or the hub does not give it.
    """
    if not name.startswith(_HUB):
        path = Path(name).expanduser()
        if not path.exists():
            raise InputError(f"{name}: no such file")
        return path
    from huggingface_hub import hf_hub_download  # pyright: ignore[reportUnknownVariableType]

    owner, _, rest = name.removeprefix(_HUB).partition("/")
    repository, _, file = rest.partition("/")
    repository, _, revision = repository.partition("@")
    if not (owner and repository and file):
        raise InputError(f"{name}: expected hf://OWNER/NAME/FILE")
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file, revision=revision or None))
    except Exception as error:  # the hub's client raises a dozen kinds; all mean that the file is not here
        raise InputError(
            f"{name}: the model hub did not give it ({type(error).__name__}); give a file on disk"
        ) from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors in ``file`` by name: safetensors, or what ``torch.save`` wrote (a state, alone or under "model").

    Raises InputError, in one line, for a file that is damaged, holds anything but tensors and plain values, or has no
    tensors by name.
    """
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: cannot be read ({error})") from error
    found: Any = _unpickled(file)
    for key in _KEPT_BESIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = cast(Any, found)[key]
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"{file}: holds no tensors by name, but {_called(found)}")
    named = cast(Mapping[Any, Any], found)
    for name, value in named.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(f"{file}: {name!r} is no tensor, but {_called(value)}; expected the state of a model")
        if value.layout != torch.strided or value.device.type != "cpu" or _stored(value) < value.numel():
            raise InputError(f"{file}: tensor {name!r} is not stored in full")
    return {name: value.detach() for name, value in named.items()}


def _stored(value: Tensor) -> int:
    """How many numbers the file holds of a tensor; what is said of its shape may be more."""
    return value.untyped_storage().nbytes() // value.element_size()


def _unpickled(file: Path) -> Any:
    try:
        mapped = zipfile.is_zipfile(file)  # what torch wrote before its version 1.6 cannot be mapped
        with safe_globals(_ARRAYS), warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise InputError(
            f"{file}: is refused: it would have {wanted[1]} run when it is read, which no tensor needs"
            if wanted
            else f"{file}: is no checkpoint of tensors and plain values that can be read"
        ) from error
    except Exception as error:  # torch.load raises a dozen kinds; all mean that the file is none that can be read
        raise InputError(f"{file}: is no checkpoint that can be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """The first sentence of what a library says."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0]


def _called(value: Any) -> str:
    return f"a {type(value).__name__}"


def compare(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, Tensor], file: str, model: str) -> None:
    """Refuses ``given`` if it is not what ``wanted``, shapes by name, says of ``model``; names the first difference."""
    for name in sorted(wanted.keys() | given.keys()):
        if name not in given:
            raise InputError(f"{file}: holds no tensor {name!r}, which {model} has")
        if name not in wanted:
            raise InputError(f"{file}: holds a tensor {name!r}, which {model} does not have")
        found = tuple(given[name].shape)
        if found != wanted[name]:
            raise InputError(f"{file}: tensor {name!r} of {model} has the shape {found}; {wanted[name]} was expected")
        if found and not (given[name].is_floating_point() and given[name].isfinite().all()):
            raise InputError(f"{file}: tensor {name!r} of {model} holds something other than finite numbers")


def read_vocabulary(file: Path) -> list[str]:
    """A vocabulary: a word a line, a JSON list, or the pickled list that Prefix-AAC's authors keep theirs in.

    Raises InputError for anything else, a word that is there twice, and a pickle that holds more than texts.
    """
    found = _listed(file)
    if not isinstance(found, list) or not all(isinstance(word, str) and word for word in cast(list[Any], found)):
        raise InputError(f"{file}: is no vocabulary: expected a word a line, or a list of words")
    listed = cast(list[str], found)
    seen: set[str] = set()
    for word in listed:
        if word in seen:
            raise InputError(f"{file}: the word {word!r} is there twice")
        seen.add(word)
    return listed


def _listed(file: Path) -> Any:
    try:
        content = file.read_bytes()
        if content[:1] == b"\x80":  # the mark of a pickle, which is no text
            return _PlainPickle(file.open("rb")).load()
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
        return json.loads(text) if text.startswith("[") else text.removesuffix("\n").split("\n")
    except Exception as error:  # a pickle that is none, and JSON too deep, raise a dozen kinds
        raise InputError(f"{file}: the vocabulary cannot be read ({_reason(error)})") from error


class _PlainPickle(pickle.Unpickler):
    """Lists, texts and numbers only: whatever would have to be imported is refused."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"it wants {module_name}.{global_name}, and is refused")
