"""Fused layer for few rows on a CPU: a layer of LLaMA's structure in twenty kernels in place of a hundred.

Claim: at the few rows of a search each small operation costs as much as a part of a matrix product. Here queries, keys
and values are one product; SiLU, the product with the gate and the two residual sums are done by oneDNN while it writes
the products; shared keys and values are not repeated for their group of queries. Results are equal up to rounding. Only
layers that are proved to compute the same are replaced: at load a small layer of the same class, with random weights,
is run both ways. With gradients, with more rows or on a GPU the layer runs as Transformers has it. The choice depends
on the number of rows and on the model, never on earlier calls.
Measure: ``benchmarks/generate.py --model models:smollm2-135m-instruct``, with and without.
Off: ``MMPREFIX_FAST`` without ``fused_layer``, or without ``small_batch_linear``, whose packed weights it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers import DynamicCache

from mmprefix.fast.small_batch_linear import MAX_ROWS, PackedWeight, SmallBatchLinear, patch_linears
from mmprefix.kv_cache.gated_positions import is_gating
from mmprefix.kv_cache.side_attention import is_attending

LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "head_dim": 8,
}  # of a layer for the proof
TOLERANCE = 1e-3  # of the proof, in float32 at sharp attention


def fuse_layers(layers: Sequence[Any]) -> bool:
    """Replace ``forward`` of those ``layers`` that compute what ``FusedLayer`` computes; False if there are none.

    ``patch_linears`` comes before.
    """
    proofs: dict[Any, bool] = {}
    fused = False
    for layer in layers:
        if not _has_parts(layer):
            continue
        traits = _traits(layer)
        if traits not in proofs:
            proofs[traits] = _proved(layer)
        if proofs[traits]:
            layer.forward = FusedLayer(layer)
            fused = True
    return fused


class FusedLayer:
    """``forward`` of a layer: fused for few rows without gradients, else that of its class."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        attention = [getattr(layer.self_attn, name) for name in ATTENTION]
        self.linears = [*attention, *(getattr(layer.mlp, name) for name in MLP)]
        self.packed = [PackedWeight(*attention[:3]), *(linear.forward.packed for linear in self.linears[3:])]

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Hidden states (B N E) → (B N E); keys and values go into the cache among the arguments."""
        if not args and self._applies(hidden, kwargs):
            weights = [packed() for packed in self.packed]
            if not any(weight is None for weight in weights):
                cos, sin = kwargs["position_embeddings"]
                mask, cache = kwargs["attention_mask"], kwargs["past_key_values"]
                return self._run(hidden, cos, sin, weights=weights, mask=mask, cache=cache)
        return type(self.layer).forward(self.layer, hidden, *args, **kwargs)

    def _applies(self, hidden: Tensor, kwargs: dict[str, Any]) -> bool:
        """True for few rows on a CPU, without gradients, over a cache, whose heads are rotated as a whole."""
        mask, angles = kwargs.get("attention_mask"), kwargs.get("position_embeddings")
        return (
            0 < hidden.numel() <= MAX_ROWS * hidden.shape[-1]
            and hidden.dtype == torch.float32
            and not torch.is_grad_enabled()
            and not self.layer.training
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu")
            and not is_attending()
            and not is_gating()
            and isinstance(mask, Tensor)
            and mask.dim() == 4
            and kwargs.get("past_key_values") is not None
            and isinstance(angles, tuple)
            and angles[0].shape[-1] == self.layer.self_attn.head_dim
        )

    def _run(self, hidden: Tensor, cos: Tensor, sin: Tensor, *, weights: list[Any], mask: Tensor, cache: Any) -> Tensor:
        layer, (w_qkv, w_o, w_gate, w_up, w_down) = self.layer, weights
        product = torch.ops.mkldnn._linear_pointwise
        q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj = self.linears
        attention = layer.self_attn
        width: int = attention.head_dim
        heads, shared = q_proj.out_features // width, k_proj.out_features // width
        bias = None if q_proj.bias is None else torch.cat([q_proj.bias, k_proj.bias, v_proj.bias])
        mixed = product(_normed(layer.input_layernorm, hidden), w_qkv, bias, "none", [], "")
        mixed = mixed.view(*hidden.shape[:2], -1, width).transpose(1, 2)  # (B 2H'+H N K)
        rotated = _rotated(mixed[:, : heads + shared], cos[:, None], sin[:, None])
        keys, values = cache.update(rotated[:, heads:], mixed[:, heads + shared :], attention.layer_idx)
        attended = scaled_dot_product_attention(
            rotated[:, :heads], keys, values, attn_mask=mask, scale=attention.scaling, enable_gqa=heads != shared
        )
        attended = attended.transpose(1, 2).reshape(*hidden.shape[:2], -1)
        hidden = product.binary(attended, hidden, w_o, o_proj.bias, "add")
        normed = _normed(layer.post_attention_layernorm, hidden)
        gate = product(normed, w_gate, gate_proj.bias, "swish", [], "")
        gated = product.binary(normed, gate, w_up, up_proj.bias, "mul")
        return product.binary(gated, hidden, w_down, down_proj.bias, "add")


def _normed(norm: Any, rows: Tensor) -> Tensor:
    return rms_norm(rows, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: heads (B H N K), cosines and sines (B 1 N K), whose halves are equal."""
    half = heads.shape[-1] // 2
    rotated, sin = heads * cos, sin[..., :half]
    rotated[..., :half].addcmul_(heads[..., half:], sin, value=-1)
    rotated[..., half:].addcmul_(heads[..., :half], sin)
    return rotated


