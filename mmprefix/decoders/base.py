"""The contract of every decoder: prefill, append, loss, search, scores of allowed answers."""

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
    """For each text its summed negative log-likelihood (C,), its number of tokens (C,), and its input (C,)."""

    nll: Tensor
    tokens: Tensor
    owner: Tensor

    def mean(self) -> Tensor:
        """The mean over all tokens of all texts."""
        return self.nll.sum() / self.tokens.sum().clamp(min=1)

    def by_input(self, count: int) -> TextLoss:
        """Sums over the texts of each of ``count`` inputs: nll (B,), tokens (B,)."""
        nll = self.nll.new_zeros(count).index_add(0, self.owner, self.nll)
        tokens = self.tokens.new_zeros(count).index_add(0, self.owner, self.tokens)
        return TextLoss(nll, tokens, torch.arange(count, device=tokens.device))


class Decoder(Part, nn.Module, ABC):
    """A language model that reads a prefix and writes text: plain sizes, and what it does with a state."""

    width: int  # E, of the embeddings that a prefix is made of
    layers: int
    heads: int  # H, key-value heads
    head_width: int  # K
    max_positions: int  # of prefix, prompt and text together; 0: no limit known
    frozen: bool
    identity: Provenance
    memory_dim: int | None = None  # D of the frames for cross-attention; None: it has no cross-attention

    @property
    def trained(self) -> tuple[str, ...]:
        """Prefixes of the names of the tensors that training changes."""
        return () if self.frozen else ("",)

    @abstractmethod
    def prefill(self, prefix: AnyPrefix, memory: Features | None = None) -> State:
        """Read a prefix → the state that prompts and texts continue; it is never changed, and can be used again.

        ``memory`` holds the frames for cross-attention (see ``memory_dim``).
        """

    @abstractmethod
    def append_prompts(self, state: State, prompts: list[str]) -> State:
        """Read each input's prompt behind a prefilled state; questions may follow."""

    @abstractmethod
    def append_questions(self, state: State, prompts: list[str], questions: list[str]) -> State:
        """Read each input's question (or "") behind its prompt, so that a text can follow."""

    @abstractmethod
    def text_loss(
        self, state: State, prompts: list[str], targets: list[list[str]], questions: list[list[str]] | None = None
    ) -> TextLoss:
        """Negative log-likelihood of each target of each input after the prefix, its prompt, and its question."""

    @abstractmethod
    def generate_from(self, state: State, options: GenerateOptions) -> list[list[Candidate]]:
        """Each input's texts behind a state that prompt and question were appended to, the best first."""

    @abstractmethod
    def choice_log_probs(self, state: State, choices: list[str], after: str) -> Tensor:
        """The total log-probability (B C) of each of C allowed texts behind a state that ends with ``after``."""

    def append(self, state: State, prompts: list[str], questions: list[str] | None = None) -> State:
        """Read all that stands before a text: each input's prompt, then its question."""
        return self.append_questions(self.append_prompts(state, prompts), prompts, questions or [""] * len(prompts))

    def generate(
        self, state: State, prompts: list[str], options: GenerateOptions, questions: list[str] | None = None
    ) -> list[list[Candidate]]:
        """Each input's texts after the prefix, its prompt and its question, the best first."""
        with torch.no_grad():
            return self.generate_from(self.append(state, prompts, questions), options)

    def score_choices(
        self, state: State, prompts: list[str], choices: list[str], questions: list[str] | None = None
    ) -> Tensor:
        """The log-probability (B C) of each of C allowed answers behind appended prompts; the C sum to 1."""
        questions = questions or [""] * len(prompts)
        state = self.append_questions(state, prompts, questions)
        endings = [(question or prompt)[-1:] for question, prompt in zip(questions, prompts, strict=True)]
        log_probs = torch.zeros(len(prompts), len(choices), device=state.mask.device)
        for ending in dict.fromkeys(endings):  # the first token of a text depends on what it follows
            rows = torch.tensor([own == ending for own in endings], device=state.mask.device)
            log_probs = torch.where(rows[:, None], self.choice_log_probs(state, choices, ending), log_probs)
        return log_probs.log_softmax(-1)

    @abstractmethod
    def count_tokens(self, texts: list[str]) -> list[int]:
        """The number of tokens of each text, its end included."""

    @abstractmethod
    def compile_layers(self) -> None:
        """Compile each layer with torch.compile at its next run."""

    @abstractmethod
    def recompute_layers(self) -> None:
        """Turn on activation checkpointing: less memory, more time."""

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
        losses = self.text_loss(state, prompts, targets, questions)
        values = iter((-losses.nll).tolist())
        return [[next(values) for _ in texts] for texts in targets]
