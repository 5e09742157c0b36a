"""Device and floating-point type of a model."""

from __future__ import annotations

import torch

from mmprefix.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED = ("float16", "float32")  # types of a feature store: numpy, which writes its tars, has no bfloat16


def best_device() -> str:
    """Name of the best device: a CUDA GPU, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def multiplies_bfloat16() -> bool:
    """True where this CPU has products of bfloat16 (AVX-512 BF16, AMX), about twice as fast as those of float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def require_device(device: str | torch.device) -> torch.device:
    """The device named ``device``; InputError where torch does not know it or this machine does not have it."""
    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"device {str(device)!r}: cannot be used here ({reason}); cpu always can") from error
    return checked


def default_dtype(name: str | None, device: torch.device) -> torch.dtype | None:
    """The type ``name``; without a name bfloat16 on a CUDA device that supports it, None (no change) elsewhere."""
    if name is None:
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    if name not in DTYPES:
        raise InputError(f"dtype {name!r}: give one of {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_of(name: str) -> torch.dtype:
    """Type of the numbers in a feature store; InputError for one that it cannot hold."""
    if name not in STORED:
        raise InputError(f"cache_dtype {name!r}: give {' or '.join(STORED)}")
    return DTYPES[name]
