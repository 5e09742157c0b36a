"""Quantised language models: matrices of a frozen model in 8 or 4 bits, made while it is loaded.

``int8`` is torchao's weight-only quantisation, each row with its own scale; ``nf4`` is that of QLoRA
(https://arxiv.org/abs/2305.14314) by bitsandbytes, in blocks of 64. Embeddings, output matrix and norms stay.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, TorchAoConfig

from mmprefix.errors import InputError, require_one_of
from mmprefix.weights import source as sources

QUANTIZATIONS = {"int8": "torchao", "nf4": "bitsandbytes"}
"""Names of quantisations, and the package of each."""


def load_options(name: str, path: Path, quantize: str, dtype: torch.dtype) -> dict[str, Any]:
    """Options by which ``from_pretrained`` quantises the model in the folder ``path``; other weights are of ``dtype``.

    Raises InputError for an unknown quantisation, without its package or its GPU, and for weights that are quantised
    already: a .gguf file, or a folder whose configuration says so.
    """
    require_one_of("quantize", quantize, QUANTIZATIONS)
    if path.is_file():
        raise InputError(f"{name!r}: quantize {quantize}: a .gguf file is unpacked to {dtype}; give a folder instead")
    if "quantization_config" in sources.read_json(path / "config.json"):
        raise InputError(f"{name!r}: quantize {quantize}: the model in {path} is quantised already; leave quantize out")
    if quantize == "nf4" and not torch.cuda.is_available():
        raise InputError(f"{name!r}: quantize nf4 needs a CUDA GPU, for its gradients are wrong without; take int8")
    missing = [package for package in (QUANTIZATIONS[quantize], "accelerate") if find_spec(package) is None]
    if missing:
        raise InputError(
            f"{name!r}: quantize {quantize} needs {' and '.join(missing)}; install mmprefix[quantized], or leave it out"
        )
    if quantize == "int8":
        return {"quantization_config": TorchAoConfig(import_module("torchao.quantization").Int8WeightOnlyConfig())}
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": four, "device_map": {"": "cpu"}}  # it is moved with the rest of the model


def require_quantized(name: str, network: Any, quantize: str) -> None:
    """Raise InputError if no matrix of ``network`` was quantised: GPT-2's are none of ``nn.Linear``."""
    if not any(is_quantized(module) for module in network.modules()):
        raise InputError(
            f"{name!r}: quantize {quantize} finds no linear layer in {type(network).__name__}; leave quantize out"
        )


def is_quantized(module: nn.Module) -> bool:
    """True for a layer whose weight is no plain parameter."""
    return isinstance(getattr(module, "weight", None), nn.Parameter) and type(module.weight) is not nn.Parameter


def stored_bytes(network: nn.Module) -> int:
    """Memory of all parameters of ``network``, quantised ones as they are stored."""
    return sum(sum(part.nbytes for part in _parts(parameter)) for parameter in network.parameters())


def _parts(parameter: Tensor) -> list[Tensor]:
    """Tensors that hold the numbers of a parameter; it itself, unless it is of a class that wraps others."""
    if not hasattr(type(parameter), "__tensor_flatten__"):
        return [parameter]
    names: list[str] = parameter.__tensor_flatten__()[0]  # pyright: ignore[reportAttributeAccessIssue]
    return [getattr(parameter, name) for name in names]
