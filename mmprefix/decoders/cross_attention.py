"""The decoder half of a frozen encoder-decoder: it writes while it looks at an encoder's frames.

Whisper asked about speech: the question is the decoder's prompt, a learned deep prefix makes it answer instead of
transcribe (Prompting Whisper for QA-driven Zero-shot End-to-end Spoken Language Understanding, Li, Keizer and
Doddipatla, https://arxiv.org/abs/2406.15209; its wording and sizes are not known: the order of tokens here is chosen).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedTokenizerBase,
    WhisperForConditionalGeneration,
)

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.kv_cache import cache as caches
from mmprefix.kv_cache.masks import additive_mask
from mmprefix.kv_cache.state import Layer, Memory, State
from mmprefix.types import AnyPrefix, Features, MixedPrefix, Prefix
from mmprefix.weights import transformers
from mmprefix.weights.transformers import load_tokenizer

_looked: ContextVar[tuple[Tensor, Tensor | None]] = ContextVar("looked")  # places (B N), bias of the memory (B 1 1 T)


class CrossDecoder(CausalDecoder):
    """The decoder of Whisper, or of a text model like BART, behind the contract of every decoder.

    Whisper's looks at the frames of the model's branches (those of its own encoder, ``mmprefix.encoders.whisper``), and
    reads ``<|startofprev|>`` prompt and question, then ``<|startoftranscript|>``, language, task and
    ``<|notimestamps|>``; the answer follows. A text model's encoder reads the prompt, and its decoder the question.

    Args:
        model: a folder, ``mmprefix:NAME`` or a hub name, with ``revision``.
        language: Whisper's word for it; None where the model knows one language only.
        task: Whisper's word for what to write.
        frozen, dtype, noisy, lora_rank, lora_alpha, lora_targets: as for ``CausalDecoder``.

    Raises InputError for models whose positions are not learned for each place (T5 and its like): branches of one
    input share a row there.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        language: str | None = "en",
        task: Literal["transcribe", "translate"] = "transcribe",
        frozen: bool = True,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        noisy: bool = False,
        lora_rank: int = 0,
        lora_alpha: float = 32.0,
        lora_targets: list[str] | None = None,
    ) -> None:
        super().__init__(model, revision, None, frozen, dtype, False, noisy, lora_rank, lora_alpha, lora_targets)
        half = cast(Any, self.lm).get_decoder()
        self.crossed = [cast(Any, layer).encoder_attn for layer in half.layers]
        self.previous: list[int] = []
        if self.reads_speech:
            spoken = [] if language is None else [f"<|{language}|>"]
            self.previous = self._special(["<|startofprev|>"])
            self.begins = self._special(["<|startoftranscript|>", *spoken, f"<|{task}|>", "<|notimestamps|>"])
            self.memory_dim = int(self.lm.config.d_model)
        else:
            config = self.lm.generation_config
            forced = getattr(config, "forced_bos_token_id", None)
            self.begins = [int(config.decoder_start_token_id), *([] if forced is None else [int(forced)])]
        for attention in self.crossed:
            attention.register_forward_pre_hook(_mask_memory, with_kwargs=True)
        half.embed_positions.register_forward_pre_hook(_put_in_place, with_kwargs=True)
        half.embed_positions.register_forward_hook(_for_each_input)

    @property
    def stack(self) -> nn.Module:
        """The layers of the decoder half."""
        return cast(Any, self.lm).get_decoder()

    @property
    def reads_speech(self) -> bool:
        """Whether it looks at the frames of speech; else at what its own encoder makes of the prompt."""
        return self.lm.main_input_name == "input_features"

    def load(self, name: str, folder: Path, dtype: str) -> tuple[Any, PreTrainedTokenizerBase]:
        """The model without the half that is not needed, and its tokenizer."""
        if transformers.model_type(name, folder) == "whisper":
            lm, _ = transformers.load_model(WhisperForConditionalGeneration, name, folder, dtype)
            lm.model.encoder = nn.Identity()  # its frames come from a branch
        else:
            lm, _ = transformers.load_model(AutoModelForSeq2SeqLM, name, folder, dtype)
        layers = getattr(lm.get_decoder(), "layers", None) if hasattr(lm, "get_decoder") else None
        if not layers or not hasattr(layers[0], "encoder_attn") or not hasattr(lm.get_decoder(), "embed_positions"):
            raise InputError(
                f"decoder {name!r}: a {lm.config.model_type!r} model has no cross-attention and learned positions as "
                "Whisper and BART have them; CrossDecoder reads models like those"
            )
        return lm, load_tokenizer(lm, name, folder)

    def sizes(self, config: Any) -> tuple[int, int, int, int]:
        """L, H, K of the decoder half, and its positions."""
        heads = int(config.decoder_attention_heads)
        most = getattr(config, "max_target_positions", None) or getattr(config, "max_position_embeddings", 0)
        return int(config.decoder_layers), heads, int(config.d_model) // heads, int(most or 0)

    def prefill(self, prefix: AnyPrefix, memory: Features | None = None) -> State:
        """``memory`` (B T D) becomes keys and values once, for all texts and beams."""
        if not self.reads_speech:
            if memory is not None:
                raise InputError(f"decoder {self.identity.source!r}: reads the prompt, so it can look at no frames")
            if isinstance(prefix, MixedPrefix) or (isinstance(prefix, Prefix) and prefix.mask.shape[1]):
                raise InputError("embeddings before a text model's decoder would look at nothing; use a deep prefix")
            return super().prefill(prefix)
        if memory is None or not memory.frames.shape[1]:
            raise InputError(f"decoder {self.identity.source!r}: looks at speech; give an input that has frames")
        return self._prefill(prefix, self._project_memory(memory.frames, memory.mask))

    def _project_memory(self, frames: Tensor, mask: Tensor) -> Memory:
        frames = frames.to(self._dtype)
        parts = [(attention.k_proj(frames), attention.v_proj(frames)) for attention in self.crossed]
        shape = (self.heads, self.head_width)
        layers = [tuple(part.unflatten(2, shape).transpose(1, 2) for part in pair) for pair in parts]
        return Memory(tuple(cast(list[Layer], layers)), mask)

    def append_prompts(self, state: State, prompts: list[str]) -> State:
        """Whisper's decoder reads the prompt; a text model's encoder does, and its decoder looks at that."""
        if self.reads_speech:
            return super().append_prompts(state, prompts)
        ids = [cast(list[int], self.tokenizer(prompt)["input_ids"]) for prompt in prompts]
        width = max(map(len, ids))
        mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in ids], device=self._device)
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids], device=self._device)
        frames = cast(Any, self.lm).get_encoder()(input_ids=padded, attention_mask=mask.long()).last_hidden_state
        return State(state.cache, state.mask, state.last_hidden, self._project_memory(frames, mask))

    @torch.no_grad()
    def no_speech(self, state: State) -> Tensor:
        """The probability (B) that Whisper finds no speech in what ``state`` looks at; 0 without a token for it."""
        known = [w for w in ("<|nospeech|>", "<|nocaptions|>") if w in self.tokenizer.get_vocab()]
        if not known:
            return torch.zeros(len(state.mask), device=self._device)
        begun = self._append(state, [self.begins[:1] for _ in state.mask])
        return self.logits(self._last(begun)).float().softmax(-1)[:, self._special(known[:1])[0]]

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (... E) → logits (... V)."""
        offset = getattr(self.lm, "final_logits_bias", None)  # BART's
        logits = super().logits(hidden)
        return logits if offset is None else logits + offset[0]

    def output_matrix(self) -> nn.Linear | None:
        """None where BART adds to its logits."""
        return super().output_matrix() if getattr(self.lm, "final_logits_bias", None) is None else None

    def _lead(self, prompt: str, first: bool) -> list[int]:
        return [*self.previous, *self._ids(f" {prompt}")] if prompt and self.reads_speech else []

    def _ask(self, prompt: str, question: str) -> list[int]:
        if not self.reads_speech:
            return [*self.begins, *self._ids(question)]
        before = self.previous if question and not prompt else []
        return [*before, *(self._ids(f" {question}") if question else []), *self.begins]

    def count_tokens(self, texts: list[str]) -> list[int]:
        """How many tokens each text is written with, its end included."""
        return [len(self._target_ids("", text)) for text in texts]

    def _target_ids(self, prompt: str, text: str) -> list[int]:
        return [*self._ids(f" {text}" if self.reads_speech else text), cast(int, self.eos)]

    def forward_tokens(self, state: State, cache: DynamicCache, embeds: Tensor, sees: Tensor, places: Tensor) -> Tensor:
        assert state.memory is not None
        held = state.memory
        whole = not held.mask.is_cuda and bool(held.mask.all())  # a GPU would have to be waited for
        crossed = None if whole else additive_mask(held.mask[:, None], embeds.dtype)
        visible = torch.cat([state.mask[:, None].expand(-1, sees.shape[1], -1), sees], dim=-1)  # (B N T+M)
        frames = embeds.new_zeros(1, 1, 1).expand(len(embeds), held.mask.shape[1], 1)  # their keys are known: not read
        with _cross_attention_args(places, crossed), self.own_precision():
            out = cast(Any, self.lm).get_decoder()(
                inputs_embeds=embeds,
                attention_mask=additive_mask(visible, embeds.dtype),
                encoder_hidden_states=frames,
                past_key_values=EncoderDecoderCache(cache, caches.cache_over(held.layers)),
                use_cache=True,
            )
        return out.last_hidden_state

    def _special(self, words: list[str]) -> list[int]:
        ids = [cast(int | None, self.tokenizer.convert_tokens_to_ids(word)) for word in words]
        unknown = self.tokenizer.unk_token_id
        for word, number in zip(words, ids, strict=True):
            if number is None or (number == unknown and word != self.tokenizer.unk_token):
                raise InputError(
                    f"decoder {self.identity.source!r}: its tokenizer has no {word}; it is not Whisper's, or not of "
                    "this language (null where the model knows one language only)"
                )
        return cast(list[int], ids)


@contextmanager
def _cross_attention_args(places: Tensor, crossed: Tensor | None) -> Iterator[None]:
    """Says to the hooks below what Transformers' decoders take no argument for."""
    token = _looked.set((places, crossed))
    try:
        yield
    finally:
        _looked.reset(token)


def _mask_memory(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    crossed = _looked.get((torch.empty(0), None))[1]
    return args, kwargs if crossed is None else {**kwargs, "attention_mask": crossed}


def _put_in_place(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    found = _looked.get(None)
    return args, kwargs if found is None else {**kwargs, "position_ids": found[0]}


def _for_each_input(module: nn.Module, args: Any, found: Tensor) -> Tensor:
    return found[0] if found.dim() == 4 else found  # BART's expects the same places in all rows: (1 B N E)
