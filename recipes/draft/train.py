"""Train prompt and mask tokens with which a frozen decoder drafts: the same texts as by greedy search, in fewer passes.

BiTA: Bi-Directional Tuning for Lossless Acceleration in Large Language Models (Lin et al.),
https://arxiv.org/abs/2401.12522. The drafter learns on what the decoder itself writes behind the prompts; published are
3 or 4 masks, 16 positions of the prompt, AdamW at 3e-2 along a cosine. Here drafts are one chain, no tree.

    python -m mmprefix.recipes.draft.train --out runs/parts/drafter
    python -m mmprefix.recipes.draft.train --decoder models:smollm2-135m-instruct --prompts prompts.txt --out runs/d

Prompts are the lines of a file; without one, notes of scenes for the embedded decoder. The last ``held`` of them are
written by both ways and compared, with the drafter as it was saved and loaded.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmprefix.decoders import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.generation.drafting import Drafter
from mmprefix.generation.options import GenerateOptions
from mmprefix.recipes.pretrain.plan import read_plan, run
from mmprefix.training.methods.bita import greedy_texts, train_drafter
from mmprefix.training.methods.drafters import load_drafter, save_drafter
from mmprefix.world.manners import rows

log = logging.getLogger("draft")


@dataclass(frozen=True)
class DraftPlan:
    """Settings of a training: sizes of the drafter, prompts and their texts' length, steps."""

    masks: int = 3
    length: int = 16
    prompts: int = 120
    held: int = 20
    new_tokens: int = 32
    steps: int = 300
    batch_size: int = 4
    groups: int = 16
    lr: float = 3e-2
    seed: int = 0


def read_prompts(file: Path | None, plan: DraftPlan) -> list[str]:
    """Prompts of the plan; InputError for a file with too few lines."""
    if file is None:
        return [f" {row['context']}\n" for row in rows("train", plan.prompts)]
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()][: plan.prompts]
    if len(lines) <= plan.held:
        raise InputError(f"--prompts {file}: has {len(lines)} lines, of which {plan.held} are held out; give more")
    return lines


def measure(
    drafter: Drafter, decoder: CausalDecoder, prompts: Sequence[str], options: GenerateOptions
) -> dict[str, int]:
    """Texts behind ``prompts``, how many of them equal those of greedy search, their tokens, and passes by drafts."""
    figures = {"texts": 0, "equal": 0, "tokens": 0, "passes": 0}
    for state, ids in greedy_texts(decoder, prompts, options):
        written = drafter.write(decoder, state, options)
        figures["texts"] += 1
        figures["equal"] += written.ids == ids
        figures["tokens"] += len(ids)
        figures["passes"] += written.passes
    return figures


def main(words: Sequence[str] | None = None) -> dict[str, int]:
    """Train as the command line asks, write the drafter to ``--out``, and return the figures of held-out prompts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decoder", default="mmprefix:world/frozen/decoder", help="a causal language model")
    parser.add_argument("--prompts", type=Path, help="a file, one prompt a line; default: notes of scenes")
    parser.add_argument("--plan", default="{}", help="settings as JSON, such as '{\"steps\": 400}'")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    plan = read_plan(DraftPlan, options.plan)
    torch.manual_seed(plan.seed)
    decoder, search = CausalDecoder(options.decoder).eval(), GenerateOptions(max_new_tokens=plan.new_tokens)
    prompts = read_prompts(options.prompts, plan)
    sizes = (decoder.width, decoder.layers, decoder.heads, decoder.head_width)
    drafter = Drafter(*sizes, masks=plan.masks, length=plan.length)
    losses = train_drafter(
        drafter, decoder, greedy_texts(decoder, prompts[: -plan.held], search), steps=plan.steps, lr=plan.lr,
        groups=plan.groups, batch=plan.batch_size, seed=plan.seed,
    )  # fmt: skip
    log.info("loss %.3f at first, %.3f at last", losses[0], losses[-1])
    save_drafter(options.out, drafter, decoder)
    figures = measure(load_drafter(options.out, decoder), decoder, prompts[-plan.held :], search)
    log.info("%s", json.dumps(figures))
    return figures


if __name__ == "__main__":
    run(main)
