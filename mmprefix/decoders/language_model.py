"""What is read from a language model's folder beside its weights, and what is refused there."""

from __future__ import annotations

from typing import Any

from torch import nn

from mmprefix.errors import InputError


def refuse_scaled_logits(name: str, config: Any) -> None:
    """Logits are made by the output matrix alone, on caption positions only; a few models do more to them."""
    for option in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, option, None):
            raise InputError(f"decoder {name!r} changes its logits by {option!r}, which is not supported yet")


def copy_head(head: nn.Linear) -> nn.Linear:
    """A trainable copy of an output head, in float32, that shares nothing with the model's embeddings."""
    copy = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, device=head.weight.device)
    copy.load_state_dict({name: value.float() for name, value in head.state_dict().items()})
    return copy
