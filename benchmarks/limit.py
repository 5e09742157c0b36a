"""The floating-point operations that no exact training step can do without, counted from sizes alone.

Frozen decoder forward, and backward to its input but not into its weights, over each input's prefix once and over its
captions; the output matrix where a caption token is predicted and nowhere else; mapper forward and backward. What the
result does not depend on is left out too: in the last layer all of a prefix but keys, values and its last position,
in the first layer the way back into the captions' embeddings. Products of matrices are counted, the rest is not.
"""

from __future__ import annotations

from captions import Captioned
from random_gpt2 import Size
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmprefix.mappers.base import Mapper
from mmprefix.types import Features


def decoder_operations(size: Size, prefix: int, lengths: list[list[int]]) -> float:
    """Of a GPT-2 of ``size``, where every input has ``prefix`` positions and captions of ``lengths``."""
    e, layers, inputs = size.width, size.layers, len(lengths)
    run = [n - 1 for row in lengths for n in row]  # the last token of a caption predicts nothing
    dense, keys_values, queries_keys_values = 24 * e * e, 4 * e * e, 6 * e * e  # of a position and layer
    trunk = inputs * (prefix * dense * (layers - 1) + prefix * keys_values + (dense - keys_values))
    text = sum(run) * dense * layers
    seen = inputs * (prefix * (prefix + 1) // 2 * (layers - 1) + prefix)  # pairs of a query and a key
    seen += layers * sum(n * prefix + n * (n + 1) // 2 for n in run)
    head = (inputs + sum(run)) * 2 * e * size.vocabulary
    forward = trunk + text + 4 * e * seen + head
    backward = trunk + text - sum(run) * queries_keys_values + 8 * e * seen + head
    return float(forward + backward)


def mapper_operations(mapper: Mapper, features: Features) -> float:
    """Of one forward and backward pass, as torch counts them."""
    # the fused attention of the CPU is not counted, the plain one does the same products and is
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mapper(features).embeds.sum().backward()
    mapper.zero_grad()
    return float(counter.get_total_flops())


def step_operations(size: Size, mapper: Mapper, features: Features, work: Captioned) -> float:
    """Of one exact step on ``work``, whose summaries are ``features``."""
    prefix = mapper(features).embeds.shape[1]
    return decoder_operations(size, prefix, work.lengths) + mapper_operations(mapper, features)
