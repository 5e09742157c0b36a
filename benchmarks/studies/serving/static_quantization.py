"""Activations in few bits with one fixed scale a matrix: perplexity without and with a prefix of outlier tokens.

    python -m benchmarks.studies.serving.static_quantization --model models:smollm2-135m-instruct

Half of the chunks of ``--text`` finds the tokens and the scales, the other half is measured. Quantisation is simulated:
what enters a matrix of a layer is rounded; weights, and keys and values, are not.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from benchmarks.lib.report import benchmark_parser, markdown_table, options_of, publish, versions
from mmprefix.decoders import CausalDecoder
from mmprefix.distillation.outlier_prefix import nll, outlier_ids, outlier_prefix
from mmprefix.distillation.static_activations import activation_scales, static_activations


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and print its table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", default="models:smollm2-135m-instruct")
    parser.add_argument("--text", default="docs/architecture.md")
    parser.add_argument("--chunks", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--eta", type=float, default=64.0)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4])
    options: argparse.Namespace = parser.parse_args(arguments)
    decoder = CausalDecoder(options.model).eval()
    ids = decoder.codec.marked_ids(Path(options.text).read_text(encoding="utf-8"))
    chunks = [ids[n * options.tokens :][: options.tokens] for n in range(options.chunks)]
    calibration, test = chunks[::2], chunks[1::2]
    prefix = outlier_prefix(decoder, calibration, options.eta)
    tokens = [decoder.codec.tokenizer.decode([token]) for token in outlier_ids(decoder, calibration, options.eta)]
    rows: list[dict[str, float | str]] = []
    for name, used in (("no prefix", None), (f"prefix {tokens}", prefix)):
        scales = activation_scales(decoder, used, calibration)
        row: dict[str, float | str] = {"with": name, "largest activation": max(scales.values())}
        for bits in (0, *options.bits):
            with static_activations(decoder, scales, bits) if bits else nullcontext():
                row[f"{bits} bits" if bits else "not rounded"] = math.exp(
                    sum(nll(decoder, used, chunk) for chunk in test) / len(test)
                )
        rows.append(row)
    cells = [[str(row["with"]), *(f"{value:.2f}" for value in list(row.values())[1:])] for row in rows]
    text = markdown_table(["perplexity", *list(rows[0])[1:]], cells)
    publish({"versions": versions(), "options": options_of(options), "rows": rows}, text, options.json)


if __name__ == "__main__":
    main()