def _has_parts(layer: Any) -> bool:
    """True if ``layer`` has the parts of LLaMA's layer and no others, with patched linear layers and without hooks."""
    if {name for name, _ in layer.named_children()} != LAYER:
        return False
    attention, mlp = dict(layer.self_attn.named_children()), dict(layer.mlp.named_children())
    if attention.keys() != set(ATTENTION) or mlp.keys() != {*MLP, "act_fn"}:
        return False
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in layer.modules() if part is not layer)
    patched = (attention[name].__dict__.get("forward") for name in ATTENTION)
    patched = [*patched, *(mlp[name].__dict__.get("forward") for name in MLP)]
    return not hooked and all(isinstance(forward, SmallBatchLinear) for forward in patched)


def _traits(layer: Any) -> Any:
    """Class and switches of a layer; layers that differ in one are proved one by one."""
    switches = [
        (name, value)
        for part in (layer, layer.self_attn, layer.mlp)
        for name, value in vars(part).items()
        if isinstance(value, bool | int | float | str) and name != "layer_idx"
    ]
    biased = [name for name, _ in layer.named_parameters() if name.endswith("bias")]
    return type(layer), *switches, *biased


@torch.no_grad()
def _proved(layer: Any) -> bool:
    """True if a small random layer of the same class gives the same outputs, keys and values fused and plain."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return all(_same(_small_layer(layer, scale)) for scale in (1.0, 6.0))
    except Exception:  # of the layer's own code: it has other arguments, or lacks what is read here
        return False


def _small_layer(layer: Any, scale: float) -> Any:
    """Layer of the same class with small sizes; its attention is the sharper, the greater ``scale``."""
    config = deepcopy(layer.self_attn.config)
    grouped = layer.self_attn.k_proj.out_features != layer.self_attn.q_proj.out_features
    for name, value in {**SMALL, "num_key_value_heads": 2 if grouped else 4}.items():
        setattr(config, name, value)
    small = type(layer)(config, layer.self_attn.layer_idx).float().eval().requires_grad_(False)
    for parameter in small.parameters():
        parameter.normal_(0, scale / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 1)
    patch_linears(small)
    return small


def _same(small: Any) -> bool:
    """Run three positions, then one, of two inputs with both forward passes."""

    def plain(*args: Any, **kwargs: Any) -> Any:
        return type(small).forward(small, *args, **kwargs)

    caches: list[Any] = [DynamicCache(), DynamicCache()]
    for past, count in ((0, 3), (3, 1)):
        hidden, angles = torch.randn(2, count, SMALL["hidden_size"]), torch.randn(2, count, SMALL["head_dim"] // 2)
        angles = torch.cat([angles, angles], dim=-1)
        mask = torch.zeros(2, 1, count, past + count)
        mask[..., past:] = torch.full((count, count), torch.finfo(torch.float32).min).triu(1)
        kwargs: dict[str, Any] = {"attention_mask": mask, "position_embeddings": (angles.cos(), angles.sin())}
        kwargs["position_ids"] = torch.arange(past, past + count).expand(2, -1)
        runs = zip((plain, FusedLayer(small)), caches, strict=True)
        outputs = [run(hidden, past_key_values=cache, use_cache=True, **kwargs) for run, cache in runs]
        if not torch.allclose(*outputs, rtol=TOLERANCE, atol=TOLERANCE):
            return False
    stored = [torch.cat([cache.layers[-1].keys, cache.layers[-1].values]) for cache in caches]
    return torch.allclose(stored[0], stored[1], rtol=TOLERANCE, atol=TOLERANCE)
