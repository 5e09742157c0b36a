"""Any causal language model of Hugging Face as a decoder."""

from __future__ import annotations

from typing import Literal

from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.language_model import Tuning, copy_head, load_causal, locate
from mmprefix.decoders.text_codec import TextCodec
from mmprefix.weights.transformers import load_tokenizer


class CausalDecoder(ComposedDecoder):
    """Any Hugging Face causal language model with a ``DynamicCache``: GPT-2, OPT, LLaMA, Qwen ...

    On a CPU a frozen float32 model of up to 1 GiB is copied when it is first used, into a form that multiplies the few
    rows of a search faster (``mmprefix.fast.small_batch_linear``).

    Args:
        model, revision: a folder, ``mmprefix:NAME`` or a hub name, with its revision.
        stop: a text that ends a caption (kept in it), such as "."; without one, captions are trained to end, and end,
            with the model's end-of-text token.
        frozen: False trains the language model too; it is then part of what is saved.
        dtype: the type of the weights.
        train_head: train an output head of its own, which starts as the model's.
        noisy: leave the dropout of a frozen model on in training.
        lora_rank, lora_alpha, lora_targets: a rank above 0 trains low-rank additions (see ``mmprefix.decoders.lora``)
            to the layers whose names end in one of ``lora_targets`` (None: those that are usual for the model) beside
            the prefix.
        dropout: that of a model which is trained or noisy; None: its configuration's.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
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
            self.own_head = copy_head(language_model.head)
