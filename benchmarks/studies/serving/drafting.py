"""Drafting with mask tokens (BiTA) on a real decoder: equal texts, tokens a pass, time against greedy search.

    python -m benchmarks.studies.serving.drafting
    python -m benchmarks.studies.serving.drafting --model models:smollm2-135m-instruct --text docs/architecture.md

The drafter learns on what the decoder writes after ``--train`` prompts and is measured on ``--test`` others: notes of
scenes for the embedded decoder, or lines of the file ``--text`` cut to their first four words (of a .jsonl file each
row's first caption). Passes count that of the prompt. Each text is written by both ways, one after the other; seconds
are those of the CPU.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.lib.report import benchmark_parser, markdown_table, options_of, publish, versions
from mmprefix.decoders import CausalDecoder
from mmprefix.generation.drafting import Drafter
from mmprefix.generation.options import GenerateOptions
from mmprefix.training.methods.bita import greedy_texts, train_drafter
from mmprefix.world.manners import rows


def read_prompts(file: str, count: int) -> list[str]:
    """Notes of scenes for the file "world"; else the first four words (letters alone) of lines, each beginning once."""
    if file == "world":
        return [f" {row['context']}\n" for row in rows("train", count)]
    text = Path(file).read_text(encoding="utf-8").splitlines()
    if file.endswith(".jsonl"):
        text = [json.loads(line)["captions"][0] for line in text]
    lines = (re.findall("[A-Za-z]+", line) for line in text)
    return list(dict.fromkeys(" ".join(words[:4]) for words in lines if len(words) >= 4))[:count]


def compare(
    decoder: CausalDecoder, drafter: Drafter, prompts: Sequence[str], search: GenerateOptions
) -> dict[str, float]:
    """Write the text behind each prompt by both ways, one after the other → figures of all."""
    greedy, drafting = list[float](), list[float]()
    equal = passes = tokens = 0
    for state, ids in greedy_texts(decoder, prompts, search):
        began = time.process_time()
        decoder.search_tokens(state, search, decoder.stop_ids())
        middle = time.process_time()
        written = drafter.write(decoder, state, search)
        drafting.append(time.process_time() - middle)
        greedy.append(middle - began)
        equal, passes, tokens = equal + (written.ids == ids), passes + written.passes, tokens + len(ids)
    return {
        "texts": len(greedy), "equal": equal, "tokens": tokens, "passes": passes, "tokens a pass": tokens / passes,
        "greedy, s": sum(greedy), "drafting, s": sum(drafting), "times faster": sum(greedy) / sum(drafting),
        "a text's time against greedy, median": median(b / a for a, b in zip(greedy, drafting, strict=True)),
        "greedy, ms a token": 1e3 * sum(greedy) / tokens, "drafting, ms a pass": 1e3 * sum(drafting) / passes,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and print its table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", default="mmprefix:world/frozen/decoder")
    parser.add_argument("--text", default="world")
    numbers = {"train": 100, "test": 50, "steps": 300, "batch": 4, "groups": 16, "masks": 3, "length": 16, "tokens": 32}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=3e-2)
    options: argparse.Namespace = parser.parse_args(arguments)
    decoder, search = CausalDecoder(options.model).eval(), GenerateOptions(max_new_tokens=options.tokens)
    prompts = read_prompts(options.text, options.train + options.test)
    torch.manual_seed(0)
    sizes = decoder.width, decoder.layers, decoder.heads, decoder.head_width
    drafter = Drafter(*sizes, masks=options.masks, length=options.length)
    began = time.process_time()
    texts = greedy_texts(decoder, prompts[options.test :], search)
    losses = train_drafter(
        drafter, decoder, texts, steps=options.steps, lr=options.lr, batch=options.batch, groups=options.groups
    )
    trained = time.process_time() - began
    figures = compare(decoder, drafter, prompts[: options.test], search) | {
        "training, s": trained,
        "first loss": sum(losses[:10]) / len(losses[:10]), "last loss": sum(losses[-10:]) / len(losses[-10:]),
    }  # fmt: skip
    text = markdown_table(["", "figure"], [[name, f"{value:.2f}"] for name, value in figures.items()])
    publish({"versions": versions(), "options": options_of(options), "figures": figures}, text, options.json)


if __name__ == "__main__":
    main()
