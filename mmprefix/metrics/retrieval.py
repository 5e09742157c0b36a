"""Recall at k of retrieval between two sets of vectors: of how many queries is a right one among the first k."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

KS = (1, 5, 10)


def recalls(scores: Tensor, right: Tensor, ks: Sequence[int] = KS) -> dict[str, float]:
    """Scores (N M) of M items for N queries, and which items are ``right`` (N M, True) → {"r@1": share, ...}.

    An item as good as a right one stands before it, so that vectors which are all equal find nothing.
    """
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    ahead = ((scores >= best) & ~right).sum(1)
    return {f"r@{k}": float((ahead < k).float().mean()) for k in ks}


def both_ways(pictures: Tensor, texts: Tensor, owner: Tensor, ks: Sequence[int] = KS) -> dict[str, float]:
    """Pictures (N W), texts (M W) and the picture ``owner`` (M) of each text → recall by cosine, each way.

    ``image_to_text`` counts a picture when one of its texts is among the first k.
    """
    unit = [torch.nn.functional.normalize(rows.double(), dim=1) for rows in (pictures, texts)]
    scores = unit[0] @ unit[1].T
    right = owner[None] == torch.arange(len(pictures), device=owner.device)[:, None]
    forth, back = recalls(scores, right, ks), recalls(scores.T, right.T, ks)
    named = {f"image_to_text/{key}": value for key, value in forth.items()}
    return named | {f"text_to_image/{key}": value for key, value in back.items()}
