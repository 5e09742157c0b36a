"""Tensors as bytes of the safetensors format, and their shapes read from its header alone. torch comes when needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mmprefix.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Named tensors of any device, in a safetensors file's bytes. Raises InputError where there are none."""
    from safetensors.torch import save

    if not tensors:
        raise InputError("tensors: at least one is needed")
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def from_bytes(data: bytes) -> dict[str, Tensor]:
    """Named tensors, on the CPU. Raises InputError where the bytes are damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except SafetensorError as error:
        raise InputError(f"its tensors are damaged ({error}); drop them, and compute or train them again") from error


def shapes(data: bytes) -> dict[str, str]:
    """``float16 10 x 768`` and the like, by name; none of bytes that are damaged.

    ``data`` may be the header alone: 8 bytes of its length, JSON.
    """
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        described = {name: value for name, value in header.items() if name != "__metadata__"}
        return {
            name: f"{_DTYPES.get(value['dtype'], value['dtype'])} {' x '.join(map(str, value['shape']))}".strip()
            for name, value in described.items()
        }
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
