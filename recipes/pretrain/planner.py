"""Train the frozen decoder of the embedded world's clips: a small LLaMA that has read plans, answers and captions.

The model is a `LlamaForCausalLM` (https://arxiv.org/abs/2302.13971) with a byte-level BPE, trained by plain language
modelling on instructions with their plans, questions with answers, and captions of clips that are drawn on the way
(`mmprefix.world.clips`; never one of the test split). It has seen no picture. Texts of one clip stand side by side, so
that it learns to use what stands before (decoder.py). Its own states of an instruction are what the Embodied-former
reads (`mmprefix.encoders.text.Text`), for which it gets the modules.json of a sentence encoder.

    python recipes/pretrain/planner.py --folder mmprefix/world/frozen/planner    # four minutes on one core

The shipped model was made by this program with these settings.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mmprefix.recipes.pretrain.decoder_tokens import TokenWindows, end_id, stream, train_tokenizer, weights
from mmprefix.recipes.pretrain.loop import LogLines, every_hundred, train
from mmprefix.world.clip_data import rows_of
from mmprefix.world.clips import FRAMES, sample_clips

WIDTH, LAYERS, HEADS, VOCABULARY, POSITIONS = 96, 3, 4, 384, 256
log = logging.getLogger("pretrain_planner")


def texts(count: int, seed: int) -> Iterator[list[str]]:
    """Texts of ``count`` clips of the training split: instruction, question or description, and what follows it."""
    pick = random.Random(seed)
    for clip in islice(sample_clips(seed, "train"), count):
        rows = [f"{row['prompt']} {target}" for _, row in rows_of(clip, [""] * FRAMES) for target in _texts(row)]
        yield pick.sample(rows, len(rows))


def _texts(row: object) -> list[str]:
    return list(row["captions"]) if isinstance(row, dict) else []


def train_planner(folder: Path, *, clips: int, steps: int, rows: int, lr: float, seed: int) -> dict[str, float]:
    """Train on the texts of ``clips`` and write tokenizer and model (float16) to ``folder``; returns the last loss."""
    began, groups = time.monotonic(), list(texts(clips, seed))
    tokenizer = train_tokenizer((text for group in groups for text in group), VOCABULARY)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = POSITIONS
    ids, starts = stream(groups, tokenizer)
    window = POSITIONS // 2
    windows = TokenWindows(ids, weights(ids, tokenizer, None, 1.0), starts[starts <= len(ids) - window], window)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_config(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 40, 0.51 + 0.49 * math.cos(math.pi * step / steps))
    )
    picks, losses = torch.Generator().manual_seed(seed), list[float]()

    def loss(start: Tensor) -> Tensor:
        batch, _ = windows.at(start)
        logits = model(input_ids=batch[:, :-1]).logits
        value = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        losses.append(value.item())
        return value

    batches = iter(lambda: windows.starts[torch.randint(len(windows.starts), (rows,), generator=picks)], None)
    lines = LogLines(log, every_hundred(steps))
    train(model, loss, batches, steps=steps, schedule=schedule, max_norm=1.0, callbacks=[lines])
    _save(model, tokenizer, folder)
    size = sum(value.numel() for value in model.parameters())
    seconds = round(time.monotonic() - began)
    return {"loss": sum(losses[-50:]) / len(losses[-50:]), "parameters": size, "seconds": seconds}


def _config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=round(WIDTH * 8 / 3),
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=end_id(tokenizer),
        eos_token_id=end_id(tokenizer),
    )


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model, tokenizer, and the description by which it is read as an encoder of texts, too."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.half().save_pretrained(folder)
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    (folder / "modules.json").write_text(json.dumps([module]) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the model and its tokenizer are written")
    parser.add_argument("--clips", type=int, default=12_000, help="clips whose texts it reads")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=16, help=f"windows of {POSITIONS // 2} tokens a step")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=11)
    args = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(json.dumps(train_planner(args.pop("folder"), **args)))


if __name__ == "__main__":
    main()
