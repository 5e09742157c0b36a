"""Places of tokens and of the masks behind them that draft what follows, and what each of them sees."""

from __future__ import annotations

import torch
from torch import Tensor


def draft_mask(
    before: int, tokens: int, groups: list[int], *, prompt: int, masks: int, device: torch.device | None = None
) -> Tensor:
    """Mask (1 N P+before+N) of N new positions: ``tokens``, then a group of masks behind each token of ``groups``.

    A token sees the ``before`` tokens that are kept and those up to itself; a mask sees the ``prompt`` of P positions
    too, the tokens up to its own, and the masks of its group up to itself.
    """
    behind = torch.tensor(groups, dtype=torch.long, device=device).repeat_interleave(masks)  # each mask's token
    number = torch.arange(masks, device=device).repeat(len(groups))
    group = torch.arange(len(groups), device=device).repeat_interleave(masks)
    offset = torch.cat([torch.arange(tokens, device=device), behind])
    sees_token = offset[:, None] >= torch.arange(tokens, device=device)
    is_mask = torch.arange(len(offset), device=device) >= tokens
    own = (group[:, None] == group) & (number[:, None] >= number)
    sees_mask = torch.cat([own.new_zeros(tokens, len(own)), own])
    kept = own.new_ones(len(offset), before)
    return torch.cat([is_mask[:, None].expand(-1, prompt), kept, sees_token, sees_mask], dim=1)[None]


def draft_offsets(tokens: int, groups: list[int], masks: int, device: torch.device | None = None) -> Tensor:
    """Places (1 N), from 0 on, of ``tokens`` and of the masks: number m (from 1) behind token t stands at t + m."""
    ahead = torch.tensor(groups, dtype=torch.long, device=device)[:, None] + torch.arange(1, masks + 1, device=device)
    return torch.cat([torch.arange(tokens, device=device), ahead.flatten()])[None]
