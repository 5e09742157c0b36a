"""Decoder composed of a language model, a text codec and an output head.

The language model runs embeddings over a key-value cache and computes logits; the codec turns texts into token ids and
back; the head is the model's own or a trained one. ``CausalDecoder``, ``WordDecoder``, ``CrossDecoder`` choose them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedTokenizerBase

from mmprefix.decoders.base import Decoder, TextLoss
from mmprefix.decoders.language_model import LanguageModel, Tuning
from mmprefix.decoders.self_check import require_own_scores
from mmprefix.decoders.text_codec import TextCodec
from mmprefix.errors import InputError
from mmprefix.fast import last_layer, switches
from mmprefix.fast.activation_checkpointing import checkpoint_layers
from mmprefix.fast.chunked_nll import chunked_nll
from mmprefix.generation.next_tokens import LogitsProcessor, processors_for
from mmprefix.generation.options import GenerateOptions
from mmprefix.generation.search import run_to_end
from mmprefix.generation.strategies import Hypothesis
from mmprefix.generation.token_texts import letter_ids
from mmprefix.generation.writing import search_steps, stream_text, write_texts
from mmprefix.kv_cache.cache import cache_over, causal_mask, layers_of, text_mask
from mmprefix.kv_cache.gated_positions import gating, is_gating
from mmprefix.kv_cache.packing import count_targets, pack_texts, pad_ids, plan_targets
from mmprefix.kv_cache.state import Memory, State
from mmprefix.kv_cache.trie import build_trie
from mmprefix.types import AnyPrefix, Candidate, DeepPrefix, Features, MixedPrefix, PlainPrefix, split_side, to_list
from mmprefix.weights.source import Provenance

Rows = list[list[str]]  # texts of each input
TokenIds = list[list[list[int]]]
Groups = list[list[Candidate]]  # of each input


class ComposedDecoder(Decoder):
    """``Decoder`` over a language model, a codec and a head.

    ``lm``: the language model's network, ``own_head``: a trained head (None: the model's own); saved tensors begin so.
    ``embed``: embeddings of generated tokens. ``checks`` refuses models without own scores over a shared cache.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        codec: TextCodec,
        identity: Provenance,
        tuning: Tuning,
        *,
        embed: Callable[[Tensor], Tensor] | None = None,
        checks: bool = True,
    ) -> None:
        super().__init__()
        self.language_model, self.codec, self.identity = language_model, codec, identity
        self.lm, sizes, self.width = language_model.lm, language_model.sizes, language_model.width
        self.own_head: nn.Linear | None = None
        self.frozen, self.noisy, self.lora = tuning.frozen, tuning.noisy, language_model.adapt(tuning)
        self.layers, self.heads, self.head_width = sizes.layers, sizes.heads, sizes.head_width
        self.max_positions, self.query_heads, self.hidden_width = sizes.max_positions, sizes.query_heads, sizes.hidden
        self._text_embeddings = embed or language_model.embed
        nn.Module.train(self, self.noisy or not self.frozen)  # Lightning leaves each module in its mode
        if checks and not require_own_scores(
            self, lambda lm: ComposedDecoder(language_model.over(lm), codec, identity, Tuning(), checks=False)
        ):
            self.heads = self.head_width = 0  # keys and values of a deep prefix would not fit

    def token_ids(self, text: str) -> list[int]:
        """Token ids of ``text``, as those of a prompt."""
        return self.codec.marked_ids(text)

    def word_ids(self) -> list[int]:
        """Ids of all tokens whose text has a letter, in their order, special ones left out."""
        return letter_ids(self.tokenizer, self.codec.special)

    def token_vectors(self, ids: list[int]) -> Tensor:
        """Embeddings (N E) of tokens."""
        return self.language_model.word_vectors(ids)

    @torch.no_grad()
    def token_key_values(self, ids: list[int]) -> DeepPrefix:
        """Keys and values (L 1 H N K) of tokens; see ``Decoder``."""
        self.language_model.require_deep(self.heads)
        return self.language_model.key_values(ids)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the language model."""
        return self.codec.tokenizer

    @property
    def trained(self) -> tuple[str, ...]:
        """Name prefixes of trained tensors: of a frozen model these are its own head and LoRA."""
        lora = tuple(f"lm.{name}" for name in self.lora)
        return super().trained or (*(("own_head.",) if self.own_head is not None else ()), *lora)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen model stays in evaluation mode unless it is noisy."""
        return super().train(mode and (self.noisy or not self.frozen))

    def prefill(self, prefix: AnyPrefix, memory: Features | None = None) -> State:
        """Run embeddings (B P E) through the model; keys and values (L B H P K) enter the cache directly."""
        if memory is None:
            return self.prefill_with(prefix, None).begin_text(prefix)
        raise InputError(f"decoder {self.identity.source!r}: has no cross-attention, so it cannot read frames")

    def prefill_with(self, prefix: AnyPrefix, memory: Memory | None) -> State:
        """Prefill the cache with ``prefix``, given projected ``memory`` for cross-attention (or None)."""
        (plain, terms), model = split_side(prefix), self.language_model
        return self.prefill_plain(plain, State((), plain.mask[:, :0], None, memory, side=model.bound(terms)))

    def prefill_plain(self, prefix: PlainPrefix, empty: State) -> State:
        """Prefill the cache with ``prefix`` after an ``empty`` state, which holds what stands beside the cache."""
        if isinstance(prefix, MixedPrefix):
            return self.prefill_plain(prefix.soft, self.prefill_plain(prefix.deep, empty))
        if isinstance(prefix, DeepPrefix):
            self.language_model.require_deep(self.heads)
            return empty.with_deep(prefix, self.language_model.dtype)
        with gating(self.identity.source, self.language_model.decoder_layers, prefix.gates):
            return self.extend(empty, prefix.embeds, prefix.mask)

    def append_prompts(self, state: State, prompts: list[str]) -> State:
        """Append each input's prompt; an empty one is the begin-of-text token if no token or embedding was run yet."""
        started: list[bool] = [state.last_hidden is not None] * len(prompts)
        if state.last_hidden is not None and not all(prompts):  # looked at where it counts: a GPU is waited for
            started = to_list(state.last_hidden.any(1))
        return self.append_ids(state, [self.codec.prompt_ids(p, not s) for p, s in zip(prompts, started, strict=True)])

    def append_questions(self, state: State, prompts: list[str], questions: list[str]) -> State:
        """Append each input's question and any other tokens that the model needs between prompt and text."""
        return self.append_ids(state, [self.codec.question_ids(p, q) for p, q in zip(prompts, questions, strict=True)])

    def append_ids(self, state: State, ids: list[list[int]]) -> State:
        """Append tokens of the language model, any number per input."""
        padded, mask = (part.to(state.mask.device) for part in pad_ids(ids))
        return self.extend(state, self.language_model.embed(padded), mask) if any(ids) else state

    def extend(self, state: State, embeds: Tensor, mask: Tensor) -> State:
        """Run N more positions (B N E) after ``state``, real where ``mask`` (B N) is True → the longer state."""
        if not (n := mask.shape[1]):
            return state
        model = self.language_model
        model.require_room(state, n, mask)  # before anything of N x N is made: a text too long would take all memory
        visible = causal_mask(mask)
        position_ids = self.position_ids(state, (mask.cumsum(1) - 1).clamp(min=0))
        end = torch.where(mask, torch.arange(1, n + 1, device=mask.device), 0).amax(1)  # 0: no real position
        last_index = (end - 1).clamp(min=0)
        narrows = model.narrows_last_layer and not is_gating()  # gates belong to all positions
        cache = last_layer.cache_for(state.cache, self.layers) if narrows else cache_over(state.cache)
        with last_layer.only_at((last_index, n) if narrows else None):
            hidden = self.forward_tokens(
                state, cache, embeds.to(model.dtype), visible=visible, position_ids=position_ids
            )
        last = hidden[torch.arange(len(end), device=end.device), last_index]
        last = torch.where((end > 0)[:, None], last, 0.0 if state.last_hidden is None else state.last_hidden)
        return replace(state, cache=layers_of(cache), mask=torch.cat([state.mask, mask], dim=1), last_hidden=last)

    def text_loss(
        self, state: State, prompts: list[str], targets: Rows, questions: Rows | None = None, *, smoothing: float = 0.0
    ) -> TextLoss:
        """Run all targets of an input in one row after its state; logits are computed at target tokens only.

        With ``questions`` a text is a question and its target: the prompt is run once for all questions.
        """
        codec = self.codec
        if not questions or not any(questions):
            ids = [[codec.target_ids(p, t) for t in texts] for p, texts in zip(prompts, targets, strict=True)]
            return self.token_loss(self.append(state, prompts), ids, smoothing=smoothing)
        state = self.append_prompts(state, prompts)
        question_ids = [[codec.question_ids(p, q) for q in row] for p, row in zip(prompts, questions, strict=True)]
        ids = [
            [before + codec.target_ids(q or p, t) for before, q, t in zip(own, row, texts, strict=True)]
            for p, own, row, texts in zip(prompts, question_ids, questions, targets, strict=True)
        ]
        lengths = [[len(before) for before in own] for own in question_ids]
        return self.token_loss(state, ids, lengths, smoothing=smoothing)

    def token_loss(
        self, state: State, ids: TokenIds, question_lengths: list[list[int]] | None = None, *, smoothing: float = 0.0
    ) -> TextLoss:
        """Loss of targets as token ids, after a state that a text can follow.

        ``question_lengths`` is the number of tokens at the start of each text that are input, not predicted.
        """
        rows = [[tokens[:-1] for tokens in texts] for texts in ids]  # the last token of a text predicts nothing
        device, packed = state.mask.device, pack_texts(rows)
        self.language_model.require_room(state, max((len(tokens) for texts in rows for tokens in texts), default=0) + 1)
        hidden = self.language_model.last_hidden(state)
        if packed.numel():
            tokens, text, offset = packed.to(device, non_blocking=True).unbind()
            places = {"visible": text_mask(text, offset), "position_ids": self.position_ids(state, offset)}
            output = self.forward_tokens(state, cache_over(state.cache), self.embed(tokens), **places)
            real = (packed[1].flatten() >= 0).nonzero()[:, 0].to(device, non_blocking=True)
            hidden = torch.cat([hidden, output.flatten(0, 1).index_select(0, real)])  # (R E)
        row, target, text = plan_targets(ids, question_lengths)
        if question_lengths:
            used, row = cast(Any, torch).unique(row, return_inverse=True)
            hidden = hidden[used.to(device, non_blocking=True)]
        nll = self.target_nll(hidden, row, target, smoothing)
        counts = count_targets(ids, question_lengths).to(device, non_blocking=True)
        total = nll.new_zeros(counts.shape[1]).index_add(0, text.to(device, non_blocking=True), nll)
        return TextLoss(total, counts[0], counts[1])

    def target_nll(self, hidden: Tensor, row: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
        """Target tokens (C,), predicted by a ``row`` (C,) of hidden states (R E) → nll (C,); see ``chunked_nll``."""
        head = self.output_matrix() if "chunked_nll" in switches.ENABLED else None
        if head is not None:
            return chunked_nll(hidden, head, row, target, label_smoothing=smoothing)
        own = self.logits(hidden).float()[row.to(hidden.device)]
        return F.cross_entropy(own, target.to(own.device), reduction="none", label_smoothing=smoothing)

    @torch.no_grad()
    def generate_from(self, state: State, options: GenerateOptions, before: Sequence[str] | None = None) -> Groups:
        """Texts after a state that holds prompt and question; see ``GenerateOptions``."""
        return write_texts(self, state, options, before)

    def stream_from(self, state: State, options: GenerateOptions, before: str = "") -> Iterator[str]:
        """Pieces of the best text of the first input."""
        return stream_text(self, state, options, before)

    @torch.no_grad()
    def search_tokens(self, state: State, options: GenerateOptions, stops: Tensor) -> list[list[Hypothesis]]:
        """Hypotheses as token ids, stop token included; ``stops`` (any number) are the ids that end one."""
        return run_to_end(search_steps(self, state, options, stops))

    def logits_processors(self, options: GenerateOptions, stops: Tensor) -> list[LogitsProcessor]:
        """Logits processors: constraints on the next token of each hypothesis."""
        return processors_for(options, stops)

    @torch.no_grad()
    def choice_log_probs(self, state: State, choices: list[str], after: str) -> Tensor:
        """Total log-probability (B C) float32 of each choice; all are one trie after the state, run in one pass.

        Raises InputError if two choices have the same tokens.
        """
        ids = [self.codec.choice_ids(after, text) for text in choices]
        if len(set(map(tuple, ids))) < len(ids):
            raise InputError(f"choices: two have the same tokens in this decoder: {', '.join(sorted(choices))}")
        trie = build_trie(ids, state.mask.device)
        self.language_model.require_room(state, int(trie.depth.max()) + 1 if len(trie.depth) else 1)
        hidden, count = self.language_model.last_hidden(state)[:, None], len(state.mask)
        if len(trie.tokens):
            nodes, depth = (part.expand(count, -1) for part in (trie.tokens, trie.depth))
            places = {"visible": trie.visible.expand(count, -1, -1), "position_ids": self.position_ids(state, depth)}
            output = self.forward_tokens(state, cache_over(state.cache), self.embed(nodes), **places)
            hidden = torch.cat([hidden, output], dim=1)  # (B 1+M E)
        edges = [self.logits(row).float().log_softmax(-1)[trie.node, trie.token] for row in hidden]  # V is wide
        used = torch.stack(edges)[:, trie.edge_of_use]
        return used.new_zeros(count, len(choices)).index_add(1, trie.text_of_use, used)

    def forward_tokens(
        self, state: State, cache: DynamicCache, embeds: Tensor, *, visible: Tensor, position_ids: Tensor
    ) -> Tensor:
        """Run N tokens over the cache, with the prefix's updates; see ``LanguageModel.forward_tokens``."""
        embeds = state.updated(embeds, position_ids)
        return self.language_model.forward_tokens(state, cache, embeds, visible=visible, position_ids=position_ids)

    def position_ids(self, state: State, offset: Tensor) -> Tensor:
        """Position ids (B N) of tokens at ``offset`` (B N) after the state's real positions."""
        return self.language_model.position_ids(state, offset)

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens of generated texts (B N) → embeddings (B N E)."""
        return self._text_embeddings(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (... E') → logits (... V)."""
        own = self.own_head
        return self.language_model.logits(hidden) if own is None else own(hidden.to(own.weight.dtype))

    def output_matrix(self) -> nn.Linear | None:
        """Output matrix if it alone computes the logits and is not trained, else None."""
        head = self.language_model.output_matrix() if self.own_head is None else self.own_head
        return head if type(head) is nn.Linear and not head.weight.requires_grad else None

    def stop_ids(self, exactly: bool = False) -> Tensor:
        """Token ids (any number) that end a text; see ``TextCodec.stop_ids``."""
        return self.codec.stop_ids(exactly).to(self.language_model.device)

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Number of tokens of each text, end of text included."""
        return self.codec.count(texts)

    def compile_layers(self, backend: str = "inductor") -> None:
        """Compile each layer separately, for inputs of any length."""
        for layer in self.language_model.decoder_layers:
            cast(Any, layer).compile(dynamic=True, backend=backend)

    def recompute_layers(self) -> None:
        """Checkpoint all layers but the last, which stores few activations anyway."""
        checkpoint_layers(self.language_model.decoder_layers[:-1])
