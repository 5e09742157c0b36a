"""Prefixes of inputs as a caption computes them, each cut to its real positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mmprefix.errors import InputError
from mmprefix.inference.batches.run import run_batched
from mmprefix.inference.call_options import CallOptions, refuse_unknown
from mmprefix.inference.inputs import Input
from mmprefix.inference.predictor import Predictor
from mmprefix.inference.requests import inputs_or_contexts
from mmprefix.inference.tasks import Compute
from mmprefix.mappers.base import join_layers
from mmprefix.types import AnyPrefix, Batch, DeepPrefix, MixedPrefix, Prefix, all_real, split_side

Result = TypeVar("Result")


@dataclass(frozen=True)
class PrefixRow:
    """Prefix of one input, real positions only: keys and values ``deep`` (L 1 H P K), then embeddings ``soft`` (1 P E).

    ``prompt`` is the text that the decoder reads behind it; ``has_more`` is True where the prefix has parts at no
    position, which are left out here (``mmprefix.inspection.side_report``).
    """

    deep: DeepPrefix | None
    soft: Prefix | None
    prompt: str = ""
    has_more: bool = False

    @property
    def vectors(self) -> list[Tensor]:
        """Each position as one vector, float32 on the CPU: keys and values joined (2*L*H*K), or the embedding (E)."""
        deep = [] if self.deep is None else list(join_layers(self.deep)[0].float().cpu())
        return deep + ([] if self.soft is None else list(self.soft.embeds[0].float().cpu()))

    @property
    def lengths(self) -> tuple[int, int]:
        """Number of deep and of soft positions."""
        deep = 0 if self.deep is None else self.deep.mask.shape[1]
        return deep, 0 if self.soft is None else self.soft.mask.shape[1]

    def prefix(self) -> AnyPrefix:
        """The prefix as a decoder reads it; InputError for one without positions."""
        if self.deep is not None and self.soft is not None:
            return MixedPrefix(self.deep, self.soft)
        if self.deep is not None:
            return self.deep
        if self.soft is None:
            raise InputError("the prefix of this input has no position; there is nothing to look at")
        return self.soft


def run_inputs(
    model: Predictor, inputs: Sequence[Input], options: CallOptions, compute: Compute[Result]
) -> list[Result]:
    """Result of ``compute`` for each input, batched as the Predictor's own calls are."""
    refuse_unknown(options, CallOptions)
    return run_batched(model.model, model.requests.of(list(inputs), options), compute)


def prefix_rows(model: Predictor, inputs: Sequence[Input], options: CallOptions) -> list[PrefixRow]:
    """Prefix of each input."""

    def compute(batch: Batch) -> list[PrefixRow]:
        prefix = model.model.build_prefix(batch.inputs, batch.absent, len(batch))
        return split_rows(prefix, model.model.prompts(batch))

    return run_inputs(model, inputs, options, compute)


def prefix_row(model: Predictor, value: Input | None, options: CallOptions) -> PrefixRow:
    """Prefix of one input. Raises InputError for several, and for a prefix without positions."""
    row = prefix_rows(model, [one_input(value, options)], options)[0]
    row.prefix()
    return row


def one_input(value: Input | None, options: CallOptions) -> Input:
    """``value``, or an empty input where a context stands alone; InputError for a list."""
    if value is None and model_alone(options):
        return {}
    inputs, several = inputs_or_contexts(value, options.get("context"))
    if several:
        raise InputError(f"{len(inputs)} inputs: one is looked at in a call; give one, or call once for each")
    return inputs[0]


def model_alone(options: CallOptions) -> bool:
    """True if a call names nothing but a user or a history, whose prefix needs no file."""
    return options.get("context") is None and (options.get("user") is not None or options.get("history") is not None)


def split_rows(prefix: AnyPrefix, prompts: Sequence[str]) -> list[PrefixRow]:
    """Prefixes of B inputs → one each, without padding; a copy that no inference mode holds.

    Terms beside the cache, gates and updates of the text stand at no position and are left out.
    """
    prefix, terms = split_side(prefix)
    deep = prefix.deep if isinstance(prefix, MixedPrefix) else prefix if isinstance(prefix, DeepPrefix) else None
    soft = prefix.soft if isinstance(prefix, MixedPrefix) else prefix if isinstance(prefix, Prefix) else None
    with torch.inference_mode(False), torch.no_grad():
        more = bool(terms) or (soft is not None and not (soft.text_updates is None and soft.gates is None))
        return [PrefixRow(_deep_row(deep, b), _soft_row(soft, b), prompt, more) for b, prompt in enumerate(prompts)]


def _soft_row(prefix: Prefix | None, row: int) -> Prefix | None:
    if prefix is None or not bool(prefix.mask[row].any()):
        return None
    embeds = prefix.embeds[row][prefix.mask[row]].clone()[None]
    return Prefix(embeds, all_real(embeds))


def _deep_row(prefix: DeepPrefix | None, row: int) -> DeepPrefix | None:
    if prefix is None or not bool(prefix.mask[row].any()):
        return None
    real = prefix.mask[row]
    keys, values = (part[:, row][:, :, real].clone()[:, None] for part in (prefix.keys, prefix.values))
    return DeepPrefix(keys, values, real[real][None].clone())
