"""The floating-point operations that no exact training step can do without, counted from sizes alone.

Frozen decoder forward, and backward to its input but not into its weights, over each input's prefix once and over its
captions; the output matrix where a caption token is predicted and nowhere else, backward into its weights too where it
is trained; mapper forward and backward. What the result does not depend on is left out too: in the last layer all of a
prefix but keys, values and its last position, in the first layer the way back into the captions' embeddings. Products
of matrices are counted, the rest is not: to look embeddings up costs nothing.
"""

from __future__ import annotations

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.lib.random_gpt2 import Size
from benchmarks.lib.workload import Captioned
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.mappers.base import Mapper
from mmprefix.types import Features


def decoder_operations(size: Size, prefix: int, lengths: list[list[int]]) -> float:
    """Of a GPT-2 of ``size`` without its output matrix: every input has ``prefix`` positions, captions ``lengths``."""
    e, layers, inputs = size.width, size.layers, len(lengths)
    run = [n - 1 for row in lengths for n in row]  # the last token of a caption predicts nothing
    dense, keys_values, queries_keys_values = 24 * e * e, 4 * e * e, 6 * e * e  # of a position and layer
    trunk = inputs * (prefix * dense * (layers - 1) + prefix * keys_values + (dense - keys_values))
    text = sum(run) * dense * layers
    seen = inputs * (prefix * (prefix + 1) // 2 * (layers - 1) + prefix)  # pairs of a query and a key
    seen += layers * sum(n * prefix + n * (n + 1) // 2 for n in run)
    forward = trunk + text + 4 * e * seen
    backward = trunk + text - sum(run) * queries_keys_values + 8 * e * seen
    return float(forward + backward)


def head_operations(head: nn.Linear, lengths: list[list[int]]) -> float:
    """Of an output matrix: once for the first tokens of all captions of an input, once for every other token."""
    rows = len(lengths) + sum(n - 1 for row in lengths for n in row)
    products = 3 if head.weight.requires_grad else 2  # forward, backward to the input, backward to the weights
    return float(products * rows * 2 * head.weight.numel())


def mapper_operations(mapper: Mapper, features: Features) -> float:
    """Of one forward and backward pass, as torch counts them."""
    # the fused attention of the CPU is not counted, the plain one does the same products and is
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mapper(features).embeds.sum().backward()
    mapper.zero_grad()
    return float(counter.get_total_flops())


def step_operations(size: Size, mapper: Mapper, decoder: ComposedDecoder, work: Captioned) -> float:
    """Of one exact step on ``work``."""
    prefix = mapper(work.features).embeds.shape[1]
    head = decoder.lm.get_output_embeddings() if decoder.own_head is None else decoder.own_head
    trunk = decoder_operations(size, prefix, work.lengths) + head_operations(head, work.lengths)
    return trunk + mapper_operations(mapper, work.features)


def weights(size: Size) -> int:
    """The numbers in the matrices that every token is multiplied with."""
    return size.layers * 12 * size.width**2 + size.width * size.vocabulary


def search_operations(size: Size, prefix: int, tokens: int, inputs: int, lines: int) -> float:
    """Of writing ``tokens`` with ``lines`` lines for ``inputs`` inputs in all, by products of matrices alone.

    A prefix is read once, in the last layer up to its keys and values and for its last position; the first token comes
    from there. Each further token is run once, and looks at its prefix and at the tokens of its line.
    """
    e = size.width
    dense, keys_values = 24 * e * e, 4 * e * e  # of a position and layer
    trunk = inputs * (prefix * dense * (size.layers - 1) + prefix * keys_values + (dense - keys_values))
    seen = inputs * (prefix * (prefix + 1) // 2 * (size.layers - 1) + prefix)  # pairs of a query and a key
    steps = tokens - 1
    seen += size.layers * lines * sum(prefix + step for step in range(1, steps + 1))
    heads = (inputs + lines * steps) * 2 * e * size.vocabulary
    return float(trunk + lines * steps * dense * size.layers + 4 * e * seen + heads)
