"""Products of a few rows on a CPU: a search multiplies one row a beam, and there it is memory that takes the time.

Torch's matrix product is made for many rows. From a copy of a matrix that is laid out for it, oneDNN multiplies two to
a few dozen rows in about two thirds of the time; a single row is a matrix-vector product. The sums are the same up to
their order. Only matrices that no training changes are copied.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

MAX_ROWS = 48  # rows; from there on the usual product is as fast
MAX_COPY_BYTES = 1 << 30  # bytes that all copies of a model may take together; a larger model stays as it is
PATIENCE = 24  # products of few rows before a matrix is copied, so that one short text does not pay for it


def patch_linears(model: nn.Module) -> None:
    """Lets all linear layers of a frozen ``model`` multiply few rows faster, when they come to do so."""
    layers = [cast(nn.Linear | Conv1D, module) for module in model.modules() if type(module) in (nn.Linear, Conv1D)]
    if torch.backends.mkldnn.is_available() and sum(4 * layer.weight.numel() for layer in layers) <= MAX_COPY_BYTES:
        for layer in layers:
            layer.forward = SmallBatchLinear(layer)  # pyright: ignore[reportAttributeAccessIssue]


class SmallBatchLinear:
    """The product of a linear layer, by the number of rows."""

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        self.layer = layer
        self.copy: Tensor | None = None
        self.made_of: tuple[int, int] | None = None
        self.uses = 0

    def __call__(self, rows: Tensor) -> Tensor:
        """(... I) → (... O)."""
        weight = self.layer.weight
        count = rows.numel() // rows.shape[-1]
        if not (
            0 < count <= MAX_ROWS
            and not weight.requires_grad
            and not (torch.is_grad_enabled() and rows.requires_grad)
            and weight.device.type == "cpu"
            and weight.dtype == rows.dtype == torch.float32
        ):
            return self._usual(rows)
        if count == 1:
            if isinstance(self.layer, Conv1D):  # its matrix lies the other way round, where a product is as fast
                return self._usual(rows)
            found = torch.mv(weight, rows.reshape(-1)).view(*rows.shape[:-1], -1)
            return found if self.layer.bias is None else found + self.layer.bias
        self.uses += 1
        if self.uses <= PATIENCE:
            return self._usual(rows)
        return torch.ops.mkldnn._linear_pointwise(rows, self._packed(weight), self.layer.bias, "none", [], "")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "copy": None}  # its layout is oneDNN's own, and it is soon made again

    def _usual(self, rows: Tensor) -> Tensor:
        return type(self.layer).forward(self.layer, rows)  # pyright: ignore

    def _packed(self, weight: Tensor) -> Tensor:
        version = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if self.copy is None or self.made_of != version:
            matrix = weight.detach() if isinstance(self.layer, nn.Linear) else weight.detach().T.contiguous()
            self.copy, self.made_of = torch.ops.mkldnn._reorder_linear_weight(matrix, None), version
        return cast(Tensor, self.copy)
