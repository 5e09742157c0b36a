"""Low-rank additions to a frozen decoder, trained beside the prefix; they are PEFT's.

LoRA (Hu et al.), https://arxiv.org/abs/2106.09685. Device-directed speech detection with a large language model trains
such additions with rank 8 and alpha 32 beside its two mappers (Wagner et al., https://arxiv.org/abs/2312.03632).
"""

from __future__ import annotations

from typing import Any, cast

from mmprefix.types import InputError


def add_lora(lm: Any, rank: int, alpha: float, targets: list[str] | None) -> tuple[str, ...]:
    """Adds them to ``lm`` in place; the names of the new parameters, which alone want a gradient.

    ``targets`` None takes the layers that PEFT holds usual for the model (queries, keys and values). Raises InputError
    without PEFT, and for targets that the model does not have.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("lora_rank: needs PEFT; install mmprefix[peft], or leave lora_rank at 0") from error
    before = {id(parameter) for parameter in lm.parameters()}
    try:
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=cast(int, alpha), target_modules=targets), lm)
    except ValueError as error:
        raise InputError(f"lora_targets {targets}: {str(error).splitlines()[0]}") from error
    for parameter in lm.parameters():
        if id(parameter) in before:
            parameter.requires_grad_(False)
    return tuple(name for name, parameter in lm.named_parameters() if id(parameter) not in before)
