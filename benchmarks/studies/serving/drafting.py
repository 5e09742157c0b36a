"""Drafting with mask tokens (BiTA) on a real decoder: equal texts, tokens a pass, time against greedy search.

    python -m benchmarks.studies.serving.drafting
    python -m benchmarks.studies.serving.drafting --model models:smollm2-135m-instruct --text docs/architecture.md

The drafter learns on what the decoder writes after ``--train`` prompts and is measured on ``--test`` others: notes of
scenes for the embedded decoder, or lines of the file ``--text`` cut to their first four words. Passes count that of the
prompt.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.lib.report import benchmark_parser, markdown_table, publish, versions
from mmprefix.decoders import CausalDecoder
from mmprefix.generation.drafting import Drafter
from mmprefix.generation.options import GenerateOptions
from mmprefix.training.methods.bita import greedy_texts, train_drafter
from mmprefix.world.manners import rows


def read_prompts(file: str, count: int) -> list[str]:
    """Notes of scenes for the file "world"; else the first four words (letters alone) of lines, each beginning once."""
    if file == "world":
        return [f" {row['context']}\n" for row in rows("train", count)]
    lines = (re.findall("[A-Za-z]+", line) for line in Path(file).read_text(encoding="utf-8").splitlines())
    return list(dict.fromkeys(" ".join(words[:4]) for words in lines if len(words) >= 4))[:count]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and print its table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", default="mmprefix:world/frozen/decoder")
    parser.add_argument("--text", default="world")
    for name, value in (("train", 100), ("test", 50), ("steps", 300), ("masks", 3), ("length", 16), ("tokens", 32)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options: argparse.Namespace = parser.parse_args(arguments)
    decoder, search = CausalDecoder(options.model).eval(), GenerateOptions(max_new_tokens=options.tokens)
    prompts = read_prompts(options.text, options.train + options.test)
    torch.manual_seed(0)
    sizes = decoder.width, decoder.layers, decoder.heads, decoder.head_width
    drafter = Drafter(*sizes, masks=options.masks, length=options.length)
    began = time.process_time()
    texts = greedy_texts(decoder, prompts[options.test :], search)
    losses = train_drafter(drafter, decoder, texts, steps=options.steps)
    trained = time.process_time() - began
    test = greedy_texts(decoder, prompts[: options.test], search)
    seconds = {"greedy": 0.0, "drafting": 0.0}
    equal = passes = 0
    for state, ids in test:
        began = time.process_time()
        decoder.search_tokens(state, search, decoder.stop_ids())
        middle = time.process_time()
        written = drafter.write(decoder, state, search)
        seconds["greedy"] += middle - began
        seconds["drafting"] += time.process_time() - middle
        equal, passes = equal + (written.ids == ids), passes + written.passes
    tokens = sum(len(ids) for _, ids in test)
    figures = {
        "texts": len(test), "equal": equal, "tokens": tokens, "passes": passes, "tokens a pass": tokens / passes,
        "greedy, s": seconds["greedy"], "drafting, s": seconds["drafting"],
        "times faster": seconds["greedy"] / seconds["drafting"], "training, s": trained,
        "first loss": sum(losses[:10]) / len(losses[:10]), "last loss": sum(losses[-10:]) / len(losses[-10:]),
    }  # fmt: skip
    text = markdown_table(["", "figure"], [[name, f"{value:.2f}"] for name, value in figures.items()])
    publish({"versions": versions(), "options": vars(options), "figures": figures}, text, options.json)


if __name__ == "__main__":
    main()
