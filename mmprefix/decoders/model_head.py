"""Logits as a model of Transformers computes them: everything that its ``forward`` does after its stack of layers.

Most models multiply by an output matrix. Others transform first (BERT), scale (Cohere, Granite) or cap (Gemma 2): for
them it is the model's own ``forward``, with the hidden states in the place of the stack.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions


class _Output(BaseModelOutputWithPastAndCrossAttentions):
    """Output of a stack; what it lacks is None, such as the router logits of experts."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _HiddenStates(nn.Module):
    """Stack of layers that returns its input; its other attributes are those of the model's ``stack``."""

    def __init__(self, stack: nn.Module) -> None:
        super().__init__()
        self._own = [stack]  # in a list, so that it is no submodule

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        return _Output(last_hidden_state=inputs_embeds)

    def __getattr__(self, name: str) -> Any:
        if name in ("_parameters", "_buffers", "_modules", "_own"):
            return super().__getattr__(name)
        return self if name == "decoder" else getattr(self._own[0], name)


class WholeHead:
    """Hidden states (... E') → logits (... V) by the ``forward`` of ``lm`` without its ``stack``."""

    def __init__(self, lm: Any, stack: nn.Module) -> None:
        self.lm = lm
        self.name = next(name for name, child in lm.named_children() if any(part is stack for part in child.modules()))

    def __call__(self, hidden: Tensor) -> Tensor:
        """Hidden states (... E') → logits (... V)."""
        bare = copy(self.lm)  # its modules are shared; the model itself stays as it is, for other threads
        bare._modules = {**self.lm._modules, self.name: _HiddenStates(self.lm.get_submodule(self.name))}
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        return bare(inputs_embeds=rows, use_cache=False).logits.view(*hidden.shape[:-1], -1)


def whole_head(lm: Any, stack: nn.Module) -> WholeHead | None:
    """Head of ``lm`` after its ``stack``; None if it is the output matrix and no more."""
    matrix: nn.Linear | None = lm.get_output_embeddings()
    if matrix is None or matrix.weight.is_meta:
        return None
    head, weight = WholeHead(lm, stack), matrix.weight
    hidden = torch.linspace(-50, 50, 2 * matrix.in_features, dtype=weight.dtype, device=weight.device).view(2, -1)
    try:
        with torch.no_grad():
            plain = torch.allclose(head(hidden).float(), matrix(hidden).float(), rtol=1e-5)
    except (
        Exception
    ):  # of shapes: there is a layer of another width before the output matrix, or another order of calls
        plain = False
    return None if plain else head
