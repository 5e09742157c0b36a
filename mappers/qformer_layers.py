"""Layers of a Q-Former: BERT's, in which queries attend to a picture's features, too, and text goes along.

BLIP-2 (Li et al. 2023), https://arxiv.org/abs/2301.12597; BERT, https://arxiv.org/abs/1810.04805.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprefix.errors import InputError
from mmprefix.mappers.base import split_heads


class Attention(nn.Module):
    """Attention of x (B N D') to keys (B M D'') where mask (B M) is True, added to x and normalised (post-norm)."""

    def __init__(self, width: int, keys: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(keys, width), nn.Linear(keys, width)
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in (self.query(x), self.key(keys), self.value(keys)))
        dropout = self.dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], dropout_p=dropout)
        return self.norm(x + F.dropout(self.out(read.transpose(1, 2).flatten(2)), self.dropout, self.training))


class GeluFeedForward(nn.Module):
    """Two linear layers with GELU between, added to x (B N D') and normalised."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.rise, self.fall, self.norm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width, 1e-12)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + F.dropout(self.fall(F.gelu(self.rise(x))), self.dropout, self.training))


class FormerLayer(nn.Module):
    """Queries and text attend to each other, queries to the frames if ``cross``; each has its feed-forward network."""

    def __init__(
        self, width: int, frames: int, heads: int, *, inner: int, dropout: float, cross: bool, text: bool
    ) -> None:
        super().__init__()
        self.attention = Attention(width, width, heads, dropout)
        self.cross = Attention(width, frames, heads, dropout) if cross else None
        self.of_queries = GeluFeedForward(width, inner, dropout)
        self.of_text = GeluFeedForward(width, inner, dropout) if text else None

    def forward(self, x: Tensor, mask: Tensor, frames: Tensor, seen: Tensor, *, length: int) -> Tensor:
        """``length`` queries and text x (B P+N D'), mask (B P+N), frames (B T D), seen (B T) → x."""
        x = self.attention(x, x, mask)
        queries, text = x[:, :length], x[:, length:]
        if self.cross is not None:
            queries = self.cross(queries, frames, seen)
        return torch.cat([self.of_queries(queries), text if self.of_text is None else self.of_text(text)], dim=1)


def with_earlier(frames: Tensor, span: int) -> Tensor:
    """Frames (B F C D), each beside the ``span`` - 1 before it (the first has itself before it) → (B F C span*D)."""
    earlier = [frames]
    for _ in range(span - 1):
        earlier.append(torch.cat([frames[:, :1], earlier[-1][:, :-1]], dim=1))
    return torch.cat(earlier, dim=3)


def smooth_positions(cells: int, width: int, spread: float, patch: int) -> nn.Parameter:
    """Random positions (C D) of the cells of a picture with the standard deviation ``spread``.

    With a ``patch`` above 1 only every ``patch``-th row and column is drawn, and what lies between is interpolated, so
    that attention to a position begins with one part of the picture, not with cells from everywhere (chosen here).
    InputError for a patch that is not between 1 and the side of the square, and for cells that are no square.
    """
    if patch == 1:
        return nn.Parameter(torch.randn(cells, width) * spread)
    side = round(cells**0.5)
    if side * side != cells or not 1 <= patch < side:
        raise InputError(f"patch {patch}: give 1, or for a square of cells ({cells}) a number below its side")
    few = torch.randn(1, width, side // patch + 1, side // patch + 1)
    grid = F.interpolate(few, (side, side), mode="bilinear", align_corners=True)[0].flatten(1).T
    return nn.Parameter(grid / grid.std() * spread)


@torch.no_grad()
def sharpen(layers: Sequence[FormerLayer], factor: float) -> nn.ModuleList:
    """Layers whose attention to frames begins with logits ``factor`` times as large: both maps by the root of it.

    Chosen here: as they begin, maps of normalised features make logits with a deviation of a third, a mean of all.
    InputError for a factor that is not above 0.
    """
    if factor <= 0:
        raise InputError(f"sharpness {factor}: give a number above 0")
    for layer in layers:
        if layer.cross is not None:
            for values in (*layer.cross.query.parameters(), *layer.cross.key.parameters()):
                values.mul_(factor**0.5)
    return nn.ModuleList(layers)
