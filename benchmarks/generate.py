"""Cost of generating captions, against Hugging Face's ``generate`` on the same model and the same prefixes.

    python -m benchmarks.generate --prefix-length 40 --new-tokens 25 --beams 5 1 --batches 1 8 32 --repeat 3 --naive
    python -m benchmarks.generate --device cuda --dtype bfloat16 --batches 1 8 32 256 --repeat 10
    python -m benchmarks.generate --model models:smollm2-135m-instruct --prefix-length 10 --new-tokens 20 --batches 1 8

The model is a GPT-2 with random weights, or with ``--model`` a pretrained one of LLaMA's structure. Each side starts
from the prefix embeddings and ends with texts, which are compared in the first round. With ``--naive`` one input's
beams are also searched as ClipCap's public code does it (https://arxiv.org/abs/2111.09734, written anew): every step
runs the whole text again, without a cache, and makes logits of all positions. ``--without PATH`` adds mmprefix without
one of its fast paths, which shows what that path brings by itself.

The limit is the larger of two times: the search's matrix products at the rate of the fastest plain product of the same
run, and the weights read once a step at the rate at which memory is read there.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.lib.flops import Matrices, gpt2_matrices, search_operations
from benchmarks.lib.named_model import locate_named
from benchmarks.lib.random_gpt2 import Gpt2Size, save_gpt2
from benchmarks.lib.report import benchmark_parser, join_versions, markdown_table, options_of, publish, versions
from benchmarks.lib.timing import MatrixProduct, MemoryRead, interleave, main_clock
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.fast import switches
from mmprefix.generation.options import GenerateOptions
from mmprefix.types import Prefix

OURS, THEIRS, NAIVE, WITHOUT = "mmprefix", "Hugging Face", "naive", "without"
PATCHES = ("gelu", "last_layer", "small_batch_linear", "fused_layer")  # fast paths that are put into a model at load


def generate_ours(decoder: CausalDecoder, prefix: Prefix, *, beams: int, tokens: int) -> list[str]:
    """The best text of each input by mmprefix."""
    options = GenerateOptions(max_new_tokens=tokens, num_beams=beams)
    with torch.inference_mode():
        candidates = decoder.generate(decoder.prefill(prefix), [""] * len(prefix.mask), options)
    return [ranked[0].text for ranked in candidates]


def generate_huggingface(lm: Any, decoder: CausalDecoder, prefix: Prefix, *, beams: int, tokens: int) -> list[str]:
    """The best text of each input by Transformers' ``generate``; ``decoder`` gives only the tokenizer and the ends."""
    ends = decoder.stop_ids().tolist()
    ids = lm.generate(
        inputs_embeds=prefix.embeds,
        attention_mask=prefix.mask.long(),
        num_beams=beams,
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    return [text.strip() for text in decoder.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def generate_naive(lm: Any, decoder: CausalDecoder, prefix: Prefix, *, beams: int, tokens: int) -> list[str]:
    """The text of one input by ClipCap's beam search, without a cache; no text ends early."""
    with torch.no_grad():
        embeds, device = prefix.embeds.expand(beams, -1, -1), prefix.mask.device
        total = torch.tensor([0.0] + [float("-inf")] * (beams - 1), device=device)
        ids = torch.zeros(beams, 0, dtype=torch.long, device=device)
        for _ in range(tokens):
            scores = total[:, None] + lm(inputs_embeds=embeds).logits[:, -1].float().log_softmax(-1)
            total, index = scores.flatten().topk(beams)
            parents, tokens_chosen = index // scores.shape[1], index % scores.shape[1]
            ids = torch.cat([ids[parents], tokens_chosen[:, None]], dim=1)
            embeds = torch.cat([embeds[parents], lm.get_input_embeddings()(tokens_chosen)[:, None]], dim=1)
    return [text.strip() for text in decoder.tokenizer.batch_decode(ids[:1], skip_special_tokens=True)]


def compare(
    lm: Any,
    decoder: CausalDecoder,
    options: argparse.Namespace,
    *,
    batch: int,
    beams: int,
    plain: CausalDecoder | None = None,
) -> dict[str, Any]:
    """Times and texts of all sides for one batch size and one number of beams.

    ``plain`` is the decoder without the fast path that ``--without`` names.
    """
    noise = torch.randn(batch, options.prefix_length, decoder.width, generator=torch.Generator().manual_seed(batch))
    if options.model:  # as long as word vectors are
        noise *= lm.get_input_embeddings().weight.detach().float().cpu().norm(dim=1).mean() / decoder.width**0.5
    noise = noise.to(options.device, getattr(torch, options.dtype))
    prefix = Prefix(noise, torch.ones(noise.shape[:2], dtype=torch.bool, device=options.device))
    texts: dict[str, list[str]] = {}

    def keep_first(name: str, number: int, generated: list[str]) -> None:
        texts.setdefault(name, generated)

    sides = {
        OURS: lambda: generate_ours(decoder, prefix, beams=beams, tokens=options.new_tokens),
        THEIRS: lambda: generate_huggingface(lm, decoder, prefix, beams=beams, tokens=options.new_tokens),
    }
    if plain is not None:
        sides[WITHOUT] = lambda: generate_ours(plain, prefix, beams=beams, tokens=options.new_tokens)
    if options.naive and batch == 1 and beams > 1:
        sides[NAIVE] = lambda: generate_naive(lm, decoder, prefix, beams=beams, tokens=options.new_tokens)
    clock = main_clock(options)
    times = interleave(sides, options.repeat, on_result=keep_first, device=options.device, clock=clock)
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


def load_model(options: argparse.Namespace, folder: str) -> tuple[CausalDecoder, Any, Matrices]:
    """The decoder, the same model of Transformers, and their matrices; a GPT-2 is written into ``folder``."""
    size = Gpt2Size(options.layers, options.width, options.vocab)
    if options.model:
        place, matrices = locate_named(options.model)
    else:
        place, matrices = Path(save_gpt2(Path(folder), size)), gpt2_matrices(size)
    decoder = CausalDecoder(options.model or folder, dtype=options.dtype).to(options.device)
    lm: Any = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, options.dtype))
    return decoder, lm.eval().to(options.device), matrices


