"""The contract of every decoder: prefill, append, loss, search, scores of allowed answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmprefix.errors import InputError
from mmprefix.generation.options import GenerateOptions
from mmprefix.kv_cache.state import State
from mmprefix.parts import Part
from mmprefix.types import AnyPrefix, Candidate, DeepPrefix, Features, to_list
from mmprefix.weights.source import Provenance


@dataclass(frozen=True)
class TextLoss:
    """Summed negative log-likelihood of each text (C,), its number of tokens (C,), and the index of its input (C,)."""

    nll: Tensor
    tokens: Tensor
    owner: Tensor

    def mean(self) -> Tensor:
        """Mean over all tokens of all texts."""
        return self.nll.sum() / self.tokens.sum().clamp(min=1)

    def by_input(self, count: int) -> TextLoss:
        """Sums over the texts of each of ``count`` inputs: nll (B,), tokens (B,)."""
        nll = self.nll.new_zeros(count).index_add(0, self.owner, self.nll)
        tokens = self.tokens.new_zeros(count).index_add(0, self.owner, self.tokens)
        return TextLoss(nll, tokens, torch.arange(count, device=tokens.device))


class Decoder(Part, nn.Module, ABC):
    """Base of decoders: language models that read a prefix and generate text. Sizes, and operations on a state."""

    width: int  # E of the embeddings in a prefix
    layers: int
    heads: int  # H, key-value heads
    head_width: int  # K
    query_heads: int  # H'
    hidden_width: int = 0  # of the hidden states in its layers; 0: E
    max_positions: int  # of prefix, prompt and text together; 0: no known limit
    frozen: bool
    identity: Provenance
    memory_dim: int | None = None  # D of the frames for cross-attention; None: no cross-attention

    @property
    def trained(self) -> tuple[str, ...]:
        """Name prefixes of the tensors that training changes."""
        return () if self.frozen else ("",)

    @abstractmethod
    def token_ids(self, text: str) -> list[int]:
        """Token ids of ``text``, as those of a prompt."""

    @abstractmethod
    def word_ids(self) -> list[int]:
        """Ids of all tokens of the vocabulary whose text has a letter, in its order, special tokens left out."""

    @abstractmethod
    def token_vectors(self, ids: list[int]) -> Tensor:
        """Embeddings (N E) of tokens, as the language model reads them."""

    @abstractmethod
    def token_key_values(self, ids: list[int]) -> DeepPrefix:
        """Keys and values (L 1 H N K), float32, of tokens, as the cache holds them.

        Raises InputError for a decoder that takes no deep prefix or reads a text beside frames only.
        """

    def word_vectors(self, text: str) -> Tensor:
        """Embeddings (N E) of the tokens of ``text``, as the language model reads them."""
        return self.token_vectors(self.token_ids(text))

    def key_values(self, text: str, positions: int) -> DeepPrefix:
        """Keys and values (L 1 H P K), float32, of the first P ``positions`` of ``text``, as the cache holds them.

        Tokens of a shorter text are repeated. Raises InputError for a text without any, and as ``token_key_values``.
        """
        if not (ids := self.token_ids(text)):
            raise InputError(f"start {text!r}: has no tokens; give a word")
        return self.token_key_values((ids * -(-positions // len(ids)))[:positions])

    @abstractmethod
    def prefill(self, prefix: AnyPrefix, memory: Features | None = None) -> State:
        """Run a prefix → the state that prompts and texts continue. A state is immutable and can be used again.

        ``memory`` holds the frames for cross-attention (see ``memory_dim``).
        """

    @abstractmethod
    def append_prompts(self, state: State, prompts: list[str]) -> State:
        """Append each input's prompt to a prefilled state; questions may follow."""

    @abstractmethod
    def append_questions(self, state: State, prompts: list[str], questions: list[str]) -> State:
        """Append each input's question (or "") after its prompt, so that a text can follow."""

    @abstractmethod
    def text_loss(
        self,
        state: State,
        prompts: list[str],
        targets: list[list[str]],
        questions: list[list[str]] | None = None,
        *,
        smoothing: float = 0.0,
    ) -> TextLoss:
        """Negative log-likelihood of each target of each input, given prefix, prompt and question.

        ``smoothing`` is the share of each token's target that is spread evenly over the vocabulary.
        """

    @abstractmethod
    def generate_from(
        self, state: State, options: GenerateOptions, before: Sequence[str] | None = None
    ) -> list[list[Candidate]]:
        """Generate texts for each input after a state that holds prompt and question; the best comes first.

        ``before`` is that question or prompt of each input, which says whether ``start_with`` begins with a space.
        """

    def stream_from(self, state: State, options: GenerateOptions, before: str = "") -> Iterator[str]:
        """Pieces of the best text of the first input, as soon as nothing changes them; here the text as a whole."""
        if text := self.generate_from(state, options, [before])[0][0].text:
            yield text

    @abstractmethod
    def choice_log_probs(self, state: State, choices: list[str], after: str) -> Tensor:
        """Total log-probability (B C) of each of C allowed texts after a state that ends with the text ``after``."""

    def append(self, state: State, prompts: list[str], questions: list[str] | None = None) -> State:
        """Append each input's prompt, then its question."""
        return self.append_questions(self.append_prompts(state, prompts), prompts, questions or [""] * len(prompts))

    def generate(
        self, state: State, prompts: list[str], options: GenerateOptions, questions: list[str] | None = None
    ) -> list[list[Candidate]]:
        """Generate texts for each input, given prefix, prompt and question; the best comes first."""
        with torch.no_grad():
            before = [question or prompt for question, prompt in zip(questions or prompts, prompts, strict=True)]
            return self.generate_from(self.append(state, prompts, questions), options, before)

    def stream(self, state: State, prompts: list[str], options: GenerateOptions) -> Iterator[str]:
        """Pieces of the text of one input as they are written; together they are the best text of ``generate``."""
        return self.stream_from(self.append(state, prompts), options, prompts[0])

    def score_choices(
        self, state: State, prompts: list[str], choices: list[str], questions: list[str] | None = None
    ) -> Tensor:
        """Log-probability (B C) of each of C allowed answers after appended prompts; the C probabilities sum to 1."""
        questions = questions or [""] * len(prompts)
        state = self.append_questions(state, prompts, questions)
        endings = [(question or prompt)[-1:] for question, prompt in zip(questions, prompts, strict=True)]
        log_probs = torch.zeros(len(prompts), len(choices), device=state.mask.device)
        for ending in dict.fromkeys(endings):  # the first token of a text depends on the character before it
            rows = torch.tensor([own == ending for own in endings], device=state.mask.device)
            log_probs = torch.where(rows[:, None], self.choice_log_probs(state, choices, ending), log_probs)
        return log_probs.log_softmax(-1)

    @abstractmethod
    def count_tokens(self, texts: list[str]) -> list[int]:
        """Number of tokens of each text, end of text included."""

    @abstractmethod
    def compile_layers(self) -> None:
        """Compile each layer with torch.compile when it next runs."""

    @abstractmethod
    def recompute_layers(self) -> None:
        """Turn on activation checkpointing, which needs less memory and more time."""

    def remap_saved(self, tensors: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
        """Fit the ``tensors`` of a saved model, by name, to this decoder; ``options`` built the saved one."""
        return tensors

    def loss(
        self, state: State, prompts: list[str], targets: list[list[str]], questions: list[list[str]] | None = None
    ) -> Tensor:
        """Mean negative log-likelihood over all tokens of all targets."""
        return self.text_loss(state, prompts, targets, questions).mean()

    def score(
        self, state: State, prompts: list[str], targets: list[list[str]], questions: list[list[str]] | None = None
    ) -> list[list[float]]:
        """Total log-probability of each target, end of text included."""
        losses = self.text_loss(state, prompts, targets, questions)
        values = iter(to_list(-losses.nll))
        return [[next(values) for _ in texts] for texts in targets]


def require_frames_are_read(decoder: Decoder, branch: str, dim: int) -> None:
    """Refuse a branch without mapper whose frames, ``dim`` wide, the cross-attention of ``decoder`` does not read."""
    source = f"the decoder {decoder.identity.source!r}"
    if dim == decoder.memory_dim:
        return
    if not dim:
        why = "it has no frames"
    elif decoder.memory_dim is None:
        why = f"{source} looks at no frames"
    else:
        why = f"its frames are {dim} wide, while {source} looks at frames that are {decoder.memory_dim} wide"
    raise InputError(f"model.branches.{branch}: has no mapper, and {why}; give it a mapper")
