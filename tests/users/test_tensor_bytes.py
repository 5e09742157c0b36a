"""Tensors as bytes: what comes back, their shapes without reading them, damaged bytes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load

from mmprefix.errors import InputError
from mmprefix.users.tensor_bytes import from_bytes, shapes, to_bytes

TENSORS = {"numbers": torch.arange(6.0).view(2, 3).T.half(), "count": torch.tensor(4)}


def test_tensors_come_back_with_their_types_and_shapes() -> None:
    data = to_bytes(TENSORS)
    for read in (from_bytes(data), load(data)):
        assert read.keys() == TENSORS.keys()
        assert all(
            torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
        )


@pytest.mark.parametrize(
    "data", [b"", b"\x01\x02", (2).to_bytes(8, "little") + b"[]", (7).to_bytes(8, "little") + b'{"a":1}']
)
def test_damaged_bytes_have_no_shapes(data: bytes) -> None:
    assert shapes(data) == {}


def test_shapes_are_read_from_the_header_alone() -> None:
    data = to_bytes(TENSORS)
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    assert shapes(header) == shapes(data) == {"numbers": "float16 3 x 2", "count": "int64"}


def test_no_tensors_and_damaged_bytes_are_refused() -> None:
    with pytest.raises(InputError, match="at least one is needed"):
        to_bytes({})
    with pytest.raises(InputError, match="its tensors are damaged"):
        from_bytes(to_bytes(TENSORS)[:-1])
