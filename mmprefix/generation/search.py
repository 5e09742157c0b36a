"""Text behind a trunk: every line of all inputs grows by one node a step, as one tree on what was read.

A decoder has read a prefix and a prompt once: the trunk. Every step adds ``width`` nodes to each input's tree, one
for each line of text being written, and a mask says which nodes are a line's own ancestors. So the trunk's keys and
values are stored once an input, and no cache is copied or reordered when beams change places. Inputs that are done
leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from mmprefix.generation.constraints import LogitsProcessor
from mmprefix.generation.next_tokens import NextTokens
from mmprefix.generation.options import GenerateOptions
from mmprefix.generation.strategies import Hypothesis, strategy_for
from mmprefix.kv_cache.protocols import TokenTree


def search(
    first: Tensor, tree: TokenTree, options: GenerateOptions, stops: Tensor, rules: Sequence[LogitsProcessor]
) -> list[list[Hypothesis]]:
    """For each input its lines, the best first.

    ``first`` (B V) are the logits after the trunk; ``stops`` (any number) are the token ids that end a line.
    """
    width, count, steps = options.width, len(first), options.max_new_tokens
    picker = strategy_for(options, count, stops)
    found: list[list[Hypothesis]] = [[]] * count
    places = torch.arange(count, device=first.device)  # which inputs are still in the batch
    own = torch.eye(width, dtype=torch.bool, device=first.device)[None]
    ancestry = own[:, :, :0].expand(count, -1, -1)
    offer = NextTokens(first[:, None], picker.tokens, rules)
    for left in range(steps - 1, -1, -1):
        parents, tokens = picker.step(offer)
        still = int(picker.active.sum())
        if not still or not left:
            break
        inherited = ancestry.gather(1, parents[..., None].expand(-1, -1, ancestry.shape[-1]))
        ancestry = torch.cat([inherited, own.expand(len(places), -1, -1)], dim=-1)  # (B W M)
        if tree.should_compact(still, len(places)):
            gone, rows = (~picker.active).nonzero()[:, 0], picker.active.nonzero()[:, 0]
            for place, lines in zip(_numbers(places[gone]), picker.select(gone).finished(), strict=True):
                found[place] = lines
            picker, places, ancestry, tokens = picker.select(rows), places[rows], ancestry[rows], tokens[rows]
            tree.select(rows)
        offer = NextTokens(tree.step(tokens, ancestry), picker.tokens, rules)
    for place, lines in zip(_numbers(places), picker.finished(), strict=True):
        found[place] = lines
    return found


def _numbers(values: Tensor) -> list[int]:
    return cast(list[int], values.tolist())  # pyright: ignore
