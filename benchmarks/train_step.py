"""Cost of a training step against the same step without the things that make it cheap, and against the limit.

    python -m benchmarks.train_step --mapper transformer --prefix-length 40 --captions 5 --batch 30 --repeat 3
    python -m benchmarks.train_step --device cuda --dtype bfloat16 --batch 300 --extra-variants compile --repeat 9
    python -m benchmarks.train_step --model models:smollm2-135m-instruct --mapper mlp --prefix-length 10 --pool 0

A step is mapper, frozen decoder, loss, backward to the mapper (and to the output head if it is trained), AdamW. All
variants compute the same mean loss over the same captions and the same gradients, which is checked before anything is
timed (``benchmarks.lib.compare_gradients``). The decoder is a GPT-2 with random weights, or with ``--model`` a
pretrained one of LLaMA's structure, which is compared with Transformers' model of it too: a row a caption, padded to
the longest of the batch, with frozen weights.

Prefix-AAC's mappers normalise by the batch: the same captions in other batches are another computation, so bucketing is
not measured for them. With ``--dtype bfloat16`` (on a GPU) the frozen model has that type and the mapper runs in
autocast, in all variants.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.lib import prefix_aac_case
from benchmarks.lib.compare_gradients import DTYPES, GradientComparison, compare_gradients, trained_parts
from benchmarks.lib.flops import Matrices, gpt2_matrices, step_operations
from benchmarks.lib.named_model import locate_named, one_token_words
from benchmarks.lib.random_gpt2 import Gpt2Size, save_gpt2
from benchmarks.lib.report import benchmark_parser, join_versions, markdown_table, options_of, publish, versions
from benchmarks.lib.timing import Times, interleave, layer_products, main_clock
from benchmarks.lib.train_variants import (
    FullLogitsCausalDecoder,
    FullLogitsWordDecoder,
    TrainStep,
    naive_loss,
    naive_positions,
    shared_prefix_loss,
    unshared_positions,
    unshared_prefix_loss,
)
from benchmarks.lib.workload import LONGEST, Workload, draw_workload
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.word_level import WordDecoder
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.transformer import Transformer
from mmprefix.types import Features

OURS, BUCKETED = "mmprefix", "mmprefix, several bucketed batches"
THEIRS = "Hugging Face: a row a caption"
EXTRA_VARIANTS: dict[str, tuple[str, Callable[[ComposedDecoder], None]]] = {  # option → name, change of the decoder
    "compile": ("mmprefix, layers compiled", ComposedDecoder.compile_layers),
    "recompute": ("mmprefix, activation checkpointing", ComposedDecoder.recompute_layers),
}


@dataclass(frozen=True)
class Case:
    """A published system: what its mapper reads, what is trained, and what its own code computes."""

    vocabulary: int  # words that captions are made of, each a token of the language model
    features: Callable[[np.random.Generator, int], Features]  # random features of n inputs
    mapper: Callable[[int], Mapper]  # from the decoder's width
    decoder: Callable[..., ComposedDecoder]  # from a folder, with a dtype
    full_logits_decoder: Callable[..., ComposedDecoder]  # the same, with logits at all positions
    naive: dict[str, dict[str, Any]]  # naive variants by name, and their options (``naive_loss``)


def build_clipcap_case(kind: type[MLP] | type[Transformer], options: argparse.Namespace) -> Case:
    """ClipCap: a summary is mapped, the language model's own head predicts its tokens."""

    def features(random: np.random.Generator, count: int) -> Features:
        pooled = torch.from_numpy(random.standard_normal((count, options.features), dtype=np.float32))
        return Features(pooled.new_zeros(count, 0, 0), torch.zeros(count, 0, dtype=torch.bool), pooled)

    def mapper(width: int) -> Mapper:
        return kind(Sizes(0, options.features, width), length=options.prefix_length)

    naive = {"naive: as in ClipCap's code": {"weight_gradients": True}}
    return Case(options.vocab, features, mapper, CausalDecoder, FullLogitsCausalDecoder, naive)


def build_prefix_aac_case(options: argparse.Namespace) -> Case:
    """Prefix-AAC: frames and a summary are mapped, a trained head predicts words."""
    words = prefix_aac_case.vocabulary(options.words)
    decoder, full_logits = (partial(kind, vocabulary=words) for kind in (WordDecoder, FullLogitsWordDecoder))
    names = {"naive: as in Prefix-AAC's code": False, "naive, with gradients into frozen weights": True}
    naive = {name: {"weight_gradients": computed} for name, computed in names.items()}
    return Case(options.words, prefix_aac_case.features, prefix_aac_case.mapper, decoder, full_logits, naive)


CASES: dict[str, Callable[[argparse.Namespace], Case]] = {
    "mlp": partial(build_clipcap_case, MLP),
    "transformer": partial(build_clipcap_case, Transformer),
    "prefix_aac": build_prefix_aac_case,
}


