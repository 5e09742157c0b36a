"""BiTA: mask tokens behind a text draft what follows, and the same pass verifies the drafts before; lossless.

BiTA: Bi-Directional Tuning for Lossless Acceleration in Large Language Models (Lin et al.),
https://arxiv.org/abs/2401.12522. Mask tokens, each with an embedding of its own, look at a deep prompt that no token of
the text sees; so the text is that of the frozen model. Drafts are one chain here, not a tree of several.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprefix.errors import InputError
from mmprefix.generation.drafting.draft_mask import draft_mask, draft_offsets
from mmprefix.generation.options import GenerateOptions
from mmprefix.generation.writing import WritingModel
from mmprefix.kv_cache.cache import cache_over, layers_of
from mmprefix.kv_cache.state import Layer, State
from mmprefix.types import to_list


@dataclass(frozen=True)
class Drafts:
    """Token ids of a text, its end included, and the passes of the model that wrote them."""

    ids: list[int]
    passes: int


class Drafter(nn.Module):
    """M mask tokens (M E), and the keys and values (L H P K) of the prompt that they look at; the rest is frozen.

    Args:
        masks: tokens that are drafted in a pass. Published: 3 or 4.
        length: positions of the prompt. Published: 16.
    """

    def __init__(
        self, width: int, layers: int, heads: int, head_width: int, *, masks: int = 3, length: int = 16
    ) -> None:
        super().__init__()
        if masks < 1 or length < 1:
            raise InputError(f"Drafter: masks {masks} and length {length} are numbers from 1 on")
        self.masks = nn.Parameter(torch.randn(masks, width) * 0.02)
        shape = (layers, heads, length, head_width)
        self.keys, self.values = nn.Parameter(torch.randn(shape) * 0.1), nn.Parameter(torch.randn(shape) * 0.1)

    def layers(self, state: State) -> list[Layer]:
        """Cache of ``state`` (one input), and the prompt behind it."""
        prompt = zip(self.keys[:, None], self.values[:, None], strict=True)
        pairs = zip(state.cache, prompt, strict=True)
        return [(torch.cat([k, pk.to(k)], 2), torch.cat([v, pv.to(v)], 2)) for (k, v), (pk, pv) in pairs]

    def run(
        self, decoder: WritingModel, state: State, layers: list[Layer], tokens: list[int], *, groups: list[int]
    ) -> tuple[Tensor, tuple[Layer, ...]]:
        """Run ``tokens`` and masks behind those of ``groups`` → hidden states (N E) and the longer cache."""
        prompt, masks, device = self.keys.shape[2], len(self.masks), self.masks.device
        before = layers[0][0].shape[2] - state.mask.shape[1] - prompt
        words = decoder.embed(torch.tensor([tokens], device=device))
        embeds = torch.cat([words, self.masks.to(words).repeat(len(groups), 1)[None]], dim=1)
        cache, offset = cache_over(layers), before + draft_offsets(len(tokens), groups, masks, device)
        visible = draft_mask(before, len(tokens), groups, prompt=prompt, masks=masks, device=device)
        places = decoder.position_ids(state, offset)
        hidden = decoder.forward_tokens(state, cache, embeds, visible=visible, position_ids=places)
        return hidden[0], layers_of(cache)

    def loss(self, decoder: WritingModel, state: State, ids: list[int], groups: list[int]) -> Tensor:
        """Cross entropy of the tokens that the masks behind those of ``groups`` should draft.

        The hidden state of token t predicts token t + 1 itself, mask m (from 1) behind it token t + 1 + m.
        """
        hidden, _ = self.run(decoder, state, self.layers(state), ids, groups=groups)
        target = [
            ids[t + 1 + m] if t + 1 + m < len(ids) else -100 for t in groups for m in range(1, len(self.masks) + 1)
        ]
        logits = decoder.logits(hidden[len(ids) :]).float()
        return F.cross_entropy(logits, torch.tensor(target, device=logits.device))

    @torch.no_grad()
    def write(self, decoder: WritingModel, state: State, options: GenerateOptions) -> Drafts:
        """Greedy text of one input after ``state``. Raises InputError for a search that is not plain and greedy."""
        _require_greedy(state, options)
        stops, most = {*to_list(decoder.stop_ids())}, options.max_new_tokens
        decoder.language_model.require_room(state, most + 2 * len(self.masks))
        ids: list[int] = [int(decoder.logits(decoder.language_model.last_hidden(state)).argmax())]
        drafts: list[int] = []
        layers, passes = self.layers(state), 1  # the first token is that of the prompt's pass
        while ids[-1] not in stops and len(ids) < most:
            tokens = [ids[-1], *drafts]
            kept = layers[0][0].shape[2]
            hidden, longer = self.run(decoder, state, layers, tokens, groups=[*range(len(tokens))])
            passes += 1
            best: list[int] = to_list(decoder.logits(hidden[: len(tokens)]).argmax(-1))
            right = next((n for n, draft in enumerate(drafts) if draft != best[n]), len(drafts))
            layers = [(k[:, :, : kept + 1 + right], v[:, :, : kept + 1 + right]) for k, v in longer]
            ids += _until_stop(best[: right + 1], stops, most - len(ids))
            group = hidden[len(tokens) + right * len(self.masks) :][: len(self.masks)]
            drafts = to_list(decoder.logits(group).argmax(-1))
        return Drafts(ids, passes)


def _until_stop(ids: list[int], stops: set[int], most: int) -> list[int]:
    """At most ``most`` of ``ids``, up to the first that ends a text."""
    end = next((n + 1 for n, token in enumerate(ids) if token in stops), len(ids))
    return ids[: min(end, most)]


def _require_greedy(state: State, options: GenerateOptions) -> None:
    if len(state.mask) != 1:
        raise InputError(f"drafting: writes one text at a time, and there are {len(state.mask)} inputs")
    searches = options.num_beams > 1 or options.sample or options.constrains or bool(options.start_with)
    if searches or options.no_repeat_ngram_size or options.min_new_tokens:
        raise InputError("drafting: verifies plain greedy search only; leave out beams, sampling and constraints")
