"""A GPT-2 of any size with random weights, saved to a folder and loaded like any other decoder.

The cost of a step depends on sizes, not on the values of weights, so nothing has to be downloaded. Every token is
a word of its own ("w17"), so that equal texts mean equal token ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

END = "<|endoftext|>"


@dataclass(frozen=True)
class Gpt2Size:
    """Layers L, width E (64 a head, as in GPT-2) and vocabulary V; by default GPT-2 small's, 124 M parameters."""

    layers: int = 12
    width: int = 768
    vocabulary: int = 50257

    @property
    def heads(self) -> int:
        """Attention heads."""
        return max(1, self.width // 64)


def save_gpt2(folder: Path, size: Gpt2Size, seed: int = 0) -> str:
    """Write model and tokenizer into ``folder``, and return it; the last id of the vocabulary is the end of text."""
    disable_progress_bar()
    end = size.vocabulary - 1
    words = {f"w{i}": i for i in range(end)}
    core = Tokenizer(models.WordLevel({**words, END: end}, unk_token=END))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, bos_token=END).save_pretrained(folder)
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=size.vocabulary,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        bos_token_id=end,
        eos_token_id=end,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)