def load_without(path: str, options: argparse.Namespace, folder: str) -> CausalDecoder:
    """The decoder of ``load_model`` without the fast path named ``path``."""
    enabled = switches.ENABLED
    switches.ENABLED = enabled - {path}
    try:
        return CausalDecoder(options.model or folder, dtype=options.dtype).to(options.device)
    finally:
        switches.ENABLED = enabled


def measure(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Build the model, compare every batch size and number of beams, and return the contents of the JSON file."""
    decoder, lm, matrices = load_model(options, folder)
    plain = load_without(options.without, options, folder) if options.without else None
    short = argparse.Namespace(**{**vars(options), "new_tokens": 2, "repeat": 1})
    for beams in options.beams:  # warm-up
        compare(lm, decoder, short, batch=1, beams=beams, plain=plain)
    cases = [
        compare(lm, decoder, options, batch=batch, beams=beams, plain=plain)
        for beams in options.beams
        for batch in options.batches
    ]
    rate, speed = measure_rates(options)
    for case in cases:
        hypotheses = case["beams"] * case["batch"]
        work = search_operations(
            matrices, options.prefix_length, tokens=options.new_tokens, inputs=case["batch"], hypotheses=hypotheses
        )
        read = options.new_tokens * (4 if options.dtype == "float32" else 2) * matrices.weights
        limit = max(work / rate, read / speed)
        case["limit"] = {"seconds": limit, "operations": work, "bytes": read}
        case["fraction_of_limit"] = limit / case[OURS][f"{main_clock(options)}_median"]
    limits = {"operations_a_second": rate, "bytes_a_second": speed}
    return {"options": options_of(options), "versions": versions(), "rates": limits, "cases": cases}


def measure_rates(options: argparse.Namespace) -> tuple[float, float]:
    """Operations a second of the fastest of several matrix products, and bytes a second of reading memory."""
    dtype = getattr(torch, options.dtype)
    shapes = [(320, 768, 3072), (1024, 1024, 1024)] if options.device == "cpu" else [(8192, 8192, 8192)]
    products = {str(shape): MatrixProduct(*shape, device=options.device, dtype=dtype) for shape in shapes}
    read = MemoryRead(options.device, dtype)
    sides, repeat = {**products, "read": read}, max(3, options.repeat)
    times = interleave(sides, repeat, device=options.device, clock=main_clock(options))
    fastest = max(product.operations / times[name].median for name, product in products.items())
    return fastest, read.bytes / times["read"].median


def report(results: dict[str, Any]) -> str:
    """The table, below the sizes and versions."""
    clock = main_clock(results["options"])
    unit = "CPU ms a text" if clock == "cpu" else "ms a text"
    head = ["search", "batch", *(f"{n}, {unit}" for n in (OURS, THEIRS)), "x", "of limit", "equal texts"]
    rows = []
    for case in results["cases"]:
        search, batch = f"beam {case['beams']}" if case["beams"] > 1 else "greedy", case["batch"]
        cells = []
        for name in (OURS, THEIRS):
            low, middle, high = (1000 / batch * f(case[name][f"{clock}_s"]) for f in (min, median, max))
            cells.append(f"{middle:.4g} ({low:.4g} - {high:.4g})")
        of_limit = f"{case['fraction_of_limit']:.0%}" if "fraction_of_limit" in case else ""
        rows.append([search, str(batch), *cells, f"{case['ratio']:.2f}", of_limit, f"{case['equal_texts']} of {batch}"])
    options = results["options"]
    setting = options["dtype"] if options.get("device", "cpu") != "cpu" else f"threads {options['threads']}"
    model = f"{options['model']}, " if options.get("model") else ""
    first = f"{model}prefix {options['prefix_length']}, {options['new_tokens']} new tokens; {setting}"
    first += f"; n = {options['repeat']}; {join_versions(results)}"
    if "rates" in results:
        operations, read = (results["rates"][name] / 1e9 for name in ("operations_a_second", "bytes_a_second"))
        first += f"\nlimit: {operations:.4g} GFLOP and {read:.3g} GB a second"
    return "\n\n".join([first, markdown_table(head, rows), *notes(results, clock, unit)])


def notes(results: dict[str, Any], clock: str, unit: str) -> list[str]:
    """Sentences on the naive search and on mmprefix without a fast path, where they were measured."""
    lines, removed = list[str](), results["options"].get("without")
    for case in results["cases"]:
        search, batch = f"beam {case['beams']}" if case["beams"] > 1 else "greedy", case["batch"]
        middle = {name: 1000 / batch * case[name][f"{clock}_median"] for name in (OURS, NAIVE, WITHOUT) if name in case}
        if NAIVE in middle:
            times = middle[NAIVE] / middle[OURS]
            lines.append(
                f"ClipCap's own search, {search}, one input: {middle[NAIVE]:.4g} {unit}, {times:.1f} times mmprefix's."
            )
        if WITHOUT in middle:
            times = middle[WITHOUT] / middle[OURS]
            lines.append(
                f"Without {removed}, {search}, batch {batch}: {middle[WITHOUT]:.4g} {unit}, {times:.2f} times."
            )
    return lines


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write the JSON file."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--beams", type=int, nargs="+", default=[5, 1], help="1 is greedy search")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--new-tokens", type=int, default=25)
    parser.add_argument("--prefix-length", type=int, default=40)
    parser.add_argument("--model", help="a decoder of LLaMA's structure: a folder or models:NAME; else a random GPT-2")
    parser.add_argument("--layers", type=int, default=Gpt2Size.layers)
    parser.add_argument("--width", type=int, default=Gpt2Size.width)
    parser.add_argument("--vocab", type=int, default=Gpt2Size.vocabulary)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; on a GPU wall time is measured")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--naive", action="store_true", help="also ClipCap's search, for one input with beams")
    parser.add_argument("--without", choices=PATCHES, help="also mmprefix without this fast path")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, folder)
    publish(results, report(results), options.json)
    return results


if __name__ == "__main__":
    main()
