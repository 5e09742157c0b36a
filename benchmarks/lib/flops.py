"""Floating-point operations that no exact training step or search can do without, counted from sizes alone.

Frozen decoder forward, and backward to its input but not into its weights, over each input's prefix once and over its
captions; the output matrix where a caption token is predicted and nowhere else, backward into its weights too where it
is trained; mapper forward and backward. Work that the result does not depend on is left out too: in the last layer all
of a prefix but keys, values and its last position, in the first layer the backward pass into the captions' embeddings.
Matrix products are counted, the rest is not: to look embeddings up costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.lib.random_gpt2 import Gpt2Size
from benchmarks.lib.workload import CaptionBatch
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.mappers.base import Mapper
from mmprefix.types import Features


@dataclass(frozen=True)
class Matrices:
    """Weights that a token is multiplied with: ``layer`` in each of the ``layers``, ``head`` in the output matrix.

    Of those of a layer ``keys_values`` make keys and values, and ``queries`` queries; all heads of queries together are
    ``attended`` wide.
    """

    layers: int
    layer: int
    keys_values: int
    queries: int
    attended: int
    head: int

    @property
    def weights(self) -> int:
        """All weights."""
        return self.layers * self.layer + self.head


def gpt2_matrices(size: Gpt2Size) -> Matrices:
    """Matrices of a GPT-2."""
    e = size.width
    return Matrices(size.layers, 12 * e * e, 2 * e * e, queries=e * e, attended=e, head=e * size.vocabulary)


def llama_matrices(config: Any) -> Matrices:
    """Matrices of a model of LLaMA's structure, whose query heads share keys and values in groups."""
    e, heads = config.hidden_size, config.num_attention_heads
    attended = heads * (getattr(config, "head_dim", None) or e // heads)
    keys_values = 2 * e * attended // heads * config.num_key_value_heads
    layer = 2 * e * attended + keys_values + 3 * e * config.intermediate_size
    head = e * config.vocab_size
    return Matrices(config.num_hidden_layers, layer, keys_values, queries=e * attended, attended=attended, head=head)


def decoder_operations(model: Matrices, prefix: int, lengths: list[list[int]]) -> float:
    """Operations of a decoder without its output matrix, forward and backward.

    Every input has ``prefix`` positions, and captions of ``lengths`` tokens.
    """
    layers, inputs = model.layers, len(lengths)
    run = [n - 1 for row in lengths for n in row]  # the last token of a caption predicts nothing
    dense, keys_values = 2 * model.layer, 2 * model.keys_values  # a position and layer
    queries_keys_values = 2 * (model.queries + model.keys_values)
    prefill = inputs * (prefix * dense * (layers - 1) + prefix * keys_values + (dense - keys_values))
    text = sum(run) * dense * layers
    pairs = inputs * (prefix * (prefix + 1) // 2 * (layers - 1) + prefix)  # of a query and a key
    pairs += layers * sum(n * prefix + n * (n + 1) // 2 for n in run)
    forward = prefill + text + 4 * model.attended * pairs
    backward = prefill + text - sum(run) * queries_keys_values + 8 * model.attended * pairs
    return float(forward + backward)


def head_operations(head: nn.Linear, lengths: list[list[int]]) -> float:
    """Operations of an output matrix: once for all first tokens of an input, once for every other token."""
    rows = len(lengths) + sum(n - 1 for row in lengths for n in row)
    products = 3 if head.weight.requires_grad else 2  # forward, backward to the input, backward to the weights
    return float(products * rows * 2 * head.weight.numel())


def mapper_operations(mapper: Mapper, features: Features) -> float:
    """Operations of one forward and backward pass, as torch counts them."""
    # torch does not count the fused attention of a CPU, but the plain one, which does the same products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mapper(features).embeds.sum().backward()
    mapper.zero_grad()
    return float(counter.get_total_flops())


def step_operations(model: Matrices, mapper: Mapper, decoder: ComposedDecoder, batch: CaptionBatch) -> float:
    """Operations of one exact step on ``batch``."""
    prefix = mapper(batch.features).embeds.shape[1]
    head = decoder.lm.get_output_embeddings() if decoder.own_head is None else decoder.own_head
    frozen = decoder_operations(model, prefix, batch.lengths)
    return frozen + head_operations(head, batch.lengths) + mapper_operations(mapper, batch.features)


def search_operations(model: Matrices, prefix: int, *, tokens: int, inputs: int, hypotheses: int) -> float:
    """Operations of a search for ``tokens`` tokens, with ``hypotheses`` hypotheses for all ``inputs`` together.

    A prefix is read once, in the last layer only for keys, values and its last position, which predicts the first
    token. Each further token is run once, and attends to its prefix and to the tokens of its hypothesis.
    """
    dense, keys_values = 2 * model.layer, 2 * model.keys_values  # a position and layer
    prefill = inputs * (prefix * dense * (model.layers - 1) + prefix * keys_values + (dense - keys_values))
    pairs = inputs * (prefix * (prefix + 1) // 2 * (model.layers - 1) + prefix)  # of a query and a key
    steps = tokens - 1
    pairs += model.layers * hypotheses * sum(prefix + step for step in range(1, steps + 1))
    heads = (inputs + hypotheses * steps) * 2 * model.head
    return float(prefill + hypotheses * steps * dense * model.layers + 4 * model.attended * pairs + heads)
