"""Patches of a language model, in their order."""

from __future__ import annotations

from torch import nn

from mmprefix.fast import switches
from mmprefix.fast.fused_layer import fuse_layers
from mmprefix.fast.gelu import fuse_gelu
from mmprefix.fast.last_layer import decoder_layers, install
from mmprefix.fast.small_batch_linear import patch_linears


def prepare(lm: nn.Module, stack: nn.Module, layers: int, frozen: bool) -> frozenset[str]:
    """Patch ``lm``, whose ``layers`` layers are in ``stack`` → the names of the applied patches.

    Called once, after the model is loaded and frozen and LoRA is added (LoRA's layers wrap those of the model, whose
    ``forward`` is patched here). Before, ``CrossAttentionModel`` has hooked position embeddings and cross-attention,
    and ``decoders.gpt_neo`` the layers of GPT-Neo:

    1. ``gelu`` replaces activation modules by torch's own.
    2. ``last_layer`` hooks the last layer; the hooks do nothing outside of ``last_layer.only_at``.
    3. ``small_batch_linear``, for a ``frozen`` model only, replaces ``forward`` of every linear layer.
    4. ``fused_layer``, where the former was applied, replaces ``forward`` of layers of LLaMA's structure.

    Later changes, not only of speed: ``Decoder.recompute_layers`` replaces ``forward`` of all layers but the last (see
    ``activation_checkpointing``); ``Decoder.compile_layers`` compiles the layers.
    """
    applied: set[str] = set()
    if "gelu" in switches.ENABLED:
        fuse_gelu(lm)
        applied.add("gelu")
    if "last_layer" in switches.ENABLED and install(stack, layers):
        applied.add("last_layer")
    if frozen and "small_batch_linear" in switches.ENABLED and patch_linears(lm):
        applied.add("small_batch_linear")
        if "fused_layer" in switches.ENABLED and fuse_layers(decoder_layers(stack, layers)):
            applied.add("fused_layer")
    return frozenset(applied)
