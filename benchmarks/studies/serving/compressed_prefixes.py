"""A text's keys and values as a prefix, in 8 and 4 bits: bytes, and the likelihood of the text that follows.

    python -m benchmarks.studies.serving.compressed_prefixes --model models:smollm2-135m-instruct --text README.md

The prefix is the cache of the first ``--length`` tokens of the file; the negative log-likelihood is a token of the next
``--tokens``. "no prefix" reads them without what stands before. Bytes are those of the tensors of the prefix.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn

from benchmarks.lib.report import benchmark_parser, markdown_table, options_of, publish, versions
from mmprefix.decoders import CausalDecoder
from mmprefix.kv_cache.state import State
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.compressed import CompressedTable, Scales
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.types import AnyPrefix, DeepPrefix, Features, Prefix

SCALES: tuple[Scales, ...] = ("head", "channel", "mixed")


def tables(decoder: CausalDecoder, prefix: DeepPrefix) -> dict[str, Mapper]:
    """Ways to keep ``prefix`` by name."""
    sizes = Sizes(0, 0, decoder.width, decoder.layers, decoder.heads, decoder.head_width)
    length = prefix.mask.shape[1]
    made: dict[str, Mapper] = {"float32": DeepTable(sizes, length=length)}
    made["float16"] = DeepTable(sizes, length=length).half()
    for bits in (8, 4):
        for scales in SCALES:
            for exact in (0, 1):
                table = CompressedTable(sizes, length=length, bits=bits, scales=scales, exact=exact)
                made[f"int{bits}, scales by {scales}" + (", first position exact" if exact else "")] = table
    for table in made.values():
        cast(DeepTable | CompressedTable, table).fill(prefix)
    return made


def measure(decoder: CausalDecoder, prefix: AnyPrefix, text: list[int]) -> float:
    """Negative log-likelihood a token of ``text`` after ``prefix``; its first token is read, not scored."""
    state: State = decoder.append_ids(decoder.prefill(prefix), [text[:1]])
    with torch.no_grad():
        return float(decoder.token_loss(state, [[text[1:]]]).mean())


def size(mapper: nn.Module) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in mapper.state_dict().values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study and print its table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--model", default="models:smollm2-135m-instruct")
    parser.add_argument("--text", default="README.md")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512)
    options: argparse.Namespace = parser.parse_args(arguments)
    decoder = CausalDecoder(options.model).eval()
    ids = decoder.codec.marked_ids(Path(options.text).read_text(encoding="utf-8"))[: options.length + options.tokens]
    prefix = decoder.language_model.key_values(ids[: options.length])
    after, rows = ids[options.length - 1 :], list[dict[str, float | str]]()
    rows.append({"kept as": "no prefix", "bytes": 0, "nll": measure(decoder, Prefix.empty(1, decoder.width), after)})
    for name, table in tables(decoder, prefix).items():
        made = cast(AnyPrefix, table(Features.empty(1)))
        rows.append({"kept as": name, "bytes": size(table), "nll": measure(decoder, made, after)})
    whole = next(float(row["nll"]) for row in rows if row["kept as"] == "float32")
    cells = [[str(row["kept as"]), f"{row['bytes']:,}", f"{row['nll']:.4f}", f"{float(row['nll']) - whole:+.4f}"]
             for row in rows]  # fmt: skip
    text = markdown_table([f"{options.length} positions", "bytes", "nats a token", "loss"], cells)
    publish({"versions": versions(), "options": options_of(options), "rows": rows}, text, options.json)


if __name__ == "__main__":
    main()
