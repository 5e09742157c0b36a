"""Where a model computes, and in which type of number."""

from __future__ import annotations

import torch

from mmprefix.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def best_device() -> str:
    """A GPU where there is one: CUDA's, else Apple's; else the processor."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def require_device(device: str | torch.device) -> torch.device:
    """The device that is called so; InputError where torch does not know it or this machine does not have it."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"device {str(device)!r}: cannot be used here ({reason}); cpu always can") from error
    return found


def default_dtype(name: str | None, device: torch.device) -> torch.dtype | None:
    """The type called ``name``; without one bfloat16 on a CUDA device that has it, and None (as it is) elsewhere."""
    if name is None:
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    if name not in DTYPES:
        raise InputError(f"dtype {name!r}: give one of {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_of(name: str) -> torch.dtype:
    """The type of the numbers in a store; InputError for one that it cannot hold."""
    kinds = {"float16": torch.float16, "float32": torch.float32}
    if name not in kinds:
        raise InputError(f"cache_dtype {name!r}: give {' or '.join(kinds)}")
    return kinds[name]
