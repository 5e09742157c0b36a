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


class SmallBatchLinear:
    """``forward`` of a linear layer with the kernel chosen by the number of rows. A changed weight is copied again."""

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        self.layer: Any = layer
        self.min_rows = 2 if isinstance(layer, Conv1D) else 1  # the layout of Conv1D is as fast for a single row
        self.packed_weight: Tensor | None = None
        self.copy_key: object = None

    def __call__(self, rows: Tensor) -> Tensor:
        """Apply the layer: (... I) → (... O)."""
        weight = self.layer.weight
        count = rows.numel() // rows.shape[-1]
        if not (
            self.min_rows <= count <= MAX_ROWS
            and not weight.requires_grad
            and not weight.is_inference()  # its changes are not detected
            and not (torch.is_grad_enabled() and rows.requires_grad)
            and weight.device.type == "cpu"
            and weight.dtype == rows.dtype == torch.float32
        ):
            return self._plain(rows)
        return torch.ops.mkldnn._linear_pointwise(rows, self._packed(weight), self.layer.bias, "none", [], "")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "packed_weight": None}  # in oneDNN's layout, made again at the next call

    def _plain(self, rows: Tensor) -> Tensor:
        return type(self.layer).forward(self.layer, rows)

    def _packed(self, weight: Tensor) -> Tensor:
        key, packed = WeightKey(weight), self.packed_weight
        if packed is None or self.copy_key != key:
            matrix = weight.detach() if isinstance(self.layer, nn.Linear) else weight.detach().T.contiguous()
            packed = torch.ops.mkldnn._reorder_linear_weight(matrix, None)
            self.packed_weight, self.copy_key = packed, key
        return packed
