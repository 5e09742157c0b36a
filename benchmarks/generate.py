"""What writing captions costs, against Hugging Face's ``generate`` on the same model and the same prefixes.

    python benchmarks/generate.py --prefix-length 40 --new-tokens 25 --beams 5 1 --batches 1 8 32 --repeat 3 --naive

Each side starts from the prefix embeddings and ends with texts, which are compared in the first round. With ``--naive``
one input's beams are also searched as ClipCap's public code does it (https://arxiv.org/abs/2111.09734, written anew):
every step runs the whole text again, without a cache, and makes logits of all positions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from measure import Times, in_turn, table, versions
from random_gpt2 import Size, save
from transformers import GPT2LMHeadModel

from mmprefix.decoder import CausalDecoder
from mmprefix.options import GenerateOptions
from mmprefix.types import Prefix

OURS, THEIRS, NAIVE = "mmprefix", "Hugging Face", "naive"


def ours(decoder: CausalDecoder, prefix: Prefix, beams: int, tokens: int) -> list[str]:
    """The best text of each input, by mmprefix."""
    options = GenerateOptions(max_new_tokens=tokens, num_beams=beams)
    with torch.inference_mode():
        found = decoder.generate(decoder.start(prefix), [""] * len(prefix.mask), options)
    return [candidates[0].text for candidates in found]


def theirs(lm: Any, decoder: CausalDecoder, prefix: Prefix, beams: int, tokens: int) -> list[str]:
    """The same by the language model's own ``generate``; ``lm`` as its library loads it, ``decoder`` for the words."""
    ids = lm.generate(
        inputs_embeds=prefix.embeds,
        attention_mask=prefix.mask.long(),
        num_beams=beams,
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=decoder.eos,
        pad_token_id=decoder.eos,
    )
    return [text.strip() for text in decoder.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def naive(lm: Any, decoder: CausalDecoder, prefix: Prefix, beams: int, tokens: int) -> list[str]:
    """ClipCap's search for one input: the mean log-probability ranks beams; no text ends early here."""
    with torch.no_grad():
        embeds, total = prefix.embeds.expand(beams, -1, -1), torch.tensor([0.0] + [float("-inf")] * (beams - 1))
        lines = torch.zeros(beams, 0, dtype=torch.long)
        for _ in range(tokens):
            found = total[:, None] + lm(inputs_embeds=embeds).logits[:, -1].log_softmax(-1)
            total, index = found.flatten().topk(beams)
            parents, chosen = index // found.shape[1], index % found.shape[1]
            lines = torch.cat([lines[parents], chosen[:, None]], dim=1)
            embeds = torch.cat([embeds[parents], lm.transformer.wte(chosen)[:, None]], dim=1)
    return [text.strip() for text in decoder.tokenizer.batch_decode(lines[:1], skip_special_tokens=True)]


def compared(lm: Any, decoder: CausalDecoder, batch: int, beams: int, options: argparse.Namespace) -> dict[str, Any]:
    """Times and texts of both for one batch size and one number of beams."""
    noise = torch.randn(batch, options.prefix_length, decoder.width, generator=torch.Generator().manual_seed(batch))
    prefix = Prefix(noise, torch.ones(noise.shape[:2], dtype=torch.bool))
    texts: dict[str, list[str]] = {}

    def keep(name: str, number: int, found: Any) -> None:
        texts.setdefault(name, found)

    sides = {
        OURS: lambda: ours(decoder, prefix, beams, options.new_tokens),
        THEIRS: lambda: theirs(lm, decoder, prefix, beams, options.new_tokens),
    }
    if options.naive and batch == 1 and beams > 1:
        sides[NAIVE] = lambda: naive(lm, decoder, prefix, beams, options.new_tokens)
    times: dict[str, Times] = in_turn(sides, options.repeat, keep)
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
    decoder, lm = CausalDecoder(folder), cast(Any, GPT2LMHeadModel.from_pretrained(folder)).eval()
    for beams in options.beams:  # what happens once only is no part of a caption's cost
        compared(lm, decoder, 1, beams, argparse.Namespace(**{**vars(options), "new_tokens": 2, "repeat": 1}))
    cases = [compared(lm, decoder, batch, beams, options) for beams in options.beams for batch in options.batches]
    return {"options": vars(options), "versions": versions(), "cases": cases}


def report(found: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    head = ["search", "batch", *(f"{n}, CPU ms a text" for n in (OURS, THEIRS)), "x", "equal texts"]
    rows = []
    for case in found["cases"]:
        search, batch = f"beam {case['beams']}" if case["beams"] > 1 else "greedy", case["batch"]
        cells = []
        for name in (OURS, THEIRS):
            low, middle, high = (1000 / batch * f(case[name]["cpu_s"]) for f in (min, median, max))
            cells.append(f"{middle:.4g} ({low:.4g} - {high:.4g})")
        rows.append([search, str(batch), *cells, f"{case['ratio']:.2f}", f"{case['equal_texts']} of {batch}"])
    slow = [case for case in found["cases"] if NAIVE in case]
    after = "".join(
        f"\n\nClipCap's own search, beam {case['beams']}, one input: {1000 * median(case[NAIVE]['cpu_s']):.4g} CPU ms "
        f"a text, {case[NAIVE]['cpu_median'] / case[OURS]['cpu_median']:.1f} times mmprefix's."
        for case in slow
    )
    options = found["options"]
    software = ", ".join(" ".join(pair) for pair in found["versions"].items())
    first = f"prefix {options['prefix_length']}, {options['new_tokens']} new tokens; threads {options['threads']}"
    return f"{first}; n = {options['repeat']}; {software}\n\n{table(head, rows)}{after}"


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
