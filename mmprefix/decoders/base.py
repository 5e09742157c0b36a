"""The contract of every decoder: prefill, append, loss, search, scores of given choices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmprefix.generation.options import GenerateOptions
from mmprefix.kv_cache.state import State
from mmprefix.parts import Part
from mmprefix.types import AnyPrefix, Candidate, Features
from mmprefix.weights.source import Provenance


@dataclass(frozen=True)
class TextLoss:
    """Of each text: its summed negative log-likelihood (C,), its tokens (C,), and which input it belongs to (C,)."""

    nll: Tensor
    tokens: Tensor
    owner: Tensor

    def mean(self) -> Tensor:
        """The mean over all tokens of all texts."""
        return self.nll.sum() / self.tokens.sum().clamp(min=1)

    def by_input(self, count: int) -> TextLoss:
        """The same summed over the texts of each of ``count`` inputs: nll (B,), tokens (B,)."""
        nll = self.nll.new_zeros(count).index_add(0, self.owner, self.nll)
        tokens = self.tokens.new_zeros(count).index_add(0, self.owner, self.tokens)
        return TextLoss(nll, tokens, torch.arange(count, device=tokens.device))


class Decoder(Part, nn.Module, ABC):
    """The contract of every decoder: plain sizes, and the four things it does with a state."""

    width: int  # E, of the embeddings a prefix is made of
    layers: int
    heads: int  # H, key-value heads
    head_width: int  # K
    frozen: bool
    identity: Provenance

    @property
    def trained(self) -> tuple[str, ...]:
        """What the names of the tensors begin with that training changes."""
        return () if self.frozen else ("",)

    memory_dim: int | None = None  # D of the frames that it looks at beside the prefix; None: it has no cross-attention

    @abstractmethod
    def prefill(self, prefix: AnyPrefix, memory: Features | None = None) -> State:
        """Reads a prefix: the trunk that everything below continues, unchanged by it and usable again."""

    @abstractmethod
    def append_prompts(self, state: State, prompts: list[str]) -> State:
        """The trunk lengthened by each input's prompt; questions may follow."""

    @abstractmethod
    def append_questions(self, state: State, prompts: list[str], questions: list[str]) -> State:
        """An opened trunk lengthened by each input's question (or ""), so that a text can follow."""

    @abstractmethod
    def text_loss(
        self, state: State, prompts: list[str], targets: list[list[str]], questions: list[list[str]] | None = None
    ) -> TextLoss:
        """How badly each target of each input is predicted after the prefix, the input's prompt, and its question."""

    @abstractmethod
    def generate_from(self, state: State, options: GenerateOptions) -> list[list[Candidate]]:
        """For each input its texts behind a closed trunk, the best first."""

    @abstractmethod
    def choice_log_probs(self, state: State, choices: list[str], after: str) -> Tensor:
        """The total log-probability (B C) of each of C allowed texts behind a trunk closed by the text ``after``."""

    def append(self, state: State, prompts: list[str], questions: list[str] | None = None) -> State:
        """The trunk lengthened by all that stands before a text."""
        return self.append_questions(self.append_prompts(state, prompts), prompts, questions or [""] * len(prompts))

    def generate(
        self, state: State, prompts: list[str], options: GenerateOptions, questions: list[str] | None = None
    ) -> list[list[Candidate]]:
        """For each input its texts after the prefix, its prompt and its question, the best first."""
        with torch.no_grad():
            return self.generate_from(self.append(state, prompts, questions), options)

    def score_choices(
        self, state: State, prompts: list[str], choices: list[str], questions: list[str] | None = None
    ) -> Tensor:
        """The log-probability (B C) of each of C allowed texts behind an opened trunk, given that it is one of them."""
        questions = questions or [""] * len(prompts)
        closed = self.append_questions(state, prompts, questions)
        ends = [(question or prompt)[-1:] for question, prompt in zip(questions, prompts, strict=True)]
        found = torch.zeros(len(prompts), len(choices), device=state.mask.device)
        for end in dict.fromkeys(ends):  # what a text begins with depends on what it follows
            rows = torch.tensor([one == end for one in ends], device=state.mask.device)
            found = torch.where(rows[:, None], self.choice_log_probs(closed, choices, end), found)
        return found.log_softmax(-1)

    @abstractmethod
    def count_tokens(self, texts: list[str]) -> list[int]:
        """How many tokens each text is written with, its end included."""

    @abstractmethod
    def compile_layers(self) -> None:
        """Has torch.compile work on the layers when they are next run."""

    @abstractmethod
    def recompute_layers(self) -> None:
        """Has the layers keep less for the way back, and compute it again there: less memory, more time."""

    def remap_saved(self, tensors: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
        """The ``tensors`` of a saved model (by name) as this decoder can take them; it was built with ``options``."""
        return tensors

    def loss(
        self, state: State, prompts: list[str], targets: list[list[str]], questions: list[list[str]] | None = None
    ) -> Tensor:
        """The mean negative log-likelihood over all tokens of all targets."""
        return self.text_loss(state, prompts, targets, questions).mean()

    def score(
        self, state: State, prompts: list[str], targets: list[list[str]], questions: list[list[str]] | None = None
    ) -> list[list[float]]:
        """The total log-probability of each target, the end of text included."""
        found = self.text_loss(state, prompts, targets, questions)
        values = iter((-found.nll).tolist())
        return [[next(values) for _ in texts] for texts in targets]
