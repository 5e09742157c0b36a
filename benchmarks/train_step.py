"""What a training step costs, against the same step without the things that make it cheap, and against the limit.

    python -m benchmarks.train_step --mapper transformer --prefix-length 40 --captions 5 --batch 30 --repeat 3
    python -m benchmarks.train_step --device cuda --dtype bfloat16 --batch 300 --otherwise compile --repeat 9

A step is mapper, frozen decoder, loss, backward to the mapper (and to the output head where that is trained), AdamW.
All variants compute the same mean loss over the same captions and the same gradients, which is checked before any
figure is printed.

Float32 sums over other numbers of rows differ in the last digits, upon which a few of a mapper's millions of ReLUs
change sides, each with a leap in the gradients. Therefore mappers are in float64 for that check, and in float32 when
they are timed. Prefix-AAC's mappers normalise by the batch: the same captions in other batches are another computation,
so bucketing is not measured for them.

With ``--dtype bfloat16`` (a GPU's) the frozen model has that type and the mapper runs in autocast, on all sides.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, GPT2LMHeadModel

from benchmarks.lib import prefix_aac_case
from benchmarks.lib.flops import step_operations
from benchmarks.lib.random_gpt2 import Size, save
from benchmarks.lib.timing import Gemm, clock_of, in_turn, table, versions
from benchmarks.lib.workload import LONGEST, Captioned, Draws, draw
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.decoders.composed import ComposedDecoder
from mmprefix.decoders.word_level import WordDecoder
from mmprefix.kv_cache.state import State
from mmprefix.mappers.base import Mapper, Sizes
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.transformer import Transformer
from mmprefix.types import Features

SAME = {"float32": (2e-6, 5e-6), "bfloat16": (5e-3, 1e-1)}  # relative errors of the loss and gradients, at most
OURS, BUCKETED = "mmprefix", "mmprefix, several bucketed batches"
OTHERWISE = {"compile": "mmprefix, layers compiled", "recompute": "mmprefix, layers computed again on the way back"}
Loss = Callable[[Captioned], Tensor]  # the summed negative log-likelihood of all captions


def shared(mapper: Mapper, decoder: ComposedDecoder) -> Loss:
    """The step as mmprefix does it: the prefix of an input is read once, its captions continue from there."""

    def loss(work: Captioned) -> Tensor:
        state = decoder.prefill(mapper(work.features))
        return decoder.text_loss(state, [""] * len(work.texts), work.texts).nll.sum()

    return loss


class LogitsEverywhere(ComposedDecoder):
    """Makes logits of every position that it runs, prefix and padding too; other decoders pick positions first."""

    def forward_tokens(
        self, state: State, cache: DynamicCache, embeds: Tensor, visible: Tensor, position_ids: Tensor
    ) -> Tensor:
        return super().logits(super().forward_tokens(state, cache, embeds, visible, position_ids))  # (B N V)

    def target_nll(self, hidden: Tensor, row: Tensor, target: Tensor) -> Tensor:
        return -hidden.float().log_softmax(-1)[row.to(hidden.device), target.to(hidden.device)]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden  # ``forward_tokens`` gave logits already


class CausalLogitsEverywhere(LogitsEverywhere, CausalDecoder):
    """Logits of every position, with the language model's own head."""


class WordLogitsEverywhere(LogitsEverywhere, WordDecoder):
    """Logits of every position, with a head over words."""


