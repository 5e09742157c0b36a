"""ClipCap's checkpoints (train.py of https://github.com/rmokady/CLIP_prefix_caption): mapper and GPT-2 in one state.

Keys: clip_project.* of the mapper, gpt.transformer.* and gpt.lm_head.weight of the language model, tuned or not.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.base import Encoder
from mmprefix.errors import InputError
from mmprefix.importers.tensor_map import TensorMap, check, fill, language_model, same, slots, without_buffers
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.linear import Linear
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.transformer import Transformer
from mmprefix.model import Branch, PrefixLM


def clipcap(given: dict[str, Tensor], file: str, encoder: Encoder, decoder: str, heads: int = 8) -> PrefixLM:
    """The model in ClipCap's tensors: MLP, transformer, or (long prefixes in predict.py) one layer.

    ``decoder`` names the language model that it was trained with; where the file holds another one, that is kept as a
    tuned decoder. Raises InputError for tensors that are not ClipCap's, and an encoder of another width.
    """
    given = without_buffers(given)
    lm = CausalDecoder(decoder, stop=".")
    mapper = _clipcap_mapper(given, file, lm.width, heads)
    pooled = mapper.sizes.summary
    if pooled != encoder.pooled_dim:
        raise InputError(
            f"{file}: was trained on features of width {pooled}, but those of {encoder.identity.source!r} have "
            f"{encoder.pooled_dim}; give the --encoder that it was trained with"
        )
    wanted = mapper_slots(mapper)
    if any(name.startswith("gpt.") for name in given):
        check([*wanted, *language_model(lm, whole=True)], given, file, "ClipCap")
        if not torch.equal(given["gpt.lm_head.weight"], given["gpt.transformer.wte.weight"]):
            raise InputError(f"{file}: its output head is not its embeddings, as GPT-2 has it; it cannot be kept")
        if not same(language_model(lm, whole=True), given):
            lm = CausalDecoder(decoder, stop=".", frozen=False)
            fill(language_model(lm, whole=True), given)
    else:
        check(wanted, given, file, "ClipCap")
    fill(wanted, given)
    return PrefixLM({"image": Branch(encoder, lambda sizes: mapper)}, lm)


def has_heads(given: Mapping[str, Tensor]) -> bool:
    """Whether the mapper in the tensors attends: with how many heads, they do not tell."""
    return any(name.startswith("clip_project.transformer.") for name in given)


def mapper_slots(mapper: Mapper) -> list[TensorMap]:
    """The slots of a mapper by ClipCap's names."""
    own = mapper.state_dict()
    if isinstance(mapper, Linear):
        own = {name.removeprefix("linear."): value for name, value in own.items()}
    return slots("clip_project.", own)


def _clipcap_mapper(given: Mapping[str, Tensor], file: str, width: int, heads: int) -> Mapper:
    """A mapper of the kind and sizes that the tensors tell; ``width`` is the decoder's."""
    names = {name.removeprefix("clip_project.") for name in given if name.startswith("clip_project.")}
    try:
        if any(name.startswith(("prefix_const", "linear.", "transformer.")) for name in names):
            const, first = given["clip_project.prefix_const"], given["clip_project.linear.weight"]
            if const.shape[1] != width:
                raise InputError(f"its mapper is for a decoder of width {const.shape[1]}, --decoder has {width}")
            layers = {name.split(".")[2] for name in names if name.startswith("transformer.layers.")}
            return Transformer(
                Sizes(0, first.shape[1], const.shape[1]),
                length=const.shape[0], clip_length=first.shape[0] // const.shape[1], layers=len(layers), heads=heads,
            )  # fmt: skip
        if any(name.startswith("model.") for name in names):
            first, last = given["clip_project.model.0.weight"], given["clip_project.model.2.weight"]
            return MLP(Sizes(0, first.shape[1], width), length=last.shape[0] // width, hidden=first.shape[0])
        if names:
            only = given["clip_project.weight"]
            return Linear(Sizes(0, only.shape[1], width), reads="summary", length=only.shape[0] // width)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"{file}: its mapper lacks a tensor or a dimension ({error})") from error
    except InputError as error:  # sizes that no mapper can have
        raise InputError(f"{file}: {error}") from error
    raise InputError(f"{file}: holds no mapper of ClipCap (no tensor clip_project.*)")
