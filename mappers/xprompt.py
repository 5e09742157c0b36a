"""XPrompt: a soft prompt from which tokens that do harm, and pieces of tokens, are cut out.

XPrompt: Exploring the Extreme of Prompt Tuning (Ma et al. 2022), https://arxiv.org/abs/2210.04457. With gates of 1 on
each token (gamma) and on each of 16 pieces of a token (zeta), the importance of a gate is the mean over training
batches of abs(dL/dgate). Tokens of least importance are cut out, then pieces of those that are left; the rest is
trained once more from its tuned values. ``mmprefix.training.methods.xprompt.XPromptSchedule`` does so within one fit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.starts import Start
from mmprefix.mappers.task_prompt import TaskPrompt


class XPrompt(TaskPrompt):
    """``length`` learned embeddings (P E), less the tokens and pieces that were cut out.

    A token that was cut out is no position any more; the numbers of a piece that was cut out are zeros. A saved model
    holds the tokens that are left.

    Args:
        length: positions before any is cut out.
        pieces: parts of equal width of a token; they divide the decoder's width.
        std: standard deviation of the normal distribution that they are drawn from before training.
        start: what they are instead before training: a text, or a part of ``mmprefix.mappers.starts``.
    """

    tokens: Tensor
    parts: Tensor

    def __init__(
        self, sizes: Sizes, *, length: int = 20, pieces: int = 16, std: float = 0.02, start: str | Start | None = None
    ) -> None:
        super().__init__(sizes, length=length, std=std, start=start)
        if pieces < 1 or sizes.width % pieces:
            raise InputError(f"XPrompt.pieces {pieces}: give a divisor of the decoder's width, {sizes.width}")
        self.embeds = nn.Parameter(self.origin.numbers(length, sizes.width))
        self.register_buffer("tokens", torch.ones(length, dtype=torch.bool))  # (P), True where it is left
        self.register_buffer("parts", torch.ones(length, pieces, dtype=torch.bool))

    def take(self, embeds: Tensor) -> None:
        """Begin as these ``embeds`` (P E)."""
        self.embeds.copy_(embeds)

    def embeddings(self) -> Tensor:
        """Embeddings (P' E) of the tokens that are left, zeros in the pieces that are not."""
        pieces = self.embeds.view(*self.parts.shape, -1) * self.parts[..., None]
        return pieces.flatten(1)[self.tokens]

    @torch.no_grad()
    def gate_gradients(self) -> tuple[Tensor, Tensor]:
        """Size of the loss's gradient into the gate of each token (P) and of each piece (P 16), from ``embeds.grad``.

        A gate multiplies embeddings and is 1, so that its gradient is the product of embeddings and their gradient.
        Raises InputError before a backward pass.
        """
        if self.embeds.grad is None:
            raise InputError("XPrompt: no gradient to score by; run a loss backwards first")
        pieces = (self.embeds * self.embeds.grad).view(*self.parts.shape, -1).sum(-1)
        return pieces.sum(1).abs(), pieces.abs()

    @torch.no_grad()
    def prune_tokens(self, importance: Tensor, share: float) -> None:
        """Cut out the ``share`` of the tokens left that have the least ``importance`` (P), but never all of them."""
        order = _least_first(importance, self.tokens)
        self.tokens[order[: min(int(share * len(order)), len(order) - 1)]] = False

    @torch.no_grad()
    def prune_pieces(self, importance: Tensor, share: float) -> None:
        """Cut out the ``share`` of the pieces of all tokens left that have the least ``importance`` (P 16)."""
        order = _least_first(importance.flatten(), (self.parts & self.tokens[:, None]).flatten())
        self.parts.view(-1)[order[: int(share * len(order))]] = False


def _least_first(importance: Tensor, among: Tensor) -> Tensor:
    """Indices of the entries that are ``among``, the least important first; of equals the first."""
    (places,) = among.nonzero(as_tuple=True)
    return places[importance[places].argsort(stable=True)]