@dataclass
class System:
    """The mapper and decoder that are measured, the folder of the decoder's weights, and their matrices."""

    case: Case
    mapper: Mapper
    decoder: ComposedDecoder
    folder: str
    matrices: Matrices

    @property
    def dtype(self) -> torch.dtype:
        """The type of the frozen weights."""
        return self.decoder.lm.get_input_embeddings().weight.dtype

    def load(self, kind: Callable[..., ComposedDecoder]) -> ComposedDecoder:
        """Another decoder over the same weights, with the same trained head."""
        decoder = kind(self.folder, dtype=DTYPES[self.dtype]).to(self.decoder.lm.get_input_embeddings().weight.device)
        decoder.own_head = self.decoder.own_head
        return decoder


def build_variants(system: System, workload: Workload, extra: list[str]) -> dict[str, TrainStep]:
    """The variants to measure, by name; ``extra`` are keys of EXTRA_VARIANTS."""
    case, mapper, decoder = system.case, system.mapper, system.decoder
    ours = shared_prefix_loss(mapper, decoder)
    parameters = [p for part in trained_parts(mapper, decoder) for p in part.parameters()]
    fused = torch.optim.AdamW(parameters, lr=0.0, fused=True)
    plain = torch.optim.AdamW(parameters, lr=0.0)
    step = partial(TrainStep, batches=[workload.median], dtype=system.dtype)
    variants = {
        OURS: step(ours, fused),
        "without sharing the prefix": step(
            unshared_prefix_loss(mapper, decoder), fused, text_positions=unshared_positions
        ),
        "with logits at all positions": step(shared_prefix_loss(mapper, system.load(case.full_logits_decoder)), fused),
    }
    for name, options in case.naive.items():
        loss = naive_loss(mapper, decoder.own_head, system.folder, dtype=DTYPES[system.dtype], **options)
        positions = naive_positions if options.get("longest", LONGEST) else unshared_positions
        variants[name] = step(loss, plain, text_positions=positions)
    for option in extra:
        name, prepare = EXTRA_VARIANTS[option]
        changed = system.load(case.decoder)
        prepare(changed)
        variants[name] = step(shared_prefix_loss(mapper, changed), fused)
    if workload.bucketed and not normalises_by_batch(mapper):
        variants[BUCKETED] = step(ours, fused, batches=workload.bucketed)
        variants["the same captions, shuffled batches"] = step(ours, fused, batches=workload.shuffled)
    return variants


def normalises_by_batch(mapper: Mapper) -> bool:
    """True if the prefix of an input depends on the other inputs of its batch."""
    return any(isinstance(module, nn.BatchNorm1d) for module in mapper.modules())


def build_system(case: Case, options: argparse.Namespace, folder: str) -> tuple[System, Workload]:
    """The parts to measure and their captions; a GPT-2 is written into ``folder``."""
    words = None
    if options.model:
        place, matrices = locate_named(options.model)
        decoder = case.decoder(str(place), dtype=options.dtype).to(options.device)
        words = one_token_words(decoder, options.vocab)
        naive = {THEIRS: {"weight_gradients": False, "longest": None}, **case.naive}
        text_ids = partial(decoder.codec.target_ids, "")
        case = replace(case, naive={name: {**chosen, "text_ids": text_ids} for name, chosen in naive.items()})
    else:
        size = Gpt2Size(options.layers, options.width, options.vocab)
        place, matrices = save_gpt2(Path(folder), size), gpt2_matrices(size)
        decoder = case.decoder(place, dtype=options.dtype).to(options.device)
    vocabulary = case.vocabulary if words is None else len(words)
    workload = draw_workload(options.captions, options.batch, vocabulary, case.features, pool=options.pool)
    workload = (workload if words is None else workload.worded(words)).to(options.device)
    torch.manual_seed(0)
    mapper = case.mapper(decoder.width).to(options.device)
    return System(case, mapper, decoder, str(place), matrices), workload


