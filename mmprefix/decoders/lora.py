"""LoRA and DoRA for a frozen decoder, trained beside the prefix, by PEFT.

LoRA: Hu et al., https://arxiv.org/abs/2106.09685. Device-directed speech detection with a large language model trains
LoRA of rank 8 and alpha 32 beside its two mappers (Wagner et al., https://arxiv.org/abs/2312.03632). DoRA trains the
lengths of a matrix's columns beside LoRA, which then turns them alone: Liu et al., https://arxiv.org/abs/2402.09353.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

from mmprefix.errors import InputError


def add_lora(lm: Any, rank: int, alpha: float, targets: list[str] | None, *, dora: bool = False) -> tuple[str, ...]:
    """Add LoRA, or with ``dora`` DoRA, to ``lm`` in place → names of the new parameters; only they require a gradient.

    ``targets`` None: PEFT's default layers for the model (queries, keys and values). Raises InputError without PEFT,
    and for targets that the model does not have.
    """
    if rank < 0:
        raise InputError(f"lora_rank {rank}: give a number from 1 on, or 0 for no LoRA")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("lora_rank: needs PEFT; install mmprefix[peft], or leave lora_rank at 0") from error
    before = {id(parameter) for parameter in lm.parameters()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # PEFT detects the layout of GPT-2's layers
            config = LoraConfig(r=rank, lora_alpha=cast(int, alpha), target_modules=targets, use_dora=dora)
            inject_adapter_in_model(config, lm)
    except ValueError as error:
        if targets is None:
            reason = f"PEFT has no default layers for a {lm.config.model_type!r} model; name some: [q_proj, v_proj]"
        else:
            reason = str(error).splitlines()[0]
        raise InputError(f"lora_targets {targets}: {reason}") from error
    for parameter in lm.parameters():
        old = id(parameter) in before
        parameter.requires_grad_(not old)
        parameter.data = parameter.data if old else parameter.data.float()  # trained in float32
    return tuple(name for name, parameter in lm.named_parameters() if id(parameter) not in before)
