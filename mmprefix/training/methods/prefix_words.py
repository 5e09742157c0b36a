"""Alignment of a prefix with words: each position is to lie nearest to the vector of one token of a text.

Chosen here, for the first stage of EmbodiedGPT (https://arxiv.org/abs/2305.15021), which aligns what is seen with
texts by the loss of a language model. Through a small frozen decoder that loss says little about which position of the
prefix is wrong; this one names the word that each is to stand for, and needs no pass of the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.errors import InputError
from mmprefix.model import PrefixLM
from mmprefix.training.objective import Objective
from mmprefix.types import Batch, Prefix


class PrefixWords(Objective):
    """Cross-entropy of each input's first target, token by token, under the nearness of the prefix to all tokens.

    The logit of a token is minus the squared distance of a position to its vector, times ``scale`` and in units of the
    mean squared length of all vectors. Targets that are longer than the prefix are cut.

    Args:
        rest: text of one token, for which the positions behind the target stand.
        scale: factor on the logits.
    """

    def __init__(self, *, rest: str = "\n", scale: float = 24.0) -> None:
        if scale <= 0:
            raise InputError(f"PrefixWords.scale {scale}: give a number above 0")
        self.rest, self.scale = rest, scale

    def loss(self, model: PrefixLM, batch: Batch, smoothing: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over all positions, and ``words``: the share of positions that are nearest to their token.

        Raises InputError for a prefix that is not made of embeddings, and for a decoder that is not made of tokens.
        """
        decoder, prefix = model.decoder, model.build_prefix(batch.inputs, batch.absent, len(batch))
        if not isinstance(prefix, Prefix) or not isinstance(decoder, ComposedDecoder):
            raise InputError(
                "PrefixWords: compares embeddings with tokens; train one without deep prefixes, or leave it out"
            )
        wanted = self.tokens(decoder, batch, prefix.embeds.shape[1]).to(prefix.embeds.device)
        with torch.no_grad():
            words = decoder.token_vectors(list(range(len(decoder.tokenizer)))).float()
            lengths = words.square().sum(1)
        logits = (2 * prefix.embeds.float() @ words.T - lengths) * (self.scale / lengths.mean())  # |prefix|^2 cancels
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), label_smoothing=smoothing)
        return loss, {"words": (logits.detach().argmax(2) == wanted).float().mean()}

    def tokens(self, decoder: ComposedDecoder, batch: Batch, length: int) -> Tensor:
        """Token of each position (B P); InputError where ``rest`` is not one token, and for an input without target."""
        rest = decoder.token_ids(self.rest)
        if len(rest) != 1:
            raise InputError(f"PrefixWords.rest {self.rest!r}: has {len(rest)} tokens; give a text of one")
        if not all(batch.targets):
            raise InputError("PrefixWords: an input has no target; give each a caption")
        rows = [(decoder.token_ids(texts[0]) + rest * length)[:length] for texts in batch.targets]
        return torch.tensor(rows)
