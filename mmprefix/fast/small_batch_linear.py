"""Linear layers for few rows on a CPU: a search multiplies one row a beam, and memory takes the time.

Claim: torch's matrix product is made for many rows. From a copy of a matrix that is laid out for it, oneDNN multiplies
two to a few dozen rows in about two thirds of the time; sums are the same up to their order. Only matrices that no
training changes are copied. The kernel depends on the number of rows and on the model, never on earlier calls, so a
result has the same bits in a fresh process and after hours of work (``tests/fast/test_history.py``): a matrix is copied
at its first product of a few rows. A single row is no faster from the copy, but a usual matrix-vector product adds up
in an order that depends on where in memory the weights begin, which a copied model, or one in another file, has
elsewhere.
Measure: for the size of GPT-2 small all copies together take about half a second on one core, which one caption of 20
tokens by five beams gains back. ``benchmarks/generate.py``, with and without.
Off: ``MMPREFIX_FAST`` without ``small_batch_linear``.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers.pytorch_utils import Conv1D

MAX_ROWS = 48  # rows; from this number on the usual product is as fast
MAX_COPY_BYTES = 1 << 30  # bytes that all copies of a model may take together; a larger model stays as it is


def patch_linears(model: nn.Module) -> bool:
    """Replace ``forward`` of all linear layers of a frozen ``model``; False for a large model or without oneDNN."""
    layers = [cast(nn.Linear | Conv1D, module) for module in model.modules() if type(module) in (nn.Linear, Conv1D)]
    fits = torch.backends.mkldnn.is_available() and sum(4 * layer.weight.numel() for layer in layers) <= MAX_COPY_BYTES
    if fits:
        for layer in layers:
            layer.forward = SmallBatchLinear(layer)  # pyright: ignore[reportAttributeAccessIssue]
    return fits


class WeightKey:
    """Key of what is computed from a weight and kept: equal to another one as long as the weight's numbers are.

    A change in place and other weights in their stead are noticed; a change through ``weight.data`` is not, nor one of
    a tensor made in inference mode. It holds a reference to the storage rather than its address, which new weights may
    be given once the old ones are gone.
    """

    def __init__(self, weight: Tensor) -> None:
        version = 0 if weight.is_inference() else weight._version
        self._key = StorageWeakRef(weight.untyped_storage()), weight.storage_offset(), version

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightKey) and self._key == other._key

    def __reduce__(self) -> Any:
        return object, ()  # a copy of a model has other weights


class SmallBatchLinear:
    """``forward`` of a linear layer, its kernel chosen by the number of rows. A changed weight is copied again."""

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        self.layer = layer
        self.min_rows = 2 if isinstance(layer, Conv1D) else 1  # a Conv1D's matrix lies so that a single row is as fast
        self.packed_weight: Tensor | None = None
        self.copy_key: object = None

    def __call__(self, rows: Tensor) -> Tensor:
        """(... I) → (... O)."""
        weight = self.layer.weight
        count = rows.numel() // rows.shape[-1]
        if not (
            self.min_rows <= count <= MAX_ROWS
            and not weight.requires_grad
            and not weight.is_inference()  # its changes are not counted
            and not (torch.is_grad_enabled() and rows.requires_grad)
            and weight.device.type == "cpu"
            and weight.dtype == rows.dtype == torch.float32
        ):
            return self._usual(rows)
        return torch.ops.mkldnn._linear_pointwise(rows, self._packed(weight), self.layer.bias, "none", [], "")

    def __getstate__(self) -> dict[str, Any]:
        return {
            **vars(self),
            "packed_weight": None,
        }  # oneDNN's own layout; made again at the next call

    def _usual(self, rows: Tensor) -> Tensor:
        return type(self.layer).forward(self.layer, rows)  # pyright: ignore

    def _packed(self, weight: Tensor) -> Tensor:
        key = WeightKey(weight)
        if self.packed_weight is None or self.copy_key != key:
            matrix = weight.detach() if isinstance(self.layer, nn.Linear) else weight.detach().T.contiguous()
            self.packed_weight, self.copy_key = torch.ops.mkldnn._reorder_linear_weight(matrix, None), key
        return cast(Tensor, self.packed_weight)
