"""Decoder half of an encoder-decoder: it generates text while its cross-attention reads an encoder's frames.

Whisper answers questions about speech: the question is the decoder's prompt, a learned deep prefix makes it answer
instead of transcribe (Prompting Whisper for QA-driven Zero-shot End-to-end Spoken Language Understanding, Li, Keizer
and Doddipatla, https://arxiv.org/abs/2406.15209; its prompts and sizes are not published: the order of tokens used here
is our choice).
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    EncoderDecoderCache,
    WhisperForConditionalGeneration,
)

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.language_model import LanguageModel, ModelSizes, Tuning, locate
from mmprefix.decoders.text_codec import Seq2SeqCodec, WhisperCodec
from mmprefix.errors import InputError
from mmprefix.kv_cache.cache import additive_mask, attention_mask, cache_over
from mmprefix.kv_cache.packing import pad_ids
from mmprefix.kv_cache.state import Memory, State
from mmprefix.types import AnyPrefix, Features, MixedPrefix, Prefix, split_side
from mmprefix.weights import transformers
from mmprefix.weights.model_kinds import advice, described
from mmprefix.weights.transformers import load_tokenizer

log = logging.getLogger(__name__)
_SECONDS_A_FRAME = 0.02  # of Whisper's encoder
_NOT_LIKE_WHISPER = (
    "decoder {!r}: a {!r} model has no cross-attention and learned positions like Whisper and BART; CrossDecoder needs "
    "both"
)
_pass_args: ContextVar[tuple[Tensor, Tensor | None]] = ContextVar("pass_args")  # position ids (B N), memory mask


class CrossAttentionModel(LanguageModel):
    """Decoder half of Whisper, or both halves of a text model like BART.

    The decoders of Transformers take no position ids, and no mask of the frames while a cache holds their keys. Hooks
    on position embeddings and cross-attention pass both (see ``_hook``).
    """

    def __init__(self, lm: Any, name: str) -> None:
        half, config = lm.get_decoder(), lm.config.get_text_config()
        heads = int(config.decoder_attention_heads)
        most = getattr(config, "max_target_positions", None) or getattr(config, "max_position_embeddings", 0)
        width = int(config.d_model)
        sizes = ModelSizes(int(config.decoder_layers), heads, width // heads, int(most or 0), heads, width)
        super().__init__(lm, name, half, sizes)
        self.memory_width = int(config.d_model)
        self.reads_speech = lm.main_input_name == "input_features"
        self.cross_attentions: list[Any] = [layer.encoder_attn for layer in half.layers]
        self.without_terms = self.cross_attentions
        self._hook()

    def over(self, lm: Any) -> CrossAttentionModel:
        """Language model over another ``lm`` of the same class."""
        return CrossAttentionModel(lm, self.name)

    def _hook(self) -> None:
        """Hook position embeddings and cross-attention to take position ids and mask from ``forward_tokens``."""
        for attention in self.cross_attentions:
            attention.register_forward_pre_hook(_mask_memory, with_kwargs=True)
        positions = self.stack.get_submodule("embed_positions")
        positions.register_forward_pre_hook(_pass_position_ids, with_kwargs=True)
        positions.register_forward_hook(_one_row_an_input)

    def project(self, frames: Tensor, mask: Tensor) -> Memory:
        """Frames (B T D) and their mask (B T) → keys and values of each layer's cross-attention."""
        frames, shape = frames.to(self.dtype), (self.sizes.heads, self.sizes.head_width)

        def split_heads(projected: Tensor) -> Tensor:
            return projected.view(*projected.shape[:2], *shape).transpose(1, 2)

        attentions = self.cross_attentions
        return Memory(tuple((split_heads(a.k_proj(frames)), split_heads(a.v_proj(frames))) for a in attentions), mask)

    def encode(self, ids: list[list[int]]) -> Memory:
        """Run texts as token ids through a text model's encoder → memory for its decoder's cross-attention."""
        padded, mask = (part.to(self.device) for part in pad_ids(ids))
        frames = self.lm.get_encoder()(input_ids=padded, attention_mask=mask.long()).last_hidden_state
        return self.project(frames, mask)

    def forward_tokens(
        self, state: State, cache: DynamicCache, embeds: Tensor, *, visible: Tensor, position_ids: Tensor
    ) -> Tensor:
        """N tokens (B N E) after the cache of ``state`` → hidden states (B N E'); each token also reads the memory."""
        memory = state.memory
        if memory is None:
            raise InputError("a decoder with cross-attention has no frames to look at; give an input of its encoder")
        unpadded = not memory.mask.is_cuda and bool(memory.mask.all())  # not on a GPU: the check would wait for it
        memory_mask = None if unpadded else additive_mask(memory.mask[:, None], embeds.dtype)
        frames = embeds.new_zeros(1, 1, 1).expand(len(embeds), memory.mask.shape[1], 1)  # unused: the cache has keys
        with _passing(position_ids, memory_mask), self.own_precision(), self.attending(state):
            out = self.stack(
                inputs_embeds=embeds,
                attention_mask=attention_mask(state.mask, visible, embeds.dtype),
                encoder_hidden_states=frames,
                past_key_values=EncoderDecoderCache(cache, cache_over(memory.layers)),
                use_cache=True,
            )
        return out.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (... E) → logits (... V); BART adds a bias."""
        bias = getattr(self.lm, "final_logits_bias", None)
        logits = super().logits(hidden)
        return logits if bias is None else logits + bias[0]

    def output_matrix(self) -> nn.Linear | None:
        """Output matrix; None for BART, which adds a bias to its logits."""
        return super().output_matrix() if getattr(self.lm, "final_logits_bias", None) is None else None


def require_cross_attention(name: str, folder: Path) -> str:
    """The ``model_type`` in ``folder``. Raises InputError, before weights are read, for one without cross-attention."""
    config = transformers.config(name, folder)
    kind = config.model_type
    known = kind == "whisper" or type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if not (known and getattr(config, "is_encoder_decoder", False)):
        raise InputError(
            f"decoder {name!r}: the folder {folder} holds {described(kind)}, which has no decoder that looks at an "
            f"encoder's frames; Whisper and BART have: docs/decoders.md{advice(kind)}"
        )
    if not hasattr(config, "decoder_attention_heads"):
        raise InputError(_NOT_LIKE_WHISPER.format(name, kind))
    return kind


def load_cross_attention(name: str, folder: Path, dtype: str) -> CrossAttentionModel:
    """Load the model in ``folder`` without the half that is not needed. Raises InputError for other architectures."""
    kind = require_cross_attention(name, folder)
    if kind == "whisper":
        lm, _ = transformers.load_model(WhisperForConditionalGeneration, name, folder, dtype)
        lm.model.encoder = nn.Identity()  # its frames come from a branch
    else:
        lm, _ = transformers.load_model(AutoModelForSeq2SeqLM, name, folder, dtype)
    return cross_attention_model(lm, name)


def cross_attention_model(lm: Any, name: str) -> CrossAttentionModel:
    """Decoder half of ``lm``, an encoder-decoder of Transformers. Raises InputError for other architectures."""
    layers = getattr(lm.get_decoder(), "layers", None) if hasattr(lm, "get_decoder") else None
    if not layers or not hasattr(layers[0], "encoder_attn") or not hasattr(lm.get_decoder(), "embed_positions"):
        raise InputError(_NOT_LIKE_WHISPER.format(name, lm.config.model_type))
    return CrossAttentionModel(lm, name)


class CrossDecoder(ComposedDecoder):
    """Decoder of Whisper, or of a text model like BART.

    Whisper's cross-attention reads the frames of the model's branches (of its own encoder,
    ``mmprefix.encoders.whisper``). Its tokens are ``<|startofprev|>``, prompt and question, then
    ``<|startoftranscript|>``, language, task and ``<|notimestamps|>``; the answer follows. A text model's encoder reads
    the prompt, its decoder the question.

    Args:
        model: a folder, ``mmprefix:NAME`` or a hub name.
        revision: the hub's branch, tag or commit.
        language: its code or English name; None: as the model's generation config says, no token where it says nothing.
            A model of English alone (``whisper-base.en``) has no tokens of language and task.
        task: Whisper's task, transcribe or translate.
        frozen: False trains the language model too; it is then saved with the trained parts.
        dtype: dtype of the weights.
        noisy: keep the dropout of a frozen model active in training.
        lora_rank: a rank above 0 trains LoRA (``mmprefix.decoders.lora``) beside the prefix.
        lora_alpha: scale of LoRA's part, divided by its rank.
        lora_targets: endings of the names of the layers that get LoRA; None: PEFT's default layers for the model.
        use_dora: train the lengths of their columns beside LoRA (DoRA).

    Raises InputError for models whose positions are not learned embeddings (T5 and similar): the texts of one input are
    packed in one row.
    """

    def __init__(  # noqa: PLR0913 (options of a recipe)
        self,
        model: str,
        revision: str | None = None,
        *,
        language: str | None = "en",
        task: Literal["transcribe", "translate"] = "transcribe",
        frozen: bool = True,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        noisy: bool = False,
        lora_rank: int = 0,
        lora_alpha: float = 32.0,
        lora_targets: list[str] | None = None,
        use_dora: bool = False,
    ) -> None:
        folder, identity = locate(model, revision)
        language_model = load_cross_attention(model, folder, dtype)
        tokenizer = load_tokenizer(language_model.lm, model, folder)
        if language_model.reads_speech:
            config = language_model.lm.generation_config
            codec = WhisperCodec(tokenizer, model, language, task, config=config)
        else:
            codec = Seq2SeqCodec(tokenizer, model, language_model.lm.generation_config)
        tuning = Tuning(frozen, noisy, None, lora_rank, lora_alpha, lora_targets, use_dora)
        super().__init__(language_model, codec, identity, tuning)
        self._model, self._codec, self._warned = language_model, codec, False
        if self.reads_speech:
            self.memory_dim = int(language_model.lm.config.d_model)

    @property
    def reads_speech(self) -> bool:
        """True if cross-attention reads frames of speech; else it reads the encoder's output for the prompt."""
        return self._model.reads_speech

    @property
    def begins(self) -> list[int]:
        """Tokens that precede every answer."""
        return self._codec.begins

    def prefill(self, prefix: AnyPrefix, memory: Features | None = None) -> State:
        """Prefill the cache; ``memory`` (B T D) is projected to keys and values once, for all texts and hypotheses."""
        if not self.reads_speech:
            if memory is not None:
                raise InputError(f"decoder {self.identity.source!r}: its encoder reads text, so it cannot read frames")
            plain, _ = split_side(prefix)
            if isinstance(plain, MixedPrefix) or (isinstance(plain, Prefix) and plain.mask.shape[1]):
                raise InputError(
                    "a text model's decoder cannot run a prefix of embeddings, for its encoder has not read "
                    "the prompt yet; use a deep prefix"
                )
            return self.prefill_with(prefix, None).begin_text(prefix)
        if memory is None or not memory.frames.shape[1]:
            raise InputError(f"decoder {self.identity.source!r}: reads frames of speech; give an input that has frames")
        self._warn_of_windows(memory.frames.shape[1])
        projected = self._model.project(memory.frames, memory.mask).joined(split_side(prefix)[1])
        return self.prefill_with(prefix, projected).begin_text(prefix)

    def _warn_of_windows(self, frames: int) -> None:
        """Say once that an input has more ``frames`` than the window that Whisper was trained on."""
        most = int(self.lm.config.max_source_positions)
        if frames > most and not self._warned:
            self._warned = True
            log.warning(
                "decoder %r: an input has %d frames, and this Whisper was trained on windows of %d (%g s): it may miss "
                "what comes later; cut the sound by start and end, or mmprefix transcribe it, which reads any length",
                self.identity.source, frames, most, most * _SECONDS_A_FRAME,
            )  # fmt: skip

    def append_prompts(self, state: State, prompts: list[str]) -> State:
        """Append each input's prompt to Whisper's decoder; run it through a text model's encoder."""
        if isinstance(self._codec, WhisperCodec):
            return super().append_prompts(state, prompts)
        memory = self._model.encode([self._codec.source_ids(prompt) for prompt in prompts])
        return replace(state, memory=memory.joined(state.side))

    @torch.no_grad()
    def no_speech(self, state: State) -> Tensor:
        """Probability (B,) of Whisper's no-speech token; 0 if the tokenizer has none."""
        silence = self._codec.no_speech_ids() if isinstance(self._codec, WhisperCodec) else []
        if not silence:
            return torch.zeros(len(state.mask), device=self._model.device)
        started = self.append_ids(state, [self.begins[:1] for _ in state.mask])
        return self.logits(self._model.last_hidden(started)).float().softmax(-1)[:, silence[0]]


@contextmanager
def _passing(position_ids: Tensor, memory_mask: Tensor | None) -> Generator[None, None, None]:
    """Within this context the hooks below pass on arguments that the decoders of Transformers do not take."""
    token = _pass_args.set((position_ids, memory_mask))
    try:
        yield
    finally:
        _pass_args.reset(token)


def _mask_memory(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    memory_mask = _pass_args.get((torch.empty(0), None))[1]
    return args, kwargs if memory_mask is None else {**kwargs, "attention_mask": memory_mask}


def _pass_position_ids(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    passed = _pass_args.get(None)
    return args, kwargs if passed is None else {**kwargs, "position_ids": passed[0]}


def _one_row_an_input(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Drop the first dimension of (1 B N E): BART's position embeddings expect the same positions in all rows."""
    return output[0] if output.dim() == 4 else output
