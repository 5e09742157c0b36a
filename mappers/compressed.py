"""Deep prefix in 8 or 4 bits a number: codes between the least and the greatest number of a group, and their scales.

Groups are those of KIVI (Liu et al., https://arxiv.org/abs/2402.02750), which found keys to have loud channels and
values none: keys by channel, values by token ("mixed" here). A prefix is short, so that a scale for each channel weighs
as much as some positions. Measured on SmolLM2-135M behind 128 positions of a text (benchmarks.studies.serving): 8 bits
cost at most 0.002 nats a token whatever the groups, in 0.27 of the bytes of float32; 4 bits 0.003 by head in 0.14, and
0.039 by channel, unless the first position is exact.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.mappers.base import DeepMapper, Sizes, join_layers, need_length
from mmprefix.types import DeepPrefix, Features, all_real

Scales = Literal["head", "channel", "mixed"]
_OVER = {"head": 3, "channel": 0}  # dimension of keys or values (P L H K) that shares a scale


class CompressedTable(DeepMapper):
    """``length`` keys and values for every layer and head in ``bits`` bits a number; not trained, but filled.

    Args:
        length: positions of the prefix.
        bits: 8 or 4.
        scales: numbers that share a least number and a step, 4 bytes together: those of one position in one head
            ("head"), of one channel at all positions ("channel"), or keys by channel and values by head ("mixed").
        exact: first positions that are kept in half precision: the first takes the attention that goes nowhere, and its
            numbers are unlike all others.
    """

    kept: Tensor
    codes: Tensor

    def __init__(
        self, sizes: Sizes, *, length: int = 10, bits: int = 8, scales: Scales = "head", exact: int = 1
    ) -> None:
        super().__init__(sizes)
        need_length(self, length)
        if bits not in (8, 4):
            raise InputError(f"CompressedTable.bits {bits}: give 8 or 4")
        if scales not in ("head", "channel", "mixed"):
            raise InputError(f"CompressedTable.scales {scales!r}: give head, channel or mixed")
        if not 0 <= exact <= length:
            raise InputError(f"CompressedTable.exact {exact}: give a number from 0 to length")
        self.bits, self.exact = bits, exact
        self.ways = ("channel", "head") if scales == "mixed" else (scales, scales)
        shape = [length - exact, sizes.layers, sizes.heads, sizes.head_width]
        self.register_buffer("kept", torch.zeros(exact, self.numbers, dtype=torch.float16))
        self.register_buffer("codes", torch.zeros(shape[0], self.numbers * bits // 8, dtype=torch.uint8))
        for name, way in zip(("key", "value"), self.ways, strict=True):
            group = [1 if n == _OVER[way] else size for n, size in enumerate(shape)]
            self.register_buffer(f"{name}_scale", torch.zeros(2, *group, dtype=torch.float16))  # least number and step

    @property
    def reads_input(self) -> bool:
        """Always False."""
        return False

    @torch.no_grad()
    def fill(self, prefix: DeepPrefix) -> None:
        """Compress keys and values of one input (L 1 H P K)."""
        (vectors,) = join_layers(prefix)
        self.kept.copy_(vectors[: self.exact])
        if self.exact == len(vectors):
            return
        codes = [self._coded(name, part) for name, part in zip(("key", "value"), self._parts(vectors), strict=True)]
        whole = torch.stack(codes, dim=1).flatten(1).to(torch.uint8)
        self.codes.copy_(whole if self.bits == 8 else whole[:, ::2] + (whole[:, 1::2] << 4))

    def _parts(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (P 2*L*H*K) without the exact ones → keys and values, (P L H K) each."""
        sizes = self.sizes
        both = vectors[self.exact :].float().view(-1, 2, sizes.layers, sizes.heads, sizes.head_width)
        return both[:, 0], both[:, 1]

    def _coded(self, name: str, part: Tensor) -> Tensor:
        """Codes (P L H K) of keys or values; their scales are set."""
        scale, most = getattr(self, f"{name}_scale"), 2**self.bits - 1
        over = _OVER[self.ways[name == "value"]]
        least = part.amin(over, keepdim=True)
        scale.copy_(torch.stack([least, (part.amax(over, keepdim=True) - least) / most]))
        least, step = scale.float()  # as they are kept
        return ((part - least) / step.clamp(min=1e-8)).round().clamp(0, most)

    def forward(self, features: Features, context: Features | None = None) -> DeepPrefix:
        """Features of B inputs, of which only B counts → keys and values (L B H P K), all real."""
        codes = self.codes
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1)
        parts = zip(self._parts(torch.cat([self.kept, codes])), ("key", "value"), strict=True)
        decoded = [part * getattr(self, f"{name}_scale")[1].float() + getattr(self, f"{name}_scale")[0].float()
                   for part, name in parts]  # fmt: skip
        vectors = torch.cat([self.kept.float(), torch.stack(decoded, dim=1).flatten(1)])[None]
        return self.split_layers(vectors, all_real(vectors)).expand(len(features.mask))
