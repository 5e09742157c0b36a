"""What is read from a language model's folder beside its weights, and what is refused there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mmprefix import sources
from mmprefix.outlines import words
from mmprefix.types import InputError


def tokenizer_for(lm: Any, name: str, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``; InputError where there is none, or one that is not the model's."""
    try:
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        rows = lm.get_input_embeddings().num_embeddings
        if not 1 < len(found) <= rows:  # without its files transformers makes an empty tokenizer, and says nothing
            raise ValueError(f"it has {len(found)} tokens, the model {rows} embeddings")
        return found
    except (OSError, ValueError) as error:
        if sources.sizes_only():
            return words()
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"decoder {name!r}: the folder {folder} holds no tokenizer that can be loaded: {reason}"
        ) from error


def refuse_scaled_logits(name: str, config: Any) -> None:
    """Logits are made by the output matrix alone, on caption positions only; a few models do more to them."""
    for option in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, option, None):
            raise InputError(f"decoder {name!r} changes its logits by {option!r}, which is not supported yet")


def untied(head: nn.Linear) -> nn.Linear:
    """A trainable copy of an output head, in float32, that shares nothing with the model's embeddings."""
    copy = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, device=head.weight.device)
    copy.load_state_dict({name: value.float() for name, value in head.state_dict().items()})
    return copy
