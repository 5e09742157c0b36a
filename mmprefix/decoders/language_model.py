"""Language model of Transformers as a few functions: embed tokens, run them over a key-value cache, compute logits."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from mmprefix.decoders import gpt_neo
from mmprefix.decoders.lora import add_lora
from mmprefix.decoders.model_config import ModelSizes, causal_sizes, first_of, reaches_of, text_config
from mmprefix.decoders.model_head import WholeHead, whole_head
from mmprefix.decoders.self_check import WORKING
from mmprefix.errors import InputError
from mmprefix.fast import last_layer
from mmprefix.fast.prepare import prepare
from mmprefix.kv_cache import side_attention
from mmprefix.kv_cache.cache import attention_mask, cache_over, causal_mask, layers_of
from mmprefix.kv_cache.side_terms import CrossKeyValues, SideTerm
from mmprefix.kv_cache.state import State
from mmprefix.kv_cache.windows import Reaches
from mmprefix.types import DeepPrefix
from mmprefix.weights import dry_run, transformers
from mmprefix.weights import source as sources
from mmprefix.weights.model_kinds import advice, described
from mmprefix.weights.source import Provenance


@dataclass(frozen=True)
class Tuning:
    """Trained parts of a language model: all of it, LoRA, or nothing. See ``CausalDecoder``."""

    frozen: bool = True
    noisy: bool = False
    dropout: float | None = None
    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_targets: list[str] | None = None
    use_dora: bool = False


class LanguageModel:
    """Causal language model ``lm`` of Transformers with a ``DynamicCache``; ``stack`` is the module of its layers.

    ``name`` is its folder or hub repository, for error messages. A plain object, not a module: the decoder registers
    ``lm`` as its own submodule, and names of saved tensors begin with ``lm``.
    """

    memory_width: int | None = None  # D of the frames for cross-attention; None: no cross-attention

    def __init__(self, lm: Any, name: str, stack: nn.Module, sizes: ModelSizes) -> None:
        self.lm, self.name, self.stack, self.sizes = lm, name, stack, sizes
        self.width = int(lm.get_input_embeddings().embedding_dim)
        self.reaches: Reaches | None = None  # how far back its layers attend; None: all of them to the beginning
        self.join_masks: Callable[[Tensor | dict[str, Tensor]], Any] | None = None
        self.whole_head: WholeHead | None = None  # None: the output matrix alone computes the logits
        self.narrows_last_layer = False
        self.without_terms: list[Any] = []  # attention modules that terms beside the cache do not concern

    def adapt(self, tuning: Tuning) -> tuple[str, ...]:
        """Freeze the model or not, set its dropout, add LoRA, then apply the fast patches → names of LoRA's parameters.

        Raises InputError for LoRA in a model that is trained as a whole, for DoRA without a rank, and for training a
        model of float16: most steps are smaller than its rounding, and Adam divides by 1e-8, which is 0 in it.
        """
        if tuning.frozen:
            self.lm.requires_grad_(False)
        elif self.dtype == torch.float16:
            raise InputError(
                f"decoder {self.name!r}: frozen: false trains its weights, which end as no numbers in float16; take "
                "dtype float32 (and trainer.precision 16-mixed or bf16-mixed), or bfloat16 to save memory"
            )
        if tuning.dropout is not None:
            for module in self.lm.modules():
                if isinstance(module, nn.Dropout):
                    module.p = tuning.dropout
        added: tuple[str, ...] = ()
        if tuning.use_dora and not tuning.lora_rank:
            raise InputError("decoder: use_dora needs LoRA; give a lora_rank from 1 on, or leave it out")
        if tuning.lora_rank:
            if not tuning.frozen:
                rank = tuning.lora_rank
                raise InputError(f"decoder: lora_rank {rank} needs a frozen model; leave out one of the two")
            added = add_lora(self.lm, tuning.lora_rank, tuning.lora_alpha, tuning.lora_targets, dora=tuning.use_dora)
        self.narrows_last_layer = "last_layer" in prepare(self.lm, self.stack, self.sizes.layers, tuning.frozen)
        return added

    def over(self, lm: Any) -> LanguageModel:
        """Language model over another ``lm`` of the same class."""
        return causal_model(lm, self.name)

    @property
    def decoder_layers(self) -> list[nn.Module]:
        """Layers, first to last; empty if ``stack`` has no list of them."""
        return last_layer.decoder_layers(self.stack, self.sizes.layers)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.lm.get_input_embeddings().weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.lm.get_input_embeddings().weight.device

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (B N) → embeddings (B N E)."""
        return self.lm.get_input_embeddings()(ids)

    def word_vectors(self, ids: list[int]) -> Tensor:
        """Token ids → embeddings (N E) float32, without gradients."""
        return self.embed(torch.tensor(ids, dtype=torch.long, device=self.device)[None])[0].detach().float()

    @property
    def rotates_keys(self) -> bool:
        """True if keys in the cache carry rotary positions, of which distances alone count."""
        return any(name.endswith("rotary_emb") for name, _ in self.stack.named_modules())

    def require_deep(self, heads: int) -> None:
        """Raise InputError for a deep prefix if the model's keys and values have no common size (``heads`` 0)."""
        if not heads:
            raise InputError(
                f"decoder {self.name!r}: its keys and values have no common size, so it takes no deep prefix; "
                "use a mapper to embeddings"
            )

    def key_values(self, ids: list[int], first: int = 0, terms: Sequence[SideTerm] = ()) -> DeepPrefix:
        """Token ids → keys and values (L 1 H N K) float32, as in the cache, with position ids from ``first`` on.

        ``terms`` stand beside the cache.

        Raises InputError for more tokens than the model has positions, and for a decoder with cross-attention.
        """
        if self.memory_width is not None:
            raise InputError(f"decoder {self.name!r}: reads a text beside frames only, so it gives no keys and values")
        mask = torch.ones(1, len(ids), dtype=torch.bool, device=self.device)
        empty, cache = State((), mask[:, :0], None, side=self.bound(terms)), cache_over(())
        self.require_room(empty, len(ids))
        embeds = self.embed(torch.tensor([ids], dtype=torch.long, device=self.device))
        position_ids = torch.arange(first, first + len(ids), device=self.device)[None]
        self.forward_tokens(empty, cache, embeds, visible=causal_mask(mask), position_ids=position_ids)
        keys, values = (torch.stack(parts).detach().float() for parts in zip(*layers_of(cache), strict=True))
        return DeepPrefix(keys, values, mask)

    def forward_tokens(
        self, state: State, cache: DynamicCache, embeds: Tensor, *, visible: Tensor, position_ids: Tensor
    ) -> Tensor:
        """Run N tokens (B N E) after ``state`` and append them to ``cache`` → hidden states (B N E').

        ``visible`` (B N M): which of the M tokens after the state each of the N attends to; all attend to the state.
        """
        masks = attention_mask if self.reaches is None else self.reaches.masks
        mask = masks(state.mask, visible, embeds.dtype)
        with self.own_precision(), self.attending(state):
            out = self.stack(
                inputs_embeds=embeds,
                attention_mask=mask if self.join_masks is None else self.join_masks(mask),
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )
        return out.last_hidden_state

    @contextmanager
    def attending(self, state: State) -> Generator[None, None, None]:
        """Context of a run in which each layer's self-attention meets the terms beside the cache of ``state``.

        Raises InputError after a run whose layers did not: their attention does not pass Transformers' interface.
        """
        with side_attention.attending(self.stack, state.side, self.without_terms) as met:
            yield
        if state.side and len(met) != self.sizes.layers:
            raise InputError(
                f"decoder {self.name!r}: {len(met)} of its {self.sizes.layers} layers pass the attention interface of "
                "Transformers, so it takes no terms beside its cache; use a prefix of embeddings or a deep prefix"
            )

    def bound(self, terms: Sequence[SideTerm]) -> tuple[SideTerm, ...]:
        """Terms as the layers meet them: with what their weights make of them, and in their dtype.

        Raises InputError for keys and values of cross-attention in a decoder without it.
        """
        if self.memory_width is None and any(isinstance(term, CrossKeyValues) for term in terms):
            raise InputError(f"decoder {self.name!r}: has no cross-attention, so no keys and values join its frames")
        return tuple(term.cast(self.dtype).bind(self.project_tokens) for term in terms)

    def project_tokens(self, layer: int, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B P E) → keys and values (B H P K) of ``layer``; see ``side_attention.project_tokens``."""
        modules = side_attention.attention_modules(self.stack)
        own = next((m for m in modules if m.layer_idx == layer and m not in self.without_terms), None)
        return side_attention.project_tokens(own, vectors, self.sizes.heads, f"decoder {self.name!r}")

    def own_precision(self) -> AbstractContextManager[Any]:
        """Context that turns autocast off for a model in half precision, where its casts would be useless copies."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, enabled=False)

    def position_ids(self, state: State, offset: Tensor) -> Tensor:
        """Position ids (B N) of tokens at ``offset`` (B N) after the state's real positions."""
        return state.mask.sum(1, keepdim=True) + offset

    def last_hidden(self, state: State) -> Tensor:
        """Hidden state (B E') after ``state``; zeros, never read by a logit, if nothing was run yet."""
        if state.last_hidden is not None:
            return state.last_hidden
        return torch.zeros(len(state.mask), self.hidden_width, dtype=self.dtype, device=self.device)

    @property
    def hidden_width(self) -> int:
        """Width E' of hidden states."""
        if self.whole_head is None:
            return self.head.in_features
        return first_of(text_config(self.lm), "hidden_size", "d_model")

    @property
    def head(self) -> nn.Linear:
        """Output matrix of the model."""
        return self.lm.get_output_embeddings()

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (... E') → logits (... V)."""
        return self.head(hidden) if self.whole_head is None else self.whole_head(hidden)

    def output_matrix(self) -> nn.Linear | None:
        """Output matrix of the model if it alone computes the logits, else None."""
        return self.head if self.whole_head is None else None

    def require_room(self, state: State, more: int, real: Tensor | None = None) -> None:
        """Raise InputError if the model lacks positions for ``more`` tokens; by ``real`` (B N) padding needs none."""
        most = self.sizes.max_positions
        if not most or state.mask.shape[1] + more <= most:  # no need to read the masks, perhaps from a GPU
            return
        used = int(state.mask.sum(1).max()) if state.mask.numel() else 0
        more = more if real is None else int(real.sum(1).max())
        if used + more > most:
            raise InputError(
                f"the decoder {self.name!r} has {most} positions, "
                f"but {more} more are needed after the {used} of prefix and prompt; shorten one of them"
            )


def locate(model: str, revision: str | None) -> tuple[Path, Provenance]:
    """Folder or .gguf file, and provenance, of ``model`` (a folder, a file, ``mmprefix:NAME`` or a hub name)."""
    folder = sources.resolve_weights(model, revision, weights=not dry_run.sizes_only())
    return folder, sources.provenance_of(model, folder)


def require_causal(name: str, folder: Path) -> None:
    """Raise InputError, before weights are read, unless ``folder`` holds a causal language model."""
    config = transformers.config(name, folder)
    kind = config.model_type
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not getattr(config, "is_encoder_decoder", False)
    if causal and kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # BERT can be configured to read one way
        causal = getattr(config, "is_decoder", None) is not False
    if not causal:
        why = "is no causal language model"
        if getattr(config, "is_decoder", None) is False and not getattr(config, "is_encoder_decoder", False):
            why = "reads both ways, for its configuration says is_decoder: false"
        raise InputError(f"decoder {name!r}: {described(kind)} {why}; {WORKING}{advice(kind)}")


def load_causal(name: str, folder: Path, dtype: str, quantize: str | None = None) -> LanguageModel:
    """Load the causal language model in ``folder``. Raises InputError if there is none."""
    require_causal(name, folder)
    lm, _ = transformers.load_model(AutoModelForCausalLM, name, folder, dtype, quantize=quantize)
    return causal_model(lm, name)


def causal_model(lm: Any, name: str) -> LanguageModel:
    """Causal model ``lm`` of Transformers, loaded from ``name``."""
    config = text_config(lm)
    candidates = [lm.base_model, lm.get_decoder(), getattr(lm, "model", lm)]
    if config is not lm.config:  # a model with encoders beside its language model
        candidates = candidates[1:]
    stack = next((module for module in candidates if module is not None and module is not lm), lm)
    model = LanguageModel(lm, name, stack, causal_sizes(config))
    model.whole_head = whole_head(lm, stack)
    reaches = reaches_of(config)
    model.reaches = reaches if reaches.limited else None
    if lm.config.model_type == "gpt_neo":
        gpt_neo.hook_masks(lm)
        model.join_masks = gpt_neo.join_masks
    return model


def copy_head(head: nn.Linear) -> nn.Linear:
    """Trainable copy of an output matrix, in float32, not tied to the model's embeddings."""
    copy = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, device=head.weight.device)
    copy.load_state_dict({name: value.float() for name, value in head.state_dict().items()})
    return copy
