"""Hidden states that a decoder's layers have at the end of a prompt behind a prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError
from mmprefix.kv_cache.state import State
from mmprefix.model import PrefixLM
from mmprefix.types import AnyPrefix, Batch


def read_last(
    model: PrefixLM, layers: Sequence[nn.Module], batch: Batch, prefix: AnyPrefix
) -> tuple[State, list[Tensor]]:
    """State after ``prefix`` and the prompts of ``batch``, and the outputs (B E) of ``layers`` at the last position.

    Raises InputError for inputs without a prompt.
    """
    decoder, outputs = cast(ComposedDecoder, model.decoder), dict[int, Tensor]()

    def keep(number: int) -> Any:
        def hook(module: Any, inputs: Any, out: Any) -> None:
            outputs[number] = cast(Tensor, out[0] if isinstance(out, tuple) else out)

        return hook

    state = decoder.prefill(prefix)
    handles = [layer.register_forward_hook(keep(number)) for number, layer in enumerate(layers)]
    try:
        state = decoder.append_prompts(state, model.prompts(batch))
    finally:
        for handle in handles:
            handle.remove()
    if not outputs:
        raise InputError("RobustPrefix: nothing is read behind the prefix; give the inputs a prompt")
    real = state.mask[:, -outputs[0].shape[1] :]
    last = torch.where(real, torch.arange(real.shape[1], device=real.device), 0).amax(1)
    rows = torch.arange(len(last), device=last.device)
    return state, [outputs[number][rows, last] for number in range(len(layers))]
