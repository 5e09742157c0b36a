"""State-offset tuning: a learned offset of the state of every layer of Mamba, at every step.

State-offset Tuning: State-based Parameter-Efficient Fine-Tuning for State Space Models (Kang et al.),
https://arxiv.org/abs/2503.03499: where a layer computes y_t = (C_t h_t + D x_t) * silu(z_t), the offset h' of the state
gives y_t += silu(z_t) * (C_t h'), the offset of the output b gives y_t += silu(z_t) * b. Both begin at zero. A prefix
stands at the beginning of a text, and a state forgets it; an offset is there at every step.

A decoder of this toolkit keeps keys and values, so Mamba is none: the offset is a module beside a model of
Transformers, which is trained and run as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mmprefix.errors import InputError, require_one_of

_PARTS = ("in_proj", "x_proj", "out_proj")


class StateOffset(nn.Module):
    """Offsets for all layers of ``lm``, a Mamba of Transformers, which it freezes; they act while this object lives.

    Args:
        lm: the model (``MambaForCausalLM``, ``FalconMambaForCausalLM``).
        kind: "state" learns h' (L D' N), of inner width D' and N numbers of a channel's state; "output" b (L D').

    Raises InputError for a model without Mamba's mixers, and in a run that leaves their projections out (fused kernels
    in training mode; ``lm.eval()`` runs without them and still has gradients).
    """

    def __init__(self, lm: nn.Module, kind: Literal["state", "output"] = "state") -> None:
        super().__init__()
        require_one_of("kind", kind, ("state", "output"))
        mixers = _mixers(lm)
        lm.requires_grad_(False)
        width, states = int(mixers[0].intermediate_size), int(mixers[0].ssm_state_size)
        shape = (len(mixers), width, states) if kind == "state" else (len(mixers), width)
        self.offset = nn.Parameter(torch.zeros(shape, device=mixers[0].D.device))
        self._handles = [handle for n, mixer in enumerate(mixers) for handle in _Offset(self, n).hooks(mixer)]

    def remove(self) -> None:
        """Take the offsets off the model again."""
        for handle in self._handles:
            handle.remove()


class _Offset:
    """Hooks of one mixer: remember gate z and C of a run, and add the offset to what the output projection reads."""

    def __init__(self, owner: StateOffset, number: int) -> None:
        self.owner, self.number = owner, number
        self.gate: Tensor | None = None  # (B T D')
        self.c: Tensor | None = None  # (B T N)

    def hooks(self, mixer: Any) -> Iterable[Any]:
        """Hook the mixer and its projections → handles."""
        states = int(mixer.ssm_state_size)

        def keep_gate(module: nn.Module, args: Any, output: Tensor) -> None:
            self.gate = output.chunk(2, -1)[1]

        def keep_c(module: nn.Module, args: Any, output: Tensor) -> None:
            self.c = output[..., -states:]

        yield mixer.in_proj.register_forward_hook(keep_gate)
        yield getattr(mixer, "c_layernorm", mixer.x_proj).register_forward_hook(keep_c)  # FalconMamba normalises C
        yield mixer.out_proj.register_forward_pre_hook(self.add)
        yield mixer.register_forward_hook(self.check)

    def add(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        """Add the offset to y (B T D')."""
        gate, c = self.gate, self.c
        if gate is None or c is None:
            return None
        own = self.owner.offset[self.number]
        shift = c.to(own.dtype) @ own.T if own.dim() == 2 else own
        self.gate = self.c = None
        return (args[0] + (silu(gate.to(own.dtype)) * shift).to(args[0].dtype),)

    def check(self, module: nn.Module, args: Any, output: Any) -> None:
        """Raise InputError if the run passed the hooks by."""
        if self.gate is not None or self.c is not None:
            self.gate = self.c = None
            raise InputError("StateOffset: this run's kernels left out Mamba's projections; call eval() of the model")


def _mixers(lm: nn.Module) -> list[Any]:
    """Mamba's mixers of a model, first to last. Raises InputError for a model without."""
    mixers = [m for m in lm.modules() if all(hasattr(m, name) for name in (*_PARTS, "ssm_state_size"))]
    if not mixers:
        raise InputError(f"StateOffset.lm: {type(lm).__name__} has no layers of Mamba; give MambaForCausalLM")
    return mixers
