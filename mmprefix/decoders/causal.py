"""Decoder over any causal language model of Hugging Face Transformers."""

from __future__ import annotations

from typing import Literal

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.language_model import Tuning, copy_head, load_causal, locate
from mmprefix.decoders.text_codec import TextCodec
from mmprefix.errors import InputError
from mmprefix.weights.transformers import load_tokenizer


class CausalDecoder(ComposedDecoder):
    """Any Hugging Face causal language model with a ``DynamicCache``: GPT-2, OPT, LLaMA, Qwen and others.

    On a CPU a frozen float32 model of up to 1 GiB is copied when it is first used, into a layout that multiplies the
    few rows of a search faster (``mmprefix.fast.small_batch_linear``).

    Args:
        model: a folder, ``mmprefix:NAME`` or a hub name.
        revision: the hub's branch, tag or commit.
        stop: a text that ends a caption and is kept in it, such as "."; without one, captions are trained to end, and
            end, with the model's end-of-text token.
        frozen: False trains the language model too; it is then saved with the trained parts.
        dtype: dtype of the weights.
        train_head: train a separate output head, initialized from the model's own.
        noisy: keep the dropout of a frozen model active in training.
        lora_rank: a rank above 0 trains LoRA (``mmprefix.decoders.lora``) beside the prefix.
        lora_alpha: scale of LoRA's part, divided by its rank.
        lora_targets: endings of the names of the layers that get LoRA; None: PEFT's default layers for the model.
        dropout: dropout of a trained or noisy model; None: that of its configuration.
    """

    def __init__(  # noqa: PLR0913 (options of a recipe)
        self,
        model: str,
        revision: str | None = None,
        *,
        stop: str | None = None,
        frozen: bool = True,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        train_head: bool = False,
        noisy: bool = False,
        lora_rank: int = 0,
        lora_alpha: float = 32.0,
        lora_targets: list[str] | None = None,
        dropout: float | None = None,
    ) -> None:
        folder, identity = locate(model, revision)
        language_model = load_causal(model, folder, dtype)
        codec = TextCodec(load_tokenizer(language_model.lm, model, folder), model, stop)
        tuning = Tuning(frozen, noisy, dropout, lora_rank, lora_alpha, lora_targets)
        super().__init__(language_model, codec, identity, tuning)
        if train_head:
            if language_model.whole_head is not None:
                raise InputError(
                    f"decoder {model!r}: train_head copies an output matrix, and this model's logits are more than its "
                    "product; leave train_head out"
                )
            self.own_head = copy_head(language_model.head)
