"""What well-known models of the hub are made of, so that their sizes can be told without asking the hub.

Only a dry run reads this: it prints how many parameters a recipe has and trains, and needs neither weights nor words.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

_GPT2 = {"gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-large": (36, 1280, 20), "gpt2-xl": (48, 1600, 25)}

_PLACES: list[tempfile.TemporaryDirectory[str]] = []


@cache
def outline(name: str) -> Path | None:
    """A folder with the configuration of the hub's model ``name``, and a tokenizer of one word; None if it is unknown.

    Known are the four sizes of GPT-2 (layers, width, heads: https://github.com/openai/gpt-2).
    """
    size = _GPT2.get(name.removeprefix("openai-community/"))
    if size is None:
        return None
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, PreTrainedTokenizerFast

    place = tempfile.TemporaryDirectory(prefix="outline.")
    _PLACES.append(place)  # removed when the program ends
    folder = Path(place.name)
    layers, width, heads = size
    GPT2Config(n_layer=layers, n_embd=width, n_head=heads).save_pretrained(folder)
    end = "<|endoftext|>"
    core = Tokenizer(models.WordLevel({end: 0, ".": 1}, unk_token=end))
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end, bos_token=end).save_pretrained(folder)
    return folder
