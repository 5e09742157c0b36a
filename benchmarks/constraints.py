"""Time of texts that hold and avoid phrases against plain ones, and of pieces against a text: interleaved medians.

python -m benchmarks.constraints [--rounds 5] [--tokens 20] [--batches 1 8]

SmolLM2-135M-instruct behind random prefixes of 10 and 20 embeddings. Both sides search with the same number of beams.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.generation.options import GenerateOptions
from mmprefix.types import Prefix, all_real

PHRASES = {"must_hold": ("dog",), "avoid": ("the", "and")}


def ratio(plain: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median seconds of both, in turns, and the median of their ratios."""
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        marks = [time.perf_counter()]
        for run in (plain, other):
            run()
            marks.append(time.perf_counter())
        times.append((marks[1] - marks[0], marks[2] - marks[1]))
    return median(a for a, _ in times), median(b for _, b in times), median(b / a for a, b in times)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models:smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4, 5])
    args = parser.parse_args()
    torch.manual_seed(0)
    decoder = CausalDecoder(args.model)
    start = time.perf_counter()
    count = len(decoder.codec.token_texts.texts)
    print(f"texts of {count:,} tokens, once a decoder: {time.perf_counter() - start:.2f} s")
    for length, batch in [(10, args.batches[0]), *((20, batch) for batch in args.batches)]:
        embeds = torch.randn(batch, length, decoder.width) * 0.1
        state = decoder.prefill(Prefix(embeds, all_real(embeds)))
        for beams in args.beams:
            options = {"max_new_tokens": args.tokens, "min_new_tokens": args.tokens, "num_beams": beams}
            plain = GenerateOptions(**options)
            held = GenerateOptions(**options, **(PHRASES if beams > 1 else {"avoid": PHRASES["avoid"]}))
            decoder.generate_from(state, held)  # tables are made, memory is touched
            report = f"prefix {length}, batch {batch}, beams {beams}: "
            first, second, share = ratio(
                lambda: decoder.generate_from(state, plain),  # noqa: B023
                lambda: decoder.generate_from(state, held),  # noqa: B023
                args.rounds,
            )
            what = "must_hold and avoid" if beams > 1 else "avoid"
            print(f"{report}plain {first:.2f} s, {what} {second:.2f} s, ratio {share:.2f}", flush=True)
            if batch == 1:
                first, second, share = ratio(
                    lambda: decoder.generate_from(state, plain),  # noqa: B023
                    lambda: list(decoder.stream_from(state, plain)),  # noqa: B023
                    args.rounds,
                )
                print(f"{report}whole {first:.2f} s, pieces {second:.2f} s, ratio {share:.2f}", flush=True)


if __name__ == "__main__":
    main()
