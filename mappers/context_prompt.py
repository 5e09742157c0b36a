"""Context prompt: the embeddings of demonstrations, each free to move a little while it is trained.

Near to Context-aware Prompt Tuning: Advancing In-Context Learning with Adversarial Methods (Blau et al. 2024),
https://arxiv.org/abs/2410.17222. As there, the prompt is the frozen embeddings of the demonstrations' tokens plus a
trained delta (P E) that begins at zero, that never moves a label, and whose length at a token is cut to epsilon *
sqrt(E / 2048) before every forward pass. The paper's loss on the labels inside the context is not taken: the loss is
that of the target, as everywhere here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.mappers.base import Sizes
from mmprefix.mappers.observer import TextReader
from mmprefix.mappers.task_prompt import TaskPrompt

_NOTHING, _TEMPLATE, _INPUT, _LABEL = range(4)  # kinds of a position


class ContextPrompt(TaskPrompt):
    """Embeddings (P E) of demonstrations, the same for every input, with a bounded delta on all tokens but labels.

    Args:
        demonstrations: pairs of an input and its label, in their order.
        length: positions for them; fewer are used where their tokens are fewer.
        input_template: text of an input, which stands at ``{}``.
        label_template: text of its label.
        epsilon: longest delta of an input's token, times the root of the decoder's width / 2048.
        template_epsilon: that of a template's token.
    """

    context: Tensor
    kinds: Tensor

    def __init__(
        self,
        sizes: Sizes,
        *,
        demonstrations: list[list[str]],
        length: int = 64,
        input_template: str = "input: {}\n",
        label_template: str = "output: {}\n",
        epsilon: float = 0.1,
        template_epsilon: float = 0.1,
    ) -> None:
        super().__init__(sizes, length=length, std=0.0, start=None)
        if not demonstrations or any(len(pair) != 2 for pair in demonstrations):
            raise InputError("ContextPrompt.demonstrations: give at least one pair of an input and its label")
        for option, template in (("input_template", input_template), ("label_template", label_template)):
            if template.count("{}") != 1:
                raise InputError(
                    f"ContextPrompt.{option} {template!r}: has no place for the text; write it with one {{}}"
                )
        self.pieces = [
            piece
            for text, label in demonstrations
            for piece in (*_pieces(input_template, text, _INPUT), *_pieces(label_template, label, _LABEL))
        ]
        root = (sizes.width / 2048) ** 0.5
        self.bounds = (0.0, template_epsilon * root, epsilon * root, 0.0)  # by kind
        self.register_buffer("context", torch.zeros(length, sizes.width))
        self.register_buffer("kinds", torch.full((length,), _TEMPLATE))
        self.delta = nn.Parameter(torch.zeros(length, sizes.width))

    @property
    def known(self) -> bool:
        """True once it has the demonstrations' embeddings."""
        return bool(self.context.any())

    @torch.no_grad()
    def begin(self, reader: TextReader) -> None:
        """Read the demonstrations; InputError where they have more tokens than there are positions."""
        tokens = [(number, kind) for text, kind in self.pieces for number in reader.token_ids(text)]
        if len(tokens) > self.length:
            raise InputError(
                f"ContextPrompt.length {self.length}: the demonstrations have {len(tokens)} tokens; raise it, or give "
                "fewer"
            )
        self.kinds.fill_(_NOTHING)
        self.kinds[: len(tokens)] = torch.tensor([kind for _, kind in tokens])
        self.take(reader.token_vectors([number for number, _ in tokens]))

    def take(self, embeds: Tensor) -> None:
        """Take ``embeds`` (P' E) as the context."""
        self.context[: len(embeds)] = embeds

    @torch.no_grad()
    def shrinkage(self) -> Tensor:
        """Factors (P 1) that cut each delta to its bound: those of labels to nothing."""
        bounds = self.delta.new_tensor(self.bounds)[self.kinds][:, None]
        lengths = self.delta.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
        return (bounds / lengths).clamp(max=1)

    @torch.no_grad()
    def project(self) -> None:
        """Cut every delta to its bound, in place."""
        self.delta.mul_(self.shrinkage())

    def embeddings(self) -> Tensor:
        """Context plus delta (P' E) at the positions that are used; the last step's delta is cut in use, too."""
        if self.training:
            self.project()
        return (self.context + self.delta * self.shrinkage())[self.kinds != _NOTHING]


def _pieces(template: str, text: str, kind: int) -> list[tuple[str, int]]:
    """Text pieces of a filled template and their kinds; a space before the text belongs to the text, as to tokens."""
    before, after = template.split("{}")
    stem = before.rstrip(" ")
    return [(stem, _TEMPLATE), (before[len(stem) :] + text, kind), (after, _TEMPLATE)]
