"""Files of weights that other programs wrote: only tensors are read from them, no code in them ever runs.

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
_NESTED = ("model", "state_dict")  # keys of the weights in checkpoints that hold more than weights
# Globals that numpy needs to build an array: training programs leave the state of a sampler in their checkpoints.
_ARRAY, _SCALAR = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
_ARRAYS: list[Any] = [
    np.ndarray,
    np.dtype,
    _ARRAY,
    _SCALAR,
    (_ARRAY, "numpy.core.multiarray._reconstruct"),  # their module until numpy 2
    (_SCALAR, "numpy.core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "uint32", "uint64", "float32", "float64")),
]


def fetch_file(name: str) -> Path:
    """The file ``name``: a local path, or ``hf://OWNER/NAME/FILE`` (``NAME@REVISION`` too) of the model hub.

    Raises InputError when there is no such file, or the hub does not give it.
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
    except (
        Exception
    ) as error:  # the hub's client raises many kinds of errors; each means that the file is not available
        raise InputError(
            f"{name}: the model hub did not give it ({type(error).__name__}); give a file on disk"
        ) from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors in ``file`` by name: safetensors, or a file of ``torch.save`` (a state, alone or under "model").

    Raises InputError, in one line, for a file that is damaged, holds anything but tensors and plain values, or has no
    tensors by name.
    """
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: cannot be read ({error})") from error
    content: Any = _unpickled(file)
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = cast(Any, content)[key]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{file}: holds no tensors by name, but {_type_of(content)}")
    named = cast(Mapping[Any, Any], content)
    for name, value in named.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(f"{file}: {name!r} is no tensor, but {_type_of(value)}; expected the state of a model")
        if value.layout != torch.strided or value.device.type != "cpu" or _stored(value) < value.numel():
            raise InputError(f"{file}: tensor {name!r} is not stored in full")
    return {name: value.detach() for name, value in named.items()}


def _stored(value: Tensor) -> int:
    """Number of elements of a tensor that the file holds; its shape may announce more."""
    return value.untyped_storage().nbytes() // value.element_size()


def _unpickled(file: Path) -> Any:
    try:
        mapped = zipfile.is_zipfile(file)  # files of torch before version 1.6 cannot be mapped
        with safe_globals(_ARRAYS), warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise InputError(
            f"{file}: is refused: it would have {wanted[1]} run when it is read, which no tensor needs"
            if wanted
            else f"{file}: is no checkpoint of tensors and plain values that can be read"
        ) from error
    except Exception as error:  # torch.load raises many kinds of errors; each means that the file cannot be read
        raise InputError(f"{file}: is no checkpoint that can be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """First sentence of an error message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0]


def _type_of(value: Any) -> str:
    return f"a {type(value).__name__}"


def compare(wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], file: str, model: str) -> None:
    """Raise InputError, naming the first difference, unless ``tensors`` have the names and shapes ``wanted``."""
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors:
            raise InputError(f"{file}: holds no tensor {name!r}, which {model} has")
        if name not in wanted:
            raise InputError(f"{file}: holds a tensor {name!r}, which {model} does not have")
        shape = tuple(tensors[name].shape)
        if shape != wanted[name]:
            raise InputError(f"{file}: tensor {name!r} of {model} has the shape {shape}; {wanted[name]} was expected")
        if shape and not (tensors[name].is_floating_point() and tensors[name].isfinite().all()):
            raise InputError(f"{file}: tensor {name!r} of {model} holds something other than finite numbers")


def read_vocabulary(file: Path) -> list[str]:
    """A vocabulary: one word a line, a JSON list, or a pickled list as of Prefix-AAC's authors.

    Raises InputError for anything else, a word that comes twice, and a pickle that holds more than texts.
    """
    words = _listed(file)
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in cast(list[Any], words)):
        raise InputError(f"{file}: is no vocabulary: expected a word a line, or a list of words")
    listed = cast(list[str], words)
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
    except Exception as error:  # a broken pickle, and JSON too deep, raise many kinds of errors
        raise InputError(f"{file}: the vocabulary cannot be read ({_reason(error)})") from error


class _PlainPickle(pickle.Unpickler):
    """Unpickler of lists, texts and numbers only: it refuses to import anything."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"it wants {module_name}.{global_name}, and is refused")
