"""Proof that variants of a training step compute the same loss and the same gradients, before any of them is timed.

Float32 sums over other numbers of rows differ in the last digits, upon which a few of a mapper's millions of ReLUs
change sides, each with a leap in the gradients. Therefore a mapper is in float64 for this comparison (in float32 if the
frozen model is in bfloat16).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.lib.train_variants import TrainStep
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.mappers.base import Mapper

TOLERANCE = {  # relative errors of loss and gradients, at most
    "float32": (2e-6, 5e-6),
    "float32, pretrained": (2e-6, 1e-4),  # trained attention is sharper than random one, and so are its leaps
    "bfloat16": (5e-3, 1e-1),
}
DTYPES: dict[torch.dtype, str] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def trained_parts(mapper: Mapper, decoder: ComposedDecoder) -> list[nn.Module]:
    """The mapper, and the decoder's head if it has a trained one."""
    return [part for part in (mapper, decoder.own_head) if part is not None]


class GradientComparison:
    """Relative errors of each variant's loss, and of its gradients of each of ``parts``, against a reference variant.

    ``references`` has the name of each variant's reference.
    """

    def __init__(self, parts: list[nn.Module], references: Mapping[str, str]) -> None:
        self.parts, self.references = parts, references
        self.losses: dict[str, float] = {}
        self.gradients: dict[str, list[Tensor]] = {}

    def record(self, name: str, loss: float) -> None:
        """Keep the loss of variant ``name``, and the gradients that its run left in the parts."""
        gradients = [[p.grad.flatten() for p in part.parameters() if p.grad is not None] for part in self.parts]
        self.losses[name] = loss
        self.gradients[name] = [torch.cat(tensors).float() for tensors in gradients]

    def errors(self, name: str) -> tuple[float, float]:
        """|a - b| / |b| of the loss, and of the gradients by their Euclidean norm, those of the worst part."""
        reference = self.references[name]
        loss, expected = self.losses[name], self.losses[reference]
        pairs = zip(self.gradients[name], self.gradients[reference], strict=True)
        return abs(loss - expected) / abs(expected), max(float((a - b).norm() / b.norm()) for a, b in pairs)

    def check(self, kind: str = "float32") -> None:
        """End the program if a variant computes something else than its reference; ``kind`` is a key of TOLERANCE."""
        most_loss, most_gradient = TOLERANCE[kind]
        for name in self.references:
            loss, gradient = self.errors(name)
            if not (loss <= most_loss and gradient <= most_gradient):
                sys.exit(f"{name!r}: relative error of the loss {loss:.1e}, of the gradients {gradient:.1e}")


def compare_gradients(
    variants: Mapping[str, TrainStep],
    references: Mapping[str, str],
    mapper: Mapper,
    decoder: ComposedDecoder,
    *,
    pretrained: bool = False,
) -> GradientComparison:
    """Run every variant once, untimed, and end the program if one differs from its reference.

    Weights of a ``pretrained`` decoder in float32 are allowed larger errors than random ones.
    """
    parts = trained_parts(mapper, decoder)
    comparison = GradientComparison(parts, references)
    dtype = DTYPES[decoder.lm.get_input_embeddings().weight.dtype]
    wide = torch.float64 if dtype == "float32" else torch.float32
    mapper.to(wide)
    sgd = torch.optim.SGD([p for part in parts for p in part.parameters()], lr=0.0)  # keeps no state of this dtype
    for name, step in variants.items():
        batches = [batch.to(wide) for batch in step.batches]
        comparison.record(name, replace(step, optimizer=sgd, batches=batches)())
    mapper.to(torch.float32)
    comparison.check(f"{dtype}, pretrained" if pretrained and dtype == "float32" else dtype)
    return comparison
