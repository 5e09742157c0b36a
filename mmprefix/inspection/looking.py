"""Places that each position of a prefix looks at: it changes when they are hidden, or its query attends to them.

Hiding (occlusion) is the default: Zeiler and Fergus 2014, https://arxiv.org/abs/1311.2901, section 4.2, with the prefix
in the place of a class. It asks the same question of every encoder and mapper.
"""

from __future__ import annotations

from itertools import chain
from typing import Literal, Unpack

import numpy as np
from torch import Tensor, stack

from mmprefix.errors import InputError, require_one_of
from mmprefix.inference.call_options import CallOptions
from mmprefix.inference.inputs import Input, input_kinds, source_and_span
from mmprefix.inference.predictor import Predictor
from mmprefix.inspection.frame_attention import frame_attention
from mmprefix.inspection.frame_places import picture_cells, sound_slices
from mmprefix.inspection.hiding import hide_cells, place_of
from mmprefix.inspection.maps import Maps, scaled_maps
from mmprefix.inspection.prefix_rows import PrefixRow, one_input, prefix_rows, run_inputs
from mmprefix.media.image import read_picture
from mmprefix.types import Batch

_ROUNDING = 1e-5  # a relative change up to this is that of float32 sums taken in another order


def attention_maps(
    model: Predictor,
    file: Input,
    *,
    kind: Literal["occlusion", "attention"] = "occlusion",
    branch: str | None = None,
    grid: int | None = None,
    seconds: float | None = None,
    **options: Unpack[CallOptions],
) -> Maps:
    """Places of one picture or sound that each position of the prefix looks at.

    "occlusion" hides one part after the other, a cell of ``grid`` x ``grid`` (default 8) behind the picture's mean
    colour or ``seconds`` (default 0.25) of sound behind silence, and measures by how much each position changes:
    ||changed - whole|| / ||whole||. It works for every model; all copies go through the encoder in batches.
    "attention" gives the weights with which the mapper's queries read the encoder's frames, where it has any, mean
    over layers and heads (see ``frame_attention``).
    ``branch`` names the input that is looked at where there are several; ``options``: prompt, context, user ...; see
    ``CallOptions``. Raises InputError for an input without picture or sound, and options that do not fit it.
    """
    require_one_of("kind", kind, ("occlusion", "attention"))
    value = one_input(file, options)
    if kind == "attention":
        if grid is not None or seconds is not None:
            raise InputError("kind 'attention': its cells are the encoder's frames; leave out grid and seconds")
        return _attention(model, value, branch, options)
    hidden = hide_cells(model, value, branch=branch, grid=grid, seconds=seconds)
    whole, *changed = prefix_rows(model, list(chain([hidden.whole], hidden.copies)), options)
    whole.prefix()
    values = np.stack([_change(whole, row) for row in changed], axis=1)  # (P, cells)
    maps, strength = scaled_maps(values.reshape(len(values), *hidden.shape), _ROUNDING)
    labels = tuple(str(number) for number in range(len(values)))
    return Maps(maps, strength, hidden.x, hidden.y, labels, hidden.branch, hidden.kind, kind, hidden.size)


def _attention(model: Predictor, value: Input, branch: str | None, options: CallOptions) -> Maps:
    """Attention weights of the mapper of one branch, as maps on the places of its encoder's frames."""
    name, sources = place_of(model, value, branch)
    encoder, kind = model.model.encoder(name), input_kinds(model.model)[name]

    def compute(batch: Batch) -> list[tuple[np.ndarray, np.ndarray]]:
        features = model.model.features(batch.inputs)[name]
        weights, share = frame_attention(model.model.mapper(name), features)
        pairs = zip(weights, share, features.mask, strict=True)
        return [(row[:, real].cpu().numpy(), own.cpu().numpy()) for row, own, real in pairs]

    weights, share = run_inputs(model, [value], options, compute)[0]  # (P T), (P)
    y, size = np.zeros(0), None
    if kind == "image":
        size = read_picture(source_and_span(sources[name])[0]).size
        before, x, y = picture_cells(encoder, sources[name], weights.shape[1])
        share = share * weights[:, before:].sum(1)
        weights = weights[:, before:].reshape(len(weights), len(y) - 1, len(x) - 1)
    else:
        x = sound_slices(encoder, sources[name], weights.shape[1])
    labels = tuple(str(number) for number in range(len(weights)))
    return Maps(scaled_maps(weights)[0], share, x, y, labels, name, kind, "attention", size)


def _change(whole: PrefixRow, other: PrefixRow) -> np.ndarray:
    """Relative change (P) of each position. Raises InputError where the number of positions changes."""
    if whole.lengths != other.lengths:
        raise InputError("occlusion: the number of positions changes when a part is hidden, so they cannot be compared")
    pairs = zip(whole.vectors, other.vectors, strict=True)
    changes: list[Tensor] = [(b - a).norm() / a.norm().clamp(min=1e-12) for a, b in pairs]
    return stack(changes).numpy()