def measure(case: Case, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Build the parts, check and time all variants, and return the contents of the JSON file."""
    system, workload = build_system(case, options, folder)
    mapper, decoder = system.mapper, system.decoder
    variants = build_variants(system, workload, options.extra_variants)
    references = {name: BUCKETED if len(step.batches) > 1 else OURS for name, step in variants.items()}
    comparison = compare_gradients(variants, references, mapper, decoder, pretrained=bool(options.model))
    batch = workload.median
    prefix = mapper(batch.features).embeds.shape[1]
    positions = prefix * len(batch.texts) + batch.text_positions()[0]
    products = layer_products(positions, decoder.width, device=options.device, dtype=getattr(torch, options.dtype))
    operations = step_operations(system.matrices, mapper, decoder, batch)
    timed = {**products, **variants}
    times = interleave(timed, options.repeat, device=options.device, clock=main_clock(options))
    rates = {name: product.operations / times[name].median for name, product in products.items()}
    limit = operations / max(rates.values())
    rows = []
    for name, step in variants.items():
        of_limit = limit / times[name].median if step.batches == [batch] else None
        rows.append(variant_row(name, step, times, comparison) | {"fraction_of_limit": of_limit})
    captions = sum(map(len, batch.texts))
    counts = {"inputs": len(batch.texts), "captions": captions, "tokens": batch.tokens, "prefix": prefix}
    limits = {"operations": operations, "rates": rates, "seconds": limit}
    return {"options": options_of(options), "versions": versions(), "batch": counts, "limit": limits, "variants": rows}


def variant_row(name: str, step: TrainStep, times: dict[str, Times], comparison: GradientComparison) -> dict[str, Any]:
    """Figures of one variant; "ratio" is its time over its reference's."""
    loss_error, gradient_error = comparison.errors(name)
    return {
        "variant": name,
        "steps": len(step.batches),
        **times[name].as_dict(),
        "ratio": times[name].median / times[comparison.references[name]].median,
        "padding": step.padding,
        "loss": comparison.losses[name],
        "loss_error": loss_error,
        "gradient_error": gradient_error,
    }


def report(results: dict[str, Any]) -> str:
    """The table, below the sizes, versions and limit."""
    clock = main_clock(results["options"])
    on_gpu = results["options"].get("device", "cpu") != "cpu"
    units = (
        ["CPU s", "min - max", "wall s"] if clock == "cpu" else ["s", "min - max", "peak GiB" if on_gpu else "CPU s"]
    )
    head = ["step", *units, "x", "of limit", "padding", "loss error", "gradient error"]
    rows = []
    for row in results["variants"]:
        steps, seconds = row["steps"], row[f"{clock}_s"]
        other_clock = row["wall_median" if clock == "cpu" else "cpu_median"] / steps
        rows.append([
            row["variant"],
            f"{row[f'{clock}_median'] / steps:.3g}",
            f"{min(seconds) / steps:.3g} - {max(seconds) / steps:.3g}",
            f"{row['peak'] / 2**30:.3g}" if on_gpu else f"{other_clock:.3g}",
            f"{row['ratio']:.2f}",
            "" if row["fraction_of_limit"] is None else f"{row['fraction_of_limit']:.0%}",
            f"{row['padding']:.1%}",
            f"{row['loss_error']:.0e}",
            f"{row['gradient_error']:.0e}",
        ])  # fmt: skip
    batch, limit, options = results["batch"], results["limit"], results["options"]
    sizes = f"{batch['captions']} captions of {batch['inputs']} inputs, {batch['tokens']} tokens"
    setting = options["dtype"] if on_gpu else f"threads {options['threads']}"
    model = f"{options['model']}, " if options.get("model") else ""
    first = (
        f"{model}{sizes}, a prefix of {batch['prefix']}; {setting}; n = {options['repeat']}; {join_versions(results)}"
    )
    rate, second = max(limit["rates"].values()) / 1e9, "CPU second" if clock == "cpu" else "second"
    least = f"{limit['operations'] / 1e9:.4g} GFLOP at {rate:.3g} GFLOP per {second} = {limit['seconds']:.3g} s"
    return f"{first}\nlimit: {least}\n\n{markdown_table(head, rows)}"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write the JSON file."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--mapper", choices=list(CASES), default="transformer")
    parser.add_argument("--prefix-length", type=int, default=40, help="positions (not prefix_aac, which has 15 + 11)")
    parser.add_argument("--captions", type=int, default=5, help="captions an input")
    parser.add_argument("--batch", type=int, default=30, help="captions a batch")
    parser.add_argument("--features", type=int, default=512, help="width of the encoder's summary (not prefix_aac)")
    parser.add_argument("--model", help="a decoder of LLaMA's structure: a folder or models:NAME; else a random GPT-2")
    parser.add_argument("--layers", type=int, default=Gpt2Size.layers)
    parser.add_argument("--width", type=int, default=Gpt2Size.width)
    parser.add_argument("--vocab", type=int, default=Gpt2Size.vocabulary)
    parser.add_argument("--words", type=int, default=7911, help="words of a trained head (prefix_aac)")
    parser.add_argument("--pool", type=int, default=4, help="batches on each side when bucketing is measured; 0: not")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; on a GPU wall time is measured")
    parser.add_argument("--dtype", choices=list(DTYPES.values()), default="float32", help="of the frozen model")
    parser.add_argument("--extra-variants", nargs="*", choices=list(EXTRA_VARIANTS), default=[], metavar="VARIANT",
                        help="also mmprefix with compiled layers (compile), with activation checkpointing (recompute)",
                        )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args(arguments)
    if options.batch % options.captions:
        parser.error(f"--batch {options.batch} is no multiple of --captions {options.captions}")
    if options.model and options.mapper == "prefix_aac":
        parser.error(f"--model {options.model}: prefix_aac trains a head of its own; give --mapper mlp or transformer")
    case = CASES[options.mapper](options)
    if case.vocabulary > options.vocab:
        parser.error(f"--words {options.words}: each is a token, but --vocab is {options.vocab}; give fewer")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(case, options, folder)
    publish(results, report(results), options.json)
    return results


if __name__ == "__main__":
    main()
