"""Facts in the configuration of a causal model: sizes of its key-value cache, and how far back its layers attend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmprefix.kv_cache.windows import Reach, Reaches

SPANS = {"full_attention", "sliding_attention", "chunked_attention"}  # kinds of layers whose masks are made here


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a language model.

    L layers, H key-value heads of width K (0: layers differ), positions (0: no known limit), H' query heads, and the
    width of the hidden states in the layers.
    """

    layers: int
    heads: int
    head_width: int
    max_positions: int
    query_heads: int
    hidden: int


def text_config(lm: Any) -> Any:
    """Configuration of the language model in ``lm``, which may have encoders beside it."""
    return lm.config.get_text_config(decoder=True)


def first_of(config: Any, *options: str) -> int:
    """First of the ``options`` that ``config`` has for all layers, as a number; 0 if it has none."""
    for option in options:
        try:
            value = getattr(config, option, None)
        except RuntimeError:  # layers differ
            value = None
        if isinstance(value, int) and value > 0:
            return value
    return 0


def causal_sizes(config: Any) -> ModelSizes:
    """Sizes of the key-value cache of a causal model, by its configuration."""
    layers = first_of(config, "num_hidden_layers", "decoder_layers")
    heads = queries = first_of(config, "num_attention_heads", "decoder_attention_heads")
    hidden = first_of(config, "hidden_size")
    width = first_of(config, "head_dim") or hidden // max(heads, 1)
    positions = first_of(config, "max_position_embeddings", "max_target_positions")
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        heads = 1  # Falcon's new architecture repeats its shared keys and values in the cache
    return ModelSizes(layers, first_of(config, "num_key_value_heads") or heads, width, positions, queries, hidden)


def reaches_of(config: Any) -> Reaches:
    """How far back the layers of a model attend."""
    window = Reach(first_of(config, "sliding_window"))
    if getattr(config, "attention_layers", None):
        return Reaches(by_kind={"global": Reach(), "local": Reach(first_of(config, "window_size"))})
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return Reaches(window)
    chunk = Reach(first_of(config, "attention_chunk_size"), chunked=True)
    lengths = {"full_attention": Reach(), "sliding_attention": window, "chunked_attention": chunk}
    return Reaches(by_kind={kind: lengths[kind] for kind in dict.fromkeys(kinds) if kind in SPANS})