def naive(mapper: Mapper, own_head: nn.Linear | None, folder: str, into_weights: bool, dtype: str = "float32") -> Loss:
    """The step of the public code of ClipCap (https://arxiv.org/abs/2111.09734) and, with an ``own_head`` over words,
    of Prefix-AAC (https://arxiv.org/abs/2303.17489), written anew from their descriptions.

    Every caption reads its own prefix, is padded to the longest caption of the data set, and gets logits at every
    position. ``into_weights``: gradients into the language model's weights are computed and never used; ClipCap's code
    does that, Prefix-AAC's does not. Two differences: ClipCap's captions end with an end-of-text token, as ours do, and
    Prefix-AAC's word 0, which no caption has, keeps its logit. As there, word i is read by row i of the embeddings.
    """
    device = next(mapper.parameters()).device
    lm = cast(Any, GPT2LMHeadModel.from_pretrained(folder, dtype=getattr(torch, dtype))).to(device)
    lm = cast(GPT2LMHeadModel, lm).eval().requires_grad_(into_weights)
    head = cast(nn.Linear, lm.lm_head if own_head is None else own_head)
    end = head.out_features - 1

    def loss(work: Captioned) -> Tensor:
        rows = [[int(word[1:]) for word in text.split()] + [end] for texts in work.texts for text in texts]
        padded = torch.tensor([row + [0] * (LONGEST - len(row)) for row in rows], device=device)
        prefix = mapper(work.apart().features).embeds.to(lm.dtype)
        embeds = torch.cat([prefix, lm.transformer.wte(padded)], dim=1)
        mask = torch.cat([padded.new_ones(prefix.shape[:2]), (padded > 0).long()], dim=1)
        hidden = lm.transformer(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        logits = head(hidden)
        found = logits[:, prefix.shape[1] - 1 : -1].reshape(-1, logits.shape[-1])
        return F.cross_entropy(found, padded.flatten(), ignore_index=0, reduction="sum")

    return loss


@dataclass(frozen=True)
class Case:
    """What differs between published systems: what is read, what is trained, and what their own code does."""

    vocabulary: int  # words that captions are made of, each a token of the language model
    features: Callable[[np.random.Generator, int], Features]  # of so many inputs
    mapper: Callable[[int], Mapper]  # for a decoder's width
    decoder: Callable[..., ComposedDecoder]  # from a folder, with a dtype
    everywhere: Callable[..., ComposedDecoder]  # the same, with logits at all positions
    naive: dict[str, bool]  # naive variants by name, and whether they compute gradients into frozen weights


def clipcap(kind: type[MLP] | type[Transformer], options: argparse.Namespace) -> Case:
    """A summary is mapped, the language model's own head predicts its tokens."""

    def features(random: np.random.Generator, count: int) -> Features:
        pooled = torch.from_numpy(random.standard_normal((count, options.features), dtype=np.float32))
        return Features(pooled.new_zeros(count, 0, 0), torch.zeros(count, 0, dtype=torch.bool), pooled)

    def mapper(width: int) -> Mapper:
        return kind(Sizes(0, options.features, width), length=options.prefix_length)

    published = {"naive: all that ClipCap's code does": True}
    return Case(options.vocab, features, mapper, CausalDecoder, CausalLogitsEverywhere, published)


def prefix_aac(options: argparse.Namespace) -> Case:
    """Frames and a summary are mapped, a trained head predicts whole words: recipes/prefix_aac_audiocaps.yaml."""
    words = prefix_aac_case.vocabulary(options.words)
    decoder, everywhere = (partial(kind, vocabulary=words) for kind in (WordDecoder, WordLogitsEverywhere))
    published = {"naive: all that Prefix-AAC's code does": False, "naive, with gradients into frozen weights": True}
    return Case(options.words, prefix_aac_case.features, prefix_aac_case.mapper, decoder, everywhere, published)


CASES = {"mlp": partial(clipcap, MLP), "transformer": partial(clipcap, Transformer), "prefix_aac": prefix_aac}


DTYPES: dict[torch.dtype, str] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@dataclass
class Step:
    """Trains on ``batches`` one after the other; the loss is the mean over the tokens of all of them.

    The learning rate is zero: all the work of a step is done, and every repetition starts from the same weights.
    ``run`` counts text positions for a batch: those that must be run, and those that this variant runs.
    """

    loss: Loss
    optimizer: torch.optim.Optimizer
    batches: list[Captioned]
    dtype: torch.dtype = torch.float32
    run: Callable[[Captioned], tuple[int, int]] = Captioned.run

    def __call__(self) -> float:
        tokens = sum(batch.tokens for batch in self.batches)
        total = 0.0
        self.optimizer.zero_grad()
        for batch in self.batches:
            with torch.autocast(batch.features.pooled.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss = self.loss(batch) / tokens
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return total

    @property
    def padding(self) -> float:
        """The share of padding among the text positions that are run."""
        real, run = (sum(counts) for counts in zip(*map(self.run, self.batches), strict=True))
        return 1 - real / run


Steps = dict[str, Step]


def steps(
    case: Case, mapper: Mapper, decoder: ComposedDecoder, folder: str, draws: Draws, otherwise: list[str]
) -> Steps:
    """The variants by the names that the table has."""
    weights = decoder.lm.get_input_embeddings().weight
    dtype = DTYPES[weights.dtype]
    full = case.everywhere(folder, dtype=dtype).to(weights.device)
    full.own_head = decoder.own_head
    ours, everywhere = shared(mapper, decoder), shared(mapper, full)
    parameters = [p for part in trained(mapper, decoder) for p in part.parameters()]
    fused = torch.optim.AdamW(parameters, lr=0.0, fused=True)
    plain = torch.optim.AdamW(parameters, lr=0.0)
    made = partial(Step, batches=[draws.middle], dtype=weights.dtype)

    def apart(work: Captioned) -> Tensor:
        return ours(work.apart())

    def to_longest(work: Captioned) -> tuple[int, int]:
        return work.apart().run()[0], LONGEST * len(work.apart().texts)

    def published(into_weights: bool) -> Step:
        return made(naive(mapper, decoder.own_head, folder, into_weights, dtype), plain, run=to_longest)

    found = {
        OURS: made(ours, fused),
        "without sharing the prefix": made(apart, fused, run=lambda work: work.apart().run()),
        "with logits at all positions": made(everywhere, fused),
        **{name: published(into_weights) for name, into_weights in case.naive.items()},
    }
    for way in otherwise:
        other = case.decoder(folder, dtype=dtype).to(weights.device)
        other.own_head = decoder.own_head
        getattr(other, f"{way}_layers")()
        found[OTHERWISE[way]] = made(shared(mapper, other), fused)
    if by_batch(mapper):
        return found
    pool = {
        BUCKETED: made(ours, fused, batches=draws.bucketed),
        "the same captions, not bucketed": made(ours, fused, batches=draws.random),
    }
    return {**found, **pool}


def trained(mapper: Mapper, decoder: ComposedDecoder) -> list[nn.Module]:
    """The mapper, and the decoder's head where it has one of its own."""
    return [part for part in (mapper, decoder.own_head) if part is not None]


def by_batch(mapper: Mapper) -> bool:
    """Whether what an input is mapped to depends on the others of its batch."""
    return any(isinstance(module, nn.BatchNorm1d) for module in mapper.modules())


class Sameness:
    """How far the result of each variant is from its reference's: the loss and the gradients of each trained part."""

    def __init__(self, parts: list[nn.Module], reference: dict[str, str]) -> None:
        self.parts, self.reference = parts, reference
        self.found: dict[str, tuple[float, list[Tensor]]] = {}

    def keep(self, name: str, loss: float) -> None:
        """Notes the loss and the gradients that a run of ``name`` left."""
        gradients = [[p.grad.flatten() for p in part.parameters() if p.grad is not None] for part in self.parts]
        self.found[name] = (loss, [torch.cat(each).float() for each in gradients])

    def errors(self, name: str) -> tuple[float, float]:
        """|a - b| / |b| of the loss, and in the Euclidean norm over all gradients of a part, the worst part's."""
        loss, gradients = self.found[name]
        want, directions = self.found[self.reference[name]]
        pairs = zip(gradients, directions, strict=True)
        return abs(loss - want) / abs(want), max(float((a - b).norm() / b.norm()) for a, b in pairs)

    def check(self, dtype: str = "float32") -> None:
        """Ends the program where a variant does not compute what its reference does."""
        most_loss, most_gradient = SAME[dtype]
        for name in self.reference:
            loss, gradient = self.errors(name)
            if not (loss <= most_loss and gradient <= most_gradient):
                sys.exit(f"{name!r}: relative error of the loss {loss:.1e}, of the gradients {gradient:.1e}")


def compared(variants: Steps, reference: dict[str, str], mapper: Mapper, decoder: ComposedDecoder) -> Sameness:
    """Runs every variant once, untimed, and ends the program where they differ."""
    parts = trained(mapper, decoder)
    same = Sameness(parts, reference)
    dtype = DTYPES[decoder.lm.get_input_embeddings().weight.dtype]
    wide = torch.float64 if dtype == "float32" else torch.float32
    mapper.to(wide)
    still = torch.optim.SGD([p for part in parts for p in part.parameters()], lr=0.0)  # no state of this dtype stays
    for name, step in variants.items():
        same.keep(name, replace(step, optimizer=still, batches=[batch.to(wide) for batch in step.batches])())
    mapper.to(torch.float32)
    same.check(dtype)
    return same


def measured(case: Case, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Builds the parts, runs all variants in turn, and gives what the JSON file has."""
    size = Size(options.layers, options.width, options.vocab)
    save(Path(folder), size)
    draws = draw(options.captions, options.batch, case.vocabulary, case.features, options.pool).to(options.device)
    torch.manual_seed(0)
    mapper = case.mapper(size.width).to(options.device)
    decoder = case.decoder(folder, dtype=options.dtype).to(options.device)
    variants = steps(case, mapper, decoder, folder, draws, options.otherwise)
    references = {name: BUCKETED if len(step.batches) > 1 else OURS for name, step in variants.items()}
    same = compared(variants, references, mapper, decoder)
    work = draws.middle
    prefix = mapper(work.features).embeds.shape[1]
    positions = prefix * len(work.texts) + work.run()[0]
    square = 1024 if options.device == "cpu" else 8192
    shapes = [(positions, size.width, 4 * size.width), (positions, 4 * size.width, size.width), (square,) * 3]
    dtype = decoder.lm.get_input_embeddings().weight.dtype
    products = {f"{m} x {k} x {n}": Gemm(m, k, n, options.device, dtype) for m, k, n in shapes}
    operations = step_operations(size, mapper, decoder, work)
    times = in_turn({**products, **variants}, options.repeat, device=options.device, clock=clock_of(options))

    rates = {name: product.operations / times[name].median for name, product in products.items()}
    limit = operations / max(rates.values())
    rows = [
        {
            "variant": name,
            "steps": len(step.batches),
            **times[name].as_dict(),
            "ratio": times[name].median / times[references[name]].median,
            "fraction_of_limit": limit / times[name].median if step.batches == [work] else None,
            "padding": step.padding,
            "loss": same.found[name][0],
            "loss_error": same.errors(name)[0],
            "gradient_error": same.errors(name)[1],
        }
        for name, step in variants.items()
    ]
    counts = {"inputs": len(work.texts), "captions": len(work.apart().texts), "tokens": work.tokens, "prefix": prefix}
    limits = {"operations": operations, "rates": rates, "seconds": limit}
    return {"options": vars(options), "versions": versions(), "batch": counts, "limit": limits, "variants": rows}


def report(found: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    clock = clock_of(found["options"])
    on_gpu = found["options"].get("device", "cpu") != "cpu"
    units = (
        ["CPU s", "min - max", "wall s"] if clock == "cpu" else ["s", "min - max", "peak GiB" if on_gpu else "CPU s"]
    )
    head = ["step", *units, "x", "of limit", "padding", "loss error", "gradient error"]
    rows = []
    for row in found["variants"]:
        each, counts = row["steps"], row[f"{clock}_s"]
        other = row["wall_median" if clock == "cpu" else "cpu_median"] / each
        beside = f"{row['peak'] / 2**30:.3g}" if on_gpu else f"{other:.3g}"
        rows.append([
            row["variant"],
            f"{row[f'{clock}_median'] / each:.3g}",
            f"{min(counts) / each:.3g} - {max(counts) / each:.3g}",
            beside,
            f"{row['ratio']:.2f}",
            "" if row["fraction_of_limit"] is None else f"{row['fraction_of_limit']:.0%}",
            f"{row['padding']:.1%}",
            f"{row['loss_error']:.0e}",
            f"{row['gradient_error']:.0e}",
        ])  # fmt: skip
    batch, limit, options = found["batch"], found["limit"], found["options"]
    rate = max(limit["rates"].values())
    made = f"{batch['captions']} captions of {batch['inputs']} inputs, {batch['tokens']} tokens"
    made += f", a prefix of {batch['prefix']}"
    software = ", ".join(" ".join(pair) for pair in found["versions"].items())
    second = "CPU second" if clock == "cpu" else "second"
    least = f"{limit['operations'] / 1e9:.4g} GFLOP at {rate / 1e9:.3g} GFLOP per {second} = {limit['seconds']:.3g} s"
    where = options["dtype"] if on_gpu else f"threads {options['threads']}"
    first = f"{made}; {where}; n = {options['repeat']}; {software}"
    return f"{first}\nlimit: {least}\n\n{table(head, rows)}"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints the table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mapper", choices=list(CASES), default="transformer")
    parser.add_argument("--prefix-length", type=int, default=40, help="positions (not prefix_aac, which has 15 + 11)")
    parser.add_argument("--captions", type=int, default=5, help="captions an input")
    parser.add_argument("--batch", type=int, default=30, help="captions a batch")
    parser.add_argument("--features", type=int, default=512, help="width of the encoder's summary (not prefix_aac)")
    parser.add_argument("--layers", type=int, default=Size.layers)
    parser.add_argument("--width", type=int, default=Size.width)
    parser.add_argument("--vocab", type=int, default=Size.vocabulary)
    parser.add_argument("--words", type=int, default=7911, help="words of a trained head (prefix_aac)")
    parser.add_argument("--pool", type=int, default=4, help="batches of each kind when bucketing is measured")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; on a GPU the times are those on the wall")
    parser.add_argument("--dtype", choices=list(DTYPES.values()), default="float32", help="of the frozen model")
    parser.add_argument(
        "--otherwise", nargs="*", choices=list(OTHERWISE), default=[], help="also with the decoder's layers so prepared"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", help="a file for all figures")
    options = parser.parse_args(arguments)
    if options.batch % options.captions:
        parser.error(f"--batch {options.batch} is no multiple of --captions {options.captions}")
    case = CASES[options.mapper](options)
    if case.vocabulary > options.vocab:
        parser.error(f"--words {options.words}: each is a token, but --vocab {options.vocab} are all that there are")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(case, options, folder)
    print(report(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
