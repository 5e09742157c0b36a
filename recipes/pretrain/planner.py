"""Train the frozen decoder of the embedded world's clips: a small LLaMA that has read plans, answers and captions.

The model is a `LlamaForCausalLM` (https://arxiv.org/abs/2302.13971) with a byte-level BPE. It reads key words of a clip
and an instruction with its plan, a question with its answer, or what to describe with its description; clips are those
of the training split (`mmprefix.world.clips`), and it has seen no picture. What follows the instruction counts in full,
key words and instruction a tenth, so that it learns to write from what stands before; that is what a prefix will ask
of it. One text of six has no key words. Its own states of an instruction are what the Embodied-former reads
(`mmprefix.encoders.text.Text`), for which it gets the modules.json of a sentence encoder.

    python recipes/pretrain/planner.py --folder mmprefix/world/frozen/planner    # three minutes on one core

The shipped model was made by this program in two runs, ``--clips 8000 --steps 500``, then ``--start`` its folder with
``--clips 8000 --steps 400 --lr 5e-3 --seed 12`` (88 and 71 seconds of a core): from key words it writes the 300 plans
of 100 test clips right, 168 of them after the first run. With "top left" as two tokens, not one, it named every second
"left" and "right" wrongly after 400 steps, and wrote a quarter of the plans.
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
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mmprefix.recipes.pretrain.decoder_tokens import end_id, train_tokenizer
from mmprefix.recipes.pretrain.loop import JoinedOptimizer, LogLines, Losses, every_hundred, train
from mmprefix.world.clip_data import rows_of
from mmprefix.world.clip_texts import notes
from mmprefix.world.clips import FRAMES, sample_clips
from mmprefix.world.scenes import PLACES

WIDTH, LAYERS, HEADS, VOCABULARY, POSITIONS = 96, 3, 4, 448, 256
BEFORE = 0.1  # weight in the loss of what stands before
log = logging.getLogger("pretrain_planner")


def texts(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Contexts and continuations of texts of ``count`` clips of the training split."""
    pick = random.Random(seed)
    for clip in islice(sample_clips(seed, "train"), count):
        frames = [str(number) for number in range(FRAMES)]
        for task, row in rows_of(clip, frames):
            if task == "note":
                continue  # key words alone, which stand before the other texts
            moment = int(row["video"][0]) // 2 if task == "describe" else None
            before = f"{notes(clip, moment)}\n" if pick.random() > 1 / 6 else ""
            yield before + row["prompt"], f" {row['captions'][0]}"


def train_planner(
    folder: Path, *, clips: int, steps: int, rows: int, lr: float, seed: int, start: Path | None = None
) -> dict[str, float]:
    """Train on the texts of ``clips`` and write tokenizer and model (float16) to ``folder``; returns the last loss.

    ``start`` is the folder of a model to go on with.
    """
    began, pairs = time.monotonic(), list(texts(clips, seed))
    torch.manual_seed(seed)
    tokenizer, model = _new(pairs) if start is None else _load(start)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        _optimizer(model, lr), lambda step: min((step + 1) / 40, 0.51 + 0.49 * math.cos(math.pi * step / steps))
    )
    picks, losses = random.Random(seed), list[float]()

    def loss(batch: list[tuple[str, str]]) -> Losses:
        ids, weight = _batch(batch, tokenizer)
        logits = model(input_ids=ids[:, :-1]).logits.flatten(0, 1)
        each = F.cross_entropy(logits.float(), ids[:, 1:].flatten(), reduction="none")
        weight = weight[:, 1:].flatten()
        losses.append(each[weight == 1].mean().item())
        return {"loss": (each * weight).sum() / weight.sum()}

    batches = iter(lambda: picks.choices(pairs, k=rows), None)
    lines = LogLines(log, every_hundred(steps))
    train(model, loss, batches, steps=steps, schedule=schedule, max_norm=1.0, callbacks=[lines])
    _save(model, tokenizer, folder)
    size = sum(value.numel() for value in model.parameters())
    last = losses[-50:]
    return {"loss": sum(last) / len(last), "parameters": size, "seconds": round(time.monotonic() - began)}


def _batch(pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Token ids (B N) of texts, ended and padded by the end token, and their weights in the loss, 0 for padding."""
    end, ids, weights = end_id(tokenizer), list[Tensor](), list[Tensor]()
    for before, after in pairs:
        first, rest = (tokenizer(text)["input_ids"] for text in (before, after))
        ids.append(torch.tensor([*first, *rest, end]))
        weights.append(torch.tensor([BEFORE] * len(first) + [1.0] * (len(rest) + 1)))
    return pad_sequence(ids, batch_first=True, padding_value=end), pad_sequence(weights, batch_first=True)


def _new(pairs: Sequence[tuple[str, str]]) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    """Tokenizer of these texts, and a model of random weights."""
    tokenizer = train_tokenizer(("".join(pair) for pair in pairs[:20_000]), VOCABULARY)
    # A place is one token: where "top left" is two, the second must be looked up by the first, of which there are many.
    places: Any = [AddedToken(f" {place}", normalized=False) for place in PLACES]  # the stubs know another AddedToken
    tokenizer.add_tokens(places)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = POSITIONS
    return tokenizer, LlamaForCausalLM(_config(tokenizer))


def _load(folder: Path) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer, LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _optimizer(model: LlamaForCausalLM, lr: float) -> torch.optim.Optimizer:
    """Muon (https://kellerjordan.github.io/posts/muon/) for the layers' matrices, AdamW for norms and token table."""
    matrices = [value for name, value in model.named_parameters() if value.dim() == 2 and "embed" not in name]
    chosen = {id(value) for value in matrices}
    others = [value for value in model.parameters() if id(value) not in chosen]
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return JoinedOptimizer([torch.optim.AdamW(others, lr=lr, weight_decay=0.05, betas=(0.9, 0.95)), muon])


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
    parser.add_argument("--clips", type=int, default=12_000, help="clips whose texts it reads, six of each")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=32, help="texts a step")
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--start", type=Path, help="folder of a model to go on with")
    args = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(json.dumps(train_planner(args.pop("folder"), **args)))


if __name__ == "__main__":
    main()
