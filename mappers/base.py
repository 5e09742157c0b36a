"""Contract of every mapper: features of an encoder become a prefix of the decoder. Mappers are all that is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.parts import Part
from mmprefix.types import AnyPrefix, DeepPrefix, Features, Prefix


@dataclass(frozen=True)
class Sizes:
    """Plain numbers between which a mapper is built: an encoder, a decoder, and the encoder of its context.

    ``frames`` (D) and ``summary`` (G) are widths of the encoder's output, 0 where it has none; ``width`` (E),
    ``layers`` (L), ``heads`` (H) and ``head_width`` (K) are the decoder's; ``context_frames`` and ``context_summary``
    are those of the branch that the mapper reads beside its own, 0 without one; ``query_heads`` (H') of the decoder may
    share its key-value heads (H); ``hidden`` is the width of the hidden states in its layers, 0 where that is E.
    """

    frames: int
    summary: int
    width: int
    layers: int = 0
    heads: int = 0
    head_width: int = 0
    context_frames: int = 0
    context_summary: int = 0
    query_heads: int = 0
    hidden: int = 0


class Mapper(Part, nn.Module, ABC):
    """Trained network from ``Features`` to a prefix: embeddings, or keys and values for every layer.

    Its first argument is ``sizes``, which a recipe leaves out: they are those of the encoder and the decoder between
    which it is built. All others are the mapper's own options, by keyword.
    """

    deferred: ClassVar[bool] = True
    leaves: ClassVar[str] = ""
    """Plural noun: parts of its prefix that are no embeddings of positions. Declared by the class that makes them."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes

    def recipe_args(self) -> dict[str, Any]:
        """All arguments but ``sizes``."""
        return {name: value for name, value in super().recipe_args().items() if name != "sizes"}

    @property
    def reads_input(self) -> bool:
        """True if the prefix depends on features or context; else it is the same for every input."""
        return True

    @property
    def reads_frames(self) -> bool:
        """True if it reads the frames; else they need not be kept."""
        return self.reads_input

    @property
    def reads_context(self) -> bool:
        """True if it reads a second branch, named by ``Branch.context``."""
        return False

    @property
    def growth(self) -> int:
        """Positions by which its prefix may still become longer as it is trained on; texts leave room for them."""
        return 0

    def merged(self) -> Mapper:
        """Mapper for use after training: what does not depend on the input is computed once and its network dropped."""
        return self

    @abstractmethod
    def forward(self, features: Features, context: Features | None = None) -> AnyPrefix:
        """Features of B inputs → embeddings (B P E) and mask (B P), or keys and values (L B H P K) and mask.

        ``context`` holds features of the second branch, with nothing real in rows that lack it; a mapper that
        ``reads_context`` always gets it, others ignore it.
        """


class DeepMapper(Mapper):
    """Base of mappers to keys and values for every layer: L, H and K are the decoder's.

    Raises InputError where ``sizes`` lacks one of them.
    """

    leaves = "keys and values"

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        if not (sizes.layers and sizes.heads and sizes.head_width):
            raise InputError(
                f"{type(self).__name__}: makes keys and values for every layer, and the sizes have layers="
                f"{sizes.layers}, heads={sizes.heads}, head_width={sizes.head_width}; give all three of the decoder"
            )

    @property
    def query_heads(self) -> int:
        """Number H' of query heads; that of key-value heads where the sizes do not say."""
        return self.sizes.query_heads or self.sizes.heads

    @property
    def hidden_width(self) -> int:
        """Width of the hidden states in the layers: E, but for a decoder that projects its embeddings (OPT-350m)."""
        return self.sizes.hidden or self.sizes.width

    @property
    def numbers(self) -> int:
        """Numbers in the keys and values of one position, 2*L*H*K."""
        return 2 * self.sizes.layers * self.sizes.heads * self.sizes.head_width

    def split_layers(self, vectors: Tensor, mask: Tensor) -> DeepPrefix:
        """Vectors (B P 2*L*H*K), mask (B P) → keys and values (L B H P K)."""
        shape = (2, self.sizes.layers, self.sizes.heads, self.sizes.head_width)
        both = vectors.view(*vectors.shape[:2], *shape).permute(2, 3, 0, 4, 1, 5)  # (2 L B H P K)
        return DeepPrefix(both[0], both[1], mask)


def join_layers(prefix: DeepPrefix) -> Tensor:
    """Keys and values (L B H P K) → vectors (B P 2*L*H*K) as deep mappers hold them: first all keys, layer by layer."""
    return torch.stack([prefix.keys, prefix.values]).permute(2, 4, 0, 1, 3, 5).flatten(2)


def frozen_positions(mapper: Mapper, length: int, is_text: bool, frozen: int | None) -> int:
    """Positions at the beginning of a deep prefix that are not trained: ``frozen``, by default the first after a text.

    The first position takes the attention that goes nowhere; runs in which it was trained broke down
    (https://arxiv.org/abs/2506.06266). InputError where nothing would be left to train.
    """
    if frozen is None:
        frozen = int(is_text)
    if not 0 <= frozen < length:
        raise InputError(
            f"{type(mapper).__name__}.frozen {frozen}: of length {length} at least one position is trained; give a "
            "number from 0 on, below length"
        )
    return frozen


def need_summary(mapper: Mapper) -> None:
    """Refuse an encoder without a summary, by name."""
    if not mapper.sizes.summary:
        raise InputError(f"{type(mapper).__name__} reads the encoder's summary, and this encoder has none")


def need_frames(mapper: Mapper) -> None:
    """Refuse an encoder without frames, by name."""
    if not mapper.sizes.frames:
        raise InputError(f"{type(mapper).__name__} reads the encoder's frames, and this encoder has none")


def need_length(mapper: Mapper, length: int) -> None:
    """Refuse a prefix without positions."""
    if length < 1:
        raise InputError(f"{type(mapper).__name__}.length {length}: give a number from 1 on")


def need_embeddings(mapper: Mapper, child: Mapper) -> None:
    """Refuse a ``child`` that leaves more than embeddings to a ``mapper`` which reads these alone."""
    part = next((part for part in child.modules() if isinstance(part, Mapper) and part.leaves), None)
    if part is not None:
        name, inner = type(mapper).__name__, type(part).__name__
        raise InputError(
            f"{name}.mapper: {name} reads embeddings, and {inner} makes {part.leaves}, which would be lost; leave "
            f"{name} out, or let mmprefix.mappers.parallel.Parallel join {inner} and a {name} over another mapper"
        )


def only_embeddings(mapper: Mapper, child: Mapper, prefix: AnyPrefix) -> Prefix:
    """``prefix`` of ``child``, which is embeddings alone; InputError for one that is more and did not declare it."""
    if isinstance(prefix, Prefix) and prefix.text_updates is None and prefix.gates is None:
        return prefix
    name, inner = type(mapper).__name__, type(child).__name__
    raise InputError(f"{name}.mapper: {name} reads embeddings alone, and {inner} makes more; give a mapper to these")


def check_context(mapper: Mapper, context: str | None, option: str) -> None:
    """Refuse a mapper that reads a context and has none, or has one and does not read it; ``option`` is its place."""
    if mapper.reads_context and context is None:
        remedy = "use it in a branch" if option == "model.prefix" else f"name its branch as {option}.context"
        raise InputError(f"{option}: {type(mapper).__name__} reads a context and has none; {remedy}")
    if context is not None and not mapper.reads_context:
        raise InputError(f"{option}.context {context!r}: {type(mapper).__name__} reads no context; leave it out")


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B N E) → (B H N K) with K = E / H."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def feature_tokens(
    features: Features, from_frames: nn.Module | None, from_summary: nn.Module | None
) -> tuple[Tensor, Tensor]:
    """Summary (B G) and frames (B T D), each projected to one width D' → tokens (B 1+T D'), mask (B 1+T).

    What has no projection is left out, and so are frames where there are none (T = 0); one of the two is there.
    """
    tokens, masks = list[Tensor](), list[Tensor]()
    if from_summary is not None:
        tokens.append(from_summary(features.pooled)[:, None])
        masks.append(features.mask.new_ones(len(features.mask), 1))
    if from_frames is not None and (features.frames.shape[1] or not tokens):
        tokens.append(from_frames(features.frames))
        masks.append(features.mask)
    return torch.cat(tokens, dim=1), torch.cat(masks, dim=1)
