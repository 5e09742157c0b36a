"""Decoder over any causal language model of Hugging Face Transformers."""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedTokenizerBase

from mmprefix.decoders.base import TextLoss
from mmprefix.decoders.chat import ChatCodec, begin_ids, chat_turns, end_ids
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.language_model import LanguageModel, Tuning, copy_head, load_causal, locate
from mmprefix.decoders.text_codec import TextCodec
from mmprefix.errors import InputError
from mmprefix.kv_cache.state import State
from mmprefix.types import MixedPrefix, PlainPrefix, Prefix, to_list
from mmprefix.weights.transformers import load_tokenizer


class CausalDecoder(ComposedDecoder):
    """Any Hugging Face causal language model with a ``DynamicCache``: GPT-2, OPT, LLaMA, Qwen and others.

    On a CPU a frozen float32 model of up to 1 GiB is copied when it is first used, into a layout that multiplies the
    few rows of a search faster (``mmprefix.fast.small_batch_linear``).

    Args:
        model: a folder, ``mmprefix:NAME``, ``models:NAME`` or a hub name; a .gguf file, or a folder with one (extra
            ``gguf``).
        revision: the hub's branch, tag or commit.
        stop: a text that ends a caption and is kept in it, such as "."; without one, captions are trained to end, and
            end, with the model's end-of-text token. Every end token of the model's generation_config.json, and the
            one that ends a turn of its chat template, ends a generated text.
        begin: what stands for an empty prompt where no embedding precedes it: a text such as ``<|endoftext|>``, "" for
            nothing, None by the model's family: BOS (LLaMA), else end-of-text (GPT-2); the token between documents
            for a chat model whose BOS marks the turns of its chat template (SmolLM2's ``<|im_start|>``).
        chat: True puts prefix, prompt and question into the user's turn of the model's chat template, and a caption or
            answer into the assistant's, ended by the turn's end token. Before the prefix stands what the template
            writes before the user's message.
        frozen: False trains the language model too (not in float16); it is then saved with the trained parts.
        dtype: dtype of the weights; "auto": that of most weights in the files, float32 for quantised ones.
        quantize: keep the matrices of the frozen model in 8 bits (int8, by torchao) or 4 (nf4, by bitsandbytes, on a
            CUDA GPU); the rest is of ``dtype``. Extra ``quantized``.
        train_head: train a separate output head, initialized from the model's own.
        noisy: keep the dropout of a frozen model active in training.
        lora_rank: a rank above 0 trains LoRA (``mmprefix.decoders.lora``) beside the prefix.
        lora_alpha: scale of LoRA's part, divided by its rank.
        lora_targets: endings of the names of the layers that get LoRA; None: PEFT's default layers for the model.
        use_dora: train the lengths of their columns beside LoRA (DoRA).
        dropout: dropout of a trained or noisy model; None: that of its configuration.
    """

    def __init__(  # noqa: PLR0913 (options of a recipe)
        self,
        model: str,
        revision: str | None = None,
        *,
        stop: str | None = None,
        begin: str | None = None,
        chat: bool = False,
        frozen: bool = True,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
        quantize: Literal["int8", "nf4"] | None = None,
        train_head: bool = False,
        noisy: bool = False,
        lora_rank: int = 0,
        lora_alpha: float = 32.0,
        lora_targets: list[str] | None = None,
        use_dora: bool = False,
        dropout: float | None = None,
    ) -> None:
        if quantize is not None and (lora_rank or not frozen):
            wrong = "lora_rank" if lora_rank else "frozen: false"
            raise InputError(
                f"decoder {model!r}: {wrong} trains what quantize {quantize} rounds; leave out one of the two"
            )
        folder, identity = locate(model, revision)
        language_model = load_causal(model, folder, dtype, quantize)
        codec = _codec(load_tokenizer(language_model.lm, model, folder), language_model, stop, begin=begin, chat=chat)
        tuning = Tuning(frozen, noisy, dropout, lora_rank, lora_alpha, lora_targets, use_dora)
        super().__init__(language_model, codec, identity, tuning)
        if train_head:
            if language_model.whole_head is not None:
                raise InputError(
                    f"decoder {model!r}: train_head copies an output matrix, and this model's logits are more than its "
                    "product; leave train_head out"
                )
            self.own_head = copy_head(language_model.head)

    def prefill_plain(self, prefix: PlainPrefix, empty: State) -> State:
        """Prefill the cache: a deep prefix, what a chat template writes before the user's message, then embeddings."""
        opening = [*self.codec.opening_ids]
        if not opening:
            return super().prefill_plain(prefix, empty)
        if isinstance(prefix, MixedPrefix):
            deep, soft = prefix.deep, prefix.soft
        elif isinstance(prefix, Prefix):
            deep, soft = Prefix.empty(len(prefix.mask), self.width, self.language_model.device), prefix
        else:
            deep, soft = prefix, None
        count = len((deep if soft is None else soft).mask)
        state = self.append_ids(super().prefill_plain(deep, empty), [opening] * count)
        return state if soft is None else super().prefill_plain(soft, state)

    def append_questions(self, state: State, prompts: list[str], questions: list[str]) -> State:
        """Append each input's question. Raises InputError if nothing precedes a text then, as with ``begin`` ""."""
        state = super().append_questions(state, prompts, questions)
        self._require_start(state, [True] * len(prompts))
        return state

    def token_loss(
        self,
        state: State,
        ids: list[list[list[int]]],
        question_lengths: list[list[int]] | None = None,
        *,
        smoothing: float = 0.0,
    ) -> TextLoss:
        """Loss of targets as token ids. Raises InputError for a target that nothing precedes."""
        self._require_start(state, [not (own and all(own)) for own in question_lengths or [[] for _ in ids]])
        return super().token_loss(state, ids, question_lengths, smoothing=smoothing)

    def _require_start(self, state: State, rows: list[bool]) -> None:
        """Raise InputError if no token or embedding was run for one of the ``rows`` (B, True where it has to be)."""
        if self.codec.begin or self.codec.opening_ids or not any(rows):
            return  # an empty prompt was replaced by ``begin``
        ran = [False] * len(rows) if state.last_hidden is None else to_list(state.last_hidden.any(1))
        if any(row and not own for row, own in zip(rows, ran, strict=True)):
            raise InputError(
                f"decoder {self.language_model.name!r}: nothing stands before a text, for there is no begin token; "
                "give a prompt, or a text as begin"
            )


def _codec(
    tokenizer: PreTrainedTokenizerBase, model: LanguageModel, stop: str | None, *, begin: str | None, chat: bool
) -> TextCodec:
    """Codec of plain texts or of a chat. Raises InputError for options that contradict each other."""
    turns = chat_turns(tokenizer)
    ends = end_ids(tokenizer, getattr(model.lm, "generation_config", None), turns)
    if chat:
        if begin is not None:
            raise InputError("begin: with chat: true the template says how a text begins; leave out one of the two")
        return ChatCodec(tokenizer, model.name, stop, ends=ends)
    codec = TextCodec(tokenizer, model.name, stop, ends=ends)
    own, codec.begin = codec.begin, begin_ids(codec, begin, turns)
    if begin is None and codec.begin != own:
        codec.ends = (*ends, *codec.begin)  # the token between documents
    return codec
