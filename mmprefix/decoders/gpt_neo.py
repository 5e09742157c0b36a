"""GPT-Neo: half of its layers look back over a window that the model counts by positions of the cache.

Here texts share rows and prefixes are padded, so the window is a part of the attention mask, and the model's own is
switched off. Its stack takes one mask for all layers: global and local ones are two parts of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def hook_masks(lm: Any) -> None:
    """Switch the windows of ``lm`` off and let each layer pick its part of a mask (see ``join_masks``)."""
    for kind, layer in zip(lm.config.attention_layers, lm.transformer.h, strict=True):
        layer.attn.attention.bias = torch.ones_like(layer.attn.attention.bias)
        layer.register_forward_pre_hook(_PickMask(int(kind == "local")), with_kwargs=True)


def join_masks(masks: Tensor | dict[str, Tensor]) -> Tensor:
    """One mask for all layers (B 1 N M) as it is; those of global and local layers as the two parts of (B 2 N M)."""
    return torch.cat([masks["global"], masks["local"]], dim=1) if isinstance(masks, dict) else masks


class _PickMask:
    """Hook of a layer: of a mask in two parts it reads the one at ``index``."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.shape[1] == 2:
            kwargs = {**kwargs, "attention_mask": mask[:, self.index : self.index + 1]}
        return args, kwargs
