"""Cost of writing with parts beside the cache, against a plain prefix of as many positions and against none.

    python -m benchmarks.serving.side_terms --model models:smollm2-135m-instruct
    python -m benchmarks.serving.side_terms --batches 1 --new-tokens 10 --repeat 3

Each method's numbers are random, with gates that are open. Every variant writes the same number of tokens by greedy
search after the same prompt, on one thread; rounds are interleaved, and a figure is the median of their CPU time. "x"
is that median over the one of keys and values in the cache (P-tuning v2).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.lib.random_gpt2 import Gpt2Size, save_gpt2
from benchmarks.lib.report import benchmark_parser, join_versions, markdown_table, options_of, publish, versions
from benchmarks.lib.timing import interleave
from mmprefix.decoders import CausalDecoder
from mmprefix.generation.options import GenerateOptions
from mmprefix.mappers.aligner import Aligner
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.dept import DecomposedPrompt
from mmprefix.mappers.learned import Learned
from mmprefix.mappers.llama_adapter import LlamaAdapter
from mmprefix.mappers.ntk import NTKAttention
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.prompt_gating import GatedPrompt
from mmprefix.mappers.unipelt import UniPELTPrefix
from mmprefix.types import AnyPrefix, Features, Prefix

NONE, PLAIN = "no prefix", "keys and values (P-tuning v2)"


def builders(length: int) -> dict[str, Callable[[Sizes], Mapper]]:
    """Mappers by name; ``length`` positions or vectors where the method has any."""
    return {
        "embeddings (prompt tuning)": partial(Learned, length=length),
        PLAIN: partial(DeepTable, length=length),
        "LLaMA-Adapter": partial(LlamaAdapter, length=length, first=0),
        "Aligner": partial(Aligner, length=length, first=0),
        "NTK attention": partial(NTKAttention, std=0.02),
        "UniPELT": partial(UniPELTPrefix, length=length),
        "DePT": partial(DecomposedPrompt, length=length),
        "prompt gating": partial(GatedPrompt, length=length),
    }


@torch.no_grad()
def prefixes(decoder: CausalDecoder, length: int, batch: int) -> dict[str, AnyPrefix]:
    """Prefixes of ``batch`` inputs by name, every number moved a little so that none is zero."""
    sizes = Sizes(0, 0, decoder.width, decoder.layers, decoder.heads, decoder.head_width, 0, 0, decoder.query_heads)
    made: dict[str, AnyPrefix] = {NONE: Prefix.empty(batch, decoder.width)}
    for name, build in builders(length).items():
        torch.manual_seed(0)
        mapper = build(sizes).eval()
        for parameter in mapper.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        made[name] = mapper(Features.empty(batch))
    return made


def measure(decoder: CausalDecoder, options: argparse.Namespace, batch: int) -> dict[str, Any]:
    """Times of all variants for one batch size, by name."""
    search = GenerateOptions(max_new_tokens=options.new_tokens, min_new_tokens=options.new_tokens)

    def write(prefix: AnyPrefix) -> None:
        with torch.inference_mode():
            decoder.generate(decoder.prefill(prefix), [options.prompt] * batch, search)

    sides = {name: partial(write, prefix) for name, prefix in prefixes(decoder, options.length, batch).items()}
    for side in sides.values():  # warm-up
        side()
    times = interleave(sides, options.repeat)
    return {"batch": batch, **{name: times[name].as_dict() for name in sides}}


def report(results: dict[str, Any]) -> str:
    """The table: CPU milliseconds a token of each variant and batch size."""
    options, cases = results["options"], results["cases"]
    head = ["prefix"]
    for case in cases:
        head += [f"batch {case['batch']}, CPU ms a step (range)", "x"]
    rows: list[list[str]] = []
    for name in cases[0]:
        if name == "batch":
            continue
        row = [name]
        for case in cases:
            low, middle, high = (1000 * f(case[name]["cpu_s"]) / options["new_tokens"] for f in (min, median, max))
            row += [
                f"{middle:.3g} ({low:.3g} - {high:.3g})",
                f"{case[name]['cpu_median'] / case[PLAIN]['cpu_median']:.2f}",
            ]
        rows.append(row)
    model = options["model"] or "random GPT-2"
    first = f"{model}, length {options['length']}, {options['new_tokens']} tokens; one thread; n = {options['repeat']}"
    return f"{first}; {join_versions(results)}\n\n{markdown_table(head, rows)}"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write the JSON file."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", help="a decoder: a folder or models:NAME; else a random GPT-2")
    parser.add_argument("--layers", type=int, default=Gpt2Size.layers)
    parser.add_argument("--width", type=int, default=Gpt2Size.width)
    parser.add_argument("--vocab", type=int, default=Gpt2Size.vocabulary)
    parser.add_argument("--prompt", default="A")
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or save_gpt2(Path(folder), Gpt2Size(options.layers, options.width, options.vocab))
        decoder = CausalDecoder(str(model)).eval()
        cases = [measure(decoder, options, batch) for batch in options.batches]
    results = {"options": options_of(options), "versions": versions(), "cases": cases}
    publish(results, report(results), options.json)
    return results


if __name__ == "__main__":
    main()
