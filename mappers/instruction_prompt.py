"""Instruction prompts: a few positions made from an instruction's features, at the input or in every layer.

After IAPT: Instruction-Aware Prompt Tuning for Large Language Models (Zhu et al. 2024),
https://arxiv.org/abs/2405.18203, of which this is known: in each layer a generator of its own makes 4 soft tokens from
the instruction by self-attention pooling, a linear layer down, a learned rational activation and a linear layer up.
Chosen here: one pooling query for each position; a rational function of degrees 5 and 4 that begins as GELU; features
of one text encoder for the generators of all layers; keys and values, in place of hidden states, as what they make.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprefix.mappers.base import DeepMapper, Mapper, Sizes, need_frames, need_length
from mmprefix.types import DeepPrefix, Features, Prefix, all_real


class Rational(nn.Module):
    """Learned activation, (a0 + a1 x + ... + a5 x^5) / (1 + abs(b1 x + ... + b4 x^4)), which begins close to GELU."""

    def __init__(self) -> None:
        super().__init__()
        # least squares on GELU from -4 to 4; denominators of zeros would have no gradient
        self.above = nn.Parameter(torch.tensor([-0.0019793, 0.5, 0.4123552, 0.1125, 0.0101409, 0.0]))
        self.below = nn.Parameter(torch.tensor([0.0, 0.225, 0.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        """Numbers of any shape → numbers of that shape."""
        return _powers(x, 5) @ self.above / (1 + (_powers(x, 4)[..., 1:] @ self.below).abs())


def _powers(x: Tensor, degree: int) -> Tensor:
    """1, x, x^2 ... (... degree+1)."""
    return torch.stack([x**n for n in range(degree + 1)], dim=-1)


class _Generator(nn.Module):
    """Frames (B T D) and mask (B T) → ``length`` vectors of ``out`` numbers (B P out)."""

    def __init__(self, frames: int, out: int, length: int, bottleneck: int) -> None:
        super().__init__()
        self.pool = nn.Linear(frames, length, bias=False)
        self.down, self.activation, self.up = nn.Linear(frames, bottleneck), Rational(), nn.Linear(bottleneck, out)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Pool the frames for each position by a softmax over time; without a real frame zeros are read."""
        scores = self.pool(frames)  # in half precision under autocast, whatever the frames are in
        scores = scores.masked_fill(~mask[..., None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(1) * mask[..., None]  # (B T P)
        return self.up(self.activation(self.down(weights.mT @ frames)))


class _Instructed(Mapper):
    """Base of mappers from the frames (B T D) of an instruction to ``length`` positions."""

    def __init__(self, sizes: Sizes, length: int) -> None:
        super().__init__(sizes)
        need_length(self, length)
        need_frames(self)


class InstructionPrompt(_Instructed):
    """``length`` embeddings (B P E) from the frames (B T D) of an instruction.

    Args:
        length: positions of the prefix.
        bottleneck: width of the activation.
    """

    def __init__(self, sizes: Sizes, *, length: int = 4, bottleneck: int = 64) -> None:
        super().__init__(sizes, length)
        self.generator = _Generator(sizes.frames, sizes.width, length, bottleneck)

    def forward(self, features: Features, context: Features | None = None) -> Prefix:
        """Frames (B T D) with mask → embeddings (B P E), all real."""
        embeds = self.generator(features.frames, features.mask)
        return Prefix(embeds, all_real(embeds))


class DeepInstructionPrompt(_Instructed, DeepMapper):
    """``length`` keys and values (L B H P K) from the frames (B T D) of an instruction, by one generator a layer.

    Args:
        length: positions of the prefix.
        bottleneck: width of each activation.
    """

    def __init__(self, sizes: Sizes, *, length: int = 4, bottleneck: int = 64) -> None:
        super().__init__(sizes, length)
        out = 2 * sizes.heads * sizes.head_width
        self.generators = nn.ModuleList(_Generator(sizes.frames, out, length, bottleneck) for _ in range(sizes.layers))

    def forward(self, features: Features, context: Features | None = None) -> DeepPrefix:
        """Frames (B T D) with mask → keys and values (L B H P K), all real."""
        made = [generator(features.frames, features.mask) for generator in self.generators]  # of each layer
        keys, values = torch.stack(made, dim=2).chunk(2, dim=3)  # (B P L H*K)
        vectors = torch.cat([keys.flatten(2), values.flatten(2)], dim=2)
        return self.split_layers(vectors, all_real(vectors))
