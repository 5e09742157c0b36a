"""Low-rank additions to a frozen decoder, trained beside the prefix; they are PEFT's.

LoRA (Hu et al.), https://arxiv.org/abs/2106.09685. Device-directed speech detection with a large language model trains
such additions with rank 8 and alpha 32 beside its two mappers (Wagner et al., https://arxiv.org/abs/2312.03632).
"""

from __future__ import annotations

import warnings
from typing import Any, cast

from mmprefix.errors import InputError


def add_lora(lm: Any, rank: int, alpha: float, targets: list[str] | None) -> tuple[str, ...]:
    """Adds them to ``lm`` in place; the names of the new parameters, which alone want a gradient.

    ``targets`` None takes the layers that PEFT holds usual for the model (queries, keys and values). Raises InputError
    without PEFT, and for targets that the model does not have.
    """
    if rank < 0:
        raise InputError(f"lora_rank {rank}: give a number from 1 on, or 0 for none")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("lora_rank: needs PEFT; install mmprefix[peft], or leave lora_rank at 0") from error
    before = {id(parameter) for parameter in lm.parameters()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # PEFT sees by itself how GPT-2's layers lie
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=cast(int, alpha), target_modules=targets), lm)
    except ValueError as error:
        if targets is None:
            reason = f"PEFT knows no usual layers of a {lm.config.model_type!r} model; name some: [q_proj, v_proj]"
        else:
            reason = str(error).splitlines()[0]
        raise InputError(f"lora_targets {targets}: {reason}") from error
    for parameter in lm.parameters():
        old = id(parameter) in before
        parameter.requires_grad_(not old)
        parameter.data = parameter.data if old else parameter.data.float()  # what is trained, whatever the model is in
    return tuple(name for name, parameter in lm.named_parameters() if id(parameter) not in before)
