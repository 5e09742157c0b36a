"""What writing captions costs, against Hugging Face's ``generate`` on the same model and the same prefixes.

    python -m benchmarks.generate --prefix-length 40 --new-tokens 25 --beams 5 1 --batches 1 8 32 --repeat 3 --naive
    python -m benchmarks.generate --device cuda --dtype bfloat16 --batches 1 8 32 256 --repeat 10

Each side starts from the prefix embeddings and ends with texts, which are compared in the first round. With ``--naive``
one input's beams are also searched as ClipCap's public code does it (https://arxiv.org/abs/2111.09734, written anew):
every step runs the whole text again, without a cache, and makes logits of all positions.

The limit is the larger of two times: the search's products of matrices at the rate of the fastest plain product of the
same run, and the weights read once a step at the rate at which memory is read there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from transformers import GPT2LMHeadModel

from benchmarks.lib.flops import search_operations, weights
from benchmarks.lib.random_gpt2 import Size, save
from benchmarks.lib.timing import Gemm, Read, Times, clock_of, in_turn, table, versions
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.generation.options import GenerateOptions
from mmprefix.types import Prefix

OURS, THEIRS, NAIVE = "mmprefix", "Hugging Face", "naive"


def ours(decoder: CausalDecoder, prefix: Prefix, beams: int, tokens: int) -> list[str]:
    """The best text of each input, by mmprefix."""
    options = GenerateOptions(max_new_tokens=tokens, num_beams=beams)
    with torch.inference_mode():
        found = decoder.generate(decoder.prefill(prefix), [""] * len(prefix.mask), options)
    return [candidates[0].text for candidates in found]


def theirs(lm: Any, decoder: CausalDecoder, prefix: Prefix, beams: int, tokens: int) -> list[str]:
    """The same by the language model's own ``generate``; ``lm`` as its library loads it, ``decoder`` for the words."""
    ids = lm.generate(
        inputs_embeds=prefix.embeds,
        attention_mask=prefix.mask.long(),
        num_beams=beams,
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=decoder.codec.eos,
        pad_token_id=decoder.codec.eos,
    )
    return [text.strip() for text in decoder.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def naive(lm: Any, decoder: CausalDecoder, prefix: Prefix, beams: int, tokens: int) -> list[str]:
    """ClipCap's search for one input: the mean log-probability ranks beams; no text ends early here."""
    with torch.no_grad():
        embeds, device = prefix.embeds.expand(beams, -1, -1), prefix.mask.device
        total = torch.tensor([0.0] + [float("-inf")] * (beams - 1), device=device)
        lines = torch.zeros(beams, 0, dtype=torch.long, device=device)
        for _ in range(tokens):
            found = total[:, None] + lm(inputs_embeds=embeds).logits[:, -1].float().log_softmax(-1)
            total, index = found.flatten().topk(beams)
            parents, chosen = index // found.shape[1], index % found.shape[1]
            lines = torch.cat([lines[parents], chosen[:, None]], dim=1)
            embeds = torch.cat([embeds[parents], lm.transformer.wte(chosen)[:, None]], dim=1)
    return [text.strip() for text in decoder.tokenizer.batch_decode(lines[:1], skip_special_tokens=True)]


def compared(lm: Any, decoder: CausalDecoder, batch: int, beams: int, options: argparse.Namespace) -> dict[str, Any]:
    """Times and texts of both for one batch size and one number of beams."""
    noise = torch.randn(batch, options.prefix_length, decoder.width, generator=torch.Generator().manual_seed(batch))
    noise = noise.to(options.device, getattr(torch, options.dtype))
    prefix = Prefix(noise, torch.ones(noise.shape[:2], dtype=torch.bool, device=options.device))
    texts: dict[str, list[str]] = {}

    def keep(name: str, number: int, found: Any) -> None:
        texts.setdefault(name, found)

    sides = {
        OURS: lambda: ours(decoder, prefix, beams, options.new_tokens),
        THEIRS: lambda: theirs(lm, decoder, prefix, beams, options.new_tokens),
    }
    if options.naive and batch == 1 and beams > 1:
        sides[NAIVE] = lambda: naive(lm, decoder, prefix, beams, options.new_tokens)
    times: dict[str, Times] = in_turn(sides, options.repeat, keep, options.device, clock_of(options))
    return {
        "beams": beams,
        "batch": batch,
        **{name: times[name].as_dict() for name in sides},
        "ratio": times[THEIRS].median / times[OURS].median,
        "equal_texts": sum(a == b for a, b in zip(texts[OURS], texts[THEIRS], strict=True)),
        "naive_equal": NAIVE not in texts or texts[NAIVE] == texts[OURS],
        "distinct_texts": len(set(texts[OURS])),
        "tokens": sum(len(text.split()) for text in texts[OURS]),
    }


def measured(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Builds the model, compares every batch size and number of beams, and gives what the JSON file has."""
    save(Path(folder), Size(options.layers, options.width, options.vocab))
    decoder = CausalDecoder(folder, dtype=options.dtype).to(options.device)
    lm = cast(Any, GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, options.dtype)))
    lm = lm.eval().to(options.device)
    for beams in options.beams:  # what happens once only is no part of a caption's cost
        compared(lm, decoder, 1, beams, argparse.Namespace(**{**vars(options), "new_tokens": 2, "repeat": 1}))
    cases = [compared(lm, decoder, batch, beams, options) for beams in options.beams for batch in options.batches]
    rate, speed = rates(options)
    for case in cases:
        size = Size(options.layers, options.width, options.vocab)
        lines = case["beams"] * case["batch"]
        work = search_operations(size, options.prefix_length, options.new_tokens, case["batch"], lines)
        read = options.new_tokens * (4 if options.dtype == "float32" else 2) * weights(size)
        limit = max(work / rate, read / speed)
        case["limit"] = {"seconds": limit, "operations": work, "bytes": read}
        case["fraction_of_limit"] = limit / case[OURS][f"{clock_of(options)}_median"]
    limits = {"operations_a_second": rate, "bytes_a_second": speed}
    return {"options": vars(options), "versions": versions(), "rates": limits, "cases": cases}


def rates(options: argparse.Namespace) -> tuple[float, float]:
    """Operations and bytes a second: of the fastest of some products of matrices, and of reading memory."""
    dtype = getattr(torch, options.dtype)
    shapes = [(320, 768, 3072), (1024, 1024, 1024)] if options.device == "cpu" else [(8192, 8192, 8192)]
    products = {str(shape): Gemm(*shape, options.device, dtype) for shape in shapes}
    read = Read(options.device, dtype)
    times = in_turn({**products, "read": read}, max(3, options.repeat), device=options.device, clock=clock_of(options))
    fastest = max(product.operations / times[name].median for name, product in products.items())
    return fastest, read.bytes / times["read"].median


def report(found: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    clock = clock_of(found["options"])
    unit = "CPU ms a text" if clock == "cpu" else "ms a text"
    head = ["search", "batch", *(f"{n}, {unit}" for n in (OURS, THEIRS)), "x", "of limit", "equal texts"]
    rows = []
    for case in found["cases"]:
        search, batch = f"beam {case['beams']}" if case["beams"] > 1 else "greedy", case["batch"]
        cells = []
        for name in (OURS, THEIRS):
            low, middle, high = (1000 / batch * f(case[name][f"{clock}_s"]) for f in (min, median, max))
            cells.append(f"{middle:.4g} ({low:.4g} - {high:.4g})")
        of_limit = f"{case['fraction_of_limit']:.0%}" if "fraction_of_limit" in case else ""
        rows.append([search, str(batch), *cells, f"{case['ratio']:.2f}", of_limit, f"{case['equal_texts']} of {batch}"])
    slow = [case for case in found["cases"] if NAIVE in case]
    after = "".join(
        f"\n\nClipCap's own search, beam {case['beams']}, one input: {1000 * case[NAIVE][f'{clock}_median']:.4g} "
        f"{unit}, {case[NAIVE][f'{clock}_median'] / case[OURS][f'{clock}_median']:.1f} times mmprefix's."
        for case in slow
    )
    options = found["options"]
    software = ", ".join(" ".join(pair) for pair in found["versions"].items())
    where = options["dtype"] if options.get("device", "cpu") != "cpu" else f"threads {options['threads']}"
    first = f"prefix {options['prefix_length']}, {options['new_tokens']} new tokens; {where}"
    first += f"; n = {options['repeat']}; {software}"
    if "rates" in found:
        operations, read = (found["rates"][name] / 1e9 for name in ("operations_a_second", "bytes_a_second"))
        first += f"\nlimit: {operations:.4g} GFLOP and {read:.3g} GB a second"
    return f"{first}\n\n{table(head, rows)}{after}"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints the table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beams", type=int, nargs="+", default=[5, 1], help="1 is greedy search")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--new-tokens", type=int, default=25)
    parser.add_argument("--prefix-length", type=int, default=40)
    parser.add_argument("--layers", type=int, default=Size.layers)
    parser.add_argument("--width", type=int, default=Size.width)
    parser.add_argument("--vocab", type=int, default=Size.vocabulary)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; on a GPU the times are those on the wall")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--naive", action="store_true", help="ClipCap's search too, where one input has beams")
    parser.add_argument("--json", help="a file for all figures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options, folder)
    print(report(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
