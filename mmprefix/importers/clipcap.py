"""Importer of ClipCap's checkpoints (train.py of https://github.com/rmokady/CLIP_prefix_caption): mapper and GPT-2.

Names: clip_project.* of the mapper, gpt.transformer.* and gpt.lm_head.weight of the language model, tuned or not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.importers.tensor_map import (
    TensorMap,
    check,
    fill,
    is_equal,
    language_model_maps,
    tensor_maps,
    without_buffers,
)
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.transformer import Transformer
from mmprefix.model import Branch, PrefixLM


def clipcap(tensors: dict[str, Tensor], file: str, encoder: Encoder, *, decoder: str, heads: int = 8) -> PrefixLM:
    """Build the model from ClipCap's tensors: MLP, transformer, or (long prefixes in predict.py) one layer.

    ``decoder`` is the language model of the training; if the file contains another one, that becomes a tuned decoder.
    Raises InputError for tensors that are not ClipCap's, and an encoder of another width.
    """
    tensors = without_buffers(tensors)
    lm = CausalDecoder(decoder, stop=".")
    mapper = _build_mapper(tensors, file, lm.width, heads)
    width = mapper.sizes.summary
    if width != encoder.pooled_dim:
        raise InputError(
            f"{file}: was trained on features of width {width}, but those of {encoder.identity.source!r} have "
            f"{encoder.pooled_dim}; give the --encoder of its training"
        )
    maps = mapper_maps(mapper)
    if any(name.startswith("gpt.") for name in tensors):
        check([*maps, *language_model_maps(lm, whole=True)], tensors, file, "ClipCap")
        if not torch.equal(tensors["gpt.lm_head.weight"], tensors["gpt.transformer.wte.weight"]):
            raise InputError(
                f"{file}: its output head differs from its embeddings, unlike GPT-2's; it cannot be imported"
            )
        if not is_equal(language_model_maps(lm, whole=True), tensors):
            lm = CausalDecoder(decoder, stop=".", frozen=False)
            fill(language_model_maps(lm, whole=True), tensors)
    else:
        check(maps, tensors, file, "ClipCap")
    fill(maps, tensors)
    return PrefixLM({"image": Branch(encoder, lambda sizes: mapper)}, lm)


def has_heads(tensors: Mapping[str, Tensor]) -> bool:
    """True if the mapper has attention; the tensors do not determine its number of heads."""
    return any(name.startswith("clip_project.transformer.") for name in tensors)


def mapper_maps(mapper: Mapper) -> list[TensorMap]:
    """Maps of a mapper to ClipCap's names."""
    own = mapper.state_dict()
    if isinstance(mapper, Linear):
        own = {name.removeprefix("linear."): value for name, value in own.items()}
    return tensor_maps("clip_project.", own)


def _build_mapper(tensors: Mapping[str, Tensor], file: str, width: int, heads: int) -> Mapper:
    """Mapper whose kind and sizes are read off the tensors; ``width`` is the decoder's."""
    names = {name.removeprefix("clip_project.") for name in tensors if name.startswith("clip_project.")}
    try:
        if any(name.startswith(("prefix_const", "linear.", "transformer.")) for name in names):
            const, first = tensors["clip_project.prefix_const"], tensors["clip_project.linear.weight"]
            if const.shape[1] != width:
                raise InputError(f"its mapper is for a decoder of width {const.shape[1]}, --decoder has {width}")
            layers = {name.split(".")[2] for name in names if name.startswith("transformer.layers.")}
            return Transformer(
                Sizes(0, first.shape[1], const.shape[1]),
                length=const.shape[0], clip_length=first.shape[0] // const.shape[1], layers=len(layers), heads=heads,
            )  # fmt: skip
        if any(name.startswith("model.") for name in names):
            first, last = tensors["clip_project.model.0.weight"], tensors["clip_project.model.2.weight"]
            return MLP(Sizes(0, first.shape[1], width), length=last.shape[0] // width, hidden=first.shape[0])
        if names:
            only = tensors["clip_project.weight"]
            return Linear(Sizes(0, only.shape[1], width), reads="summary", length=only.shape[0] // width)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"{file}: its mapper lacks a tensor or a dimension ({error})") from error
    except InputError as error:  # sizes that no mapper can have
        raise InputError(f"{file}: {error}") from error
    raise InputError(f"{file}: holds no mapper of ClipCap (no tensor clip_project.*)")
