"""Linear layers for few rows on a CPU: a search multiplies one row per beam, which is bound by memory.

Claim: torch's matrix product is made for many rows. With a copy of the matrix in its own layout, oneDNN multiplies two
to a few dozen rows in about two thirds of the time; sums are equal up to their order. Only matrices that are not
trained are copied, each at its first product of a few rows. The kernel depends on the number of rows and on the model,
never on earlier calls, so a result has the same bits in a fresh process and after hours of work
(``tests/fast/test_history.py``). A single row is no faster with the copy, but torch's matrix-vector product adds in an
order that depends on the address of the weights, which differs in a copied model or in one from another file.
Measure: all copies of a model of GPT-2 small's size take about half a second on one core, which is regained by one
caption of 20 tokens with five beams. ``benchmarks/generate.py``, with and without.
Off: ``MMPREFIX_FAST`` without ``small_batch_linear``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers.pytorch_utils import Conv1D

MAX_ROWS = 48  # with more rows torch's product is as fast
MAX_COPY_BYTES = 1 << 30  # of all copies of a model; a larger model is not patched


def patch_linears(model: nn.Module) -> bool:
    """Replace ``forward`` of all linear layers of a frozen ``model``; False for a large model or without oneDNN.

    Quantised matrices, whose weight is no plain parameter, are left alone.
    """
    layers: list[Any] = [module for module in model.modules() if type(module) in (nn.Linear, Conv1D)]
    layers = [layer for layer in layers if type(layer.weight) is nn.Parameter]
    fits = torch.backends.mkldnn.is_available() and sum(4 * layer.weight.numel() for layer in layers) <= MAX_COPY_BYTES
    if fits:
        for layer in layers:
            layer.forward = SmallBatchLinear(layer)
    return fits


class WeightKey:
    """Key of a value that is computed from a weight and cached: keys are equal while the weight is unchanged.

    Changes in place and new weights are detected; changes through ``weight.data``, or of a tensor made in inference
    mode, are not. The key holds a reference to the storage, not its address, which new weights could reuse.
    """

    def __init__(self, weight: Tensor) -> None:
        version = 0 if weight.is_inference() else weight._version
        self._key = StorageWeakRef(weight.untyped_storage()), weight.storage_offset(), version

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightKey) and self._key == other._key

    def __reduce__(self) -> Any:
        return object, ()  # equals no key: a copied model has other weights

    def fits(self, weight: Tensor) -> bool:
        """True if ``weight``, no tensor made in inference mode, is unchanged: equality without another key."""
        storage, offset, version = self._key
        same = weight.untyped_storage()._cdata == storage.cdata and weight.storage_offset() == offset
        return bool(same and weight._version == version)


class PackedWeight:
    """Frozen weights of linear ``layers``, one below the other, in oneDNN's layout.

    The copy is made at the first call, and again when a weight has changed.
    """

    def __init__(self, *layers: Any) -> None:
        self.layers = layers
        self.copy: Tensor | None = None
        self.keys: list[Any] = []

    def __call__(self) -> Tensor | None:
        """Packed copy of the weights as they are now; None for weights that are trained, not on a CPU, not float32."""
        copied, packed = self.keys, self.copy
        weights = [layer._parameters["weight"] for layer in self.layers]  # without the search of ``layer.weight``
        for weight in weights:
            if weight.requires_grad or weight.is_inference():  # changes of the latter are not detected
                return None
        if packed is not None and all(key.fits(weight) for key, weight in zip(copied, weights, strict=True)):
            return packed
        if not all(weight.is_cpu and weight.dtype == torch.float32 for weight in weights):
            return None
        parts = [
            weight.detach() if isinstance(layer, nn.Linear) else weight.detach().T.contiguous()
            for layer, weight in zip(self.layers, weights, strict=True)
        ]
        packed = torch.ops.mkldnn._reorder_linear_weight(parts[0] if len(parts) == 1 else torch.cat(parts), None)
        self.copy, self.keys = packed, [WeightKey(weight) for weight in weights]
        return packed

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "copy": None, "keys": []}  # in oneDNN's layout, made again at the next call


class SmallBatchLinear:
    """``forward`` of a linear layer with the kernel chosen by the number of rows."""

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        self.layer: Any = layer
        self.min_rows = 2 if isinstance(layer, Conv1D) else 1  # the layout of Conv1D is as fast for a single row
        self.packed = PackedWeight(layer)

    def __call__(self, rows: Tensor) -> Tensor:
        """Apply the layer: (... I) → (... O)."""
        count = rows.numel() // rows.shape[-1]
        if (
            self.min_rows <= count <= MAX_ROWS
            and rows.dtype == torch.float32
            and not (torch.is_grad_enabled() and rows.requires_grad)
        ):
            packed = self.packed()
            if packed is not None:
                return torch.ops.mkldnn._linear_pointwise(rows, packed, self.layer.bias, "none", [], "")
        return type(self.layer).forward(self.layer, rows)
