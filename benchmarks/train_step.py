"""What a training step costs, against the same step without the things that make it cheap, and against the limit.

    python benchmarks/train_step.py --mapper transformer --prefix-length 40 --captions 5 --batch 30 --repeat 3

A step is mapper, frozen decoder, loss, backward to the mapper, AdamW. All variants compute the same mean loss over
the same captions and the same gradients, which is checked in the first round, before any figure is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from captions import LONGEST, Captioned, Draws, draw
from limit import step_operations
from measure import Gemm, in_turn, table, versions
from random_gpt2 import Size, save
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, GPT2LMHeadModel

from mmprefix.decoder import CausalDecoder
from mmprefix.mappers.base import Mapper
from mmprefix.mappers.mlp import MLP
from mmprefix.mappers.transformer import Transformer
from mmprefix.types import Features

LOSS, GRADIENT = 2e-6, 5e-6  # the relative errors up to which a variant counts as the same
OURS, BUCKETED = "mmprefix", "mmprefix, several bucketed batches"
Loss = Callable[[Captioned], Tensor]  # the summed negative log-likelihood of all captions


def summaries(work: Captioned) -> Features:
    """Features without frames."""
    b = len(work.pooled)
    return Features(work.pooled.new_zeros(b, 0, 0), torch.zeros(b, 0, dtype=torch.bool), work.pooled)


def shared(mapper: Mapper, decoder: CausalDecoder) -> Loss:
    """The step as mmprefix does it: the prefix of an input is read once, its captions continue from there."""

    def loss(work: Captioned) -> Tensor:
        state = decoder.start(mapper(summaries(work)))
        return decoder.text_loss(state, [""] * len(work.texts), work.texts).nll.sum()

    return loss


class LogitsEverywhere(CausalDecoder):
    """Makes logits of every position that it runs, prefix and padding too; CausalDecoder picks positions first."""

    def _run(self, cache: DynamicCache, embeds: Tensor, visible: Tensor, places: Tensor) -> Tensor:
        return super().head(super()._run(cache, embeds, visible, places))  # (B N V)

    def head(self, hidden: Tensor) -> Tensor:
        return hidden  # what ``_run`` gave are logits already


def naive(mapper: Mapper, folder: str) -> Loss:
    """The step of ClipCap's public code (https://arxiv.org/abs/2111.09734), written anew from its description.

    Every caption reads its own prefix, is padded to the longest caption of the data set, gets logits at every position,
    and gradients into the language model's weights are computed and never used. One difference: captions end with an
    end-of-text token, as ours do.
    """
    lm = cast(GPT2LMHeadModel, GPT2LMHeadModel.from_pretrained(folder)).eval()
    end = cast(int, lm.config.eos_token_id)

    def loss(work: Captioned) -> Tensor:
        rows = [[int(word[1:]) for word in text.split()] + [end] for texts in work.texts for text in texts]
        padded = torch.tensor([row + [0] * (LONGEST - len(row)) for row in rows])
        prefix = mapper(summaries(work.apart())).embeds
        embeds = torch.cat([prefix, lm.transformer.wte(padded)], dim=1)
        mask = torch.cat([torch.ones(prefix.shape[:2], dtype=torch.long), (padded > 0).long()], dim=1)
        logits = lm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
        found = logits[:, prefix.shape[1] - 1 : -1].reshape(-1, logits.shape[-1])
        return F.cross_entropy(found, padded.flatten(), ignore_index=0, reduction="sum")

    return loss


@dataclass
class Step:
    """Trains on ``batches`` one after the other; the loss is the mean over the tokens of all of them.

    The learning rate is zero: all the work of a step is done, and every repetition starts from the same weights.
    ``run`` counts text positions for a batch: those that must be run, and those that this variant runs.
    """

    loss: Loss
    optimizer: torch.optim.AdamW
    batches: list[Captioned]
    run: Callable[[Captioned], tuple[int, int]] = Captioned.run

    def __call__(self) -> float:
        tokens = sum(batch.tokens for batch in self.batches)
        total = 0.0
        self.optimizer.zero_grad()
        for batch in self.batches:
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


def steps(mapper: Mapper, folder: str, draws: Draws) -> dict[str, Step]:
    """The variants by the names that the table has."""
    ours = shared(mapper, CausalDecoder(folder))
    everywhere = shared(mapper, LogitsEverywhere(folder))
    fused = torch.optim.AdamW(mapper.parameters(), lr=0.0, fused=True)
    plain = torch.optim.AdamW(mapper.parameters(), lr=0.0)
    one = [draws.middle]

    def apart(work: Captioned) -> Tensor:
        return ours(work.apart())

    def to_longest(work: Captioned) -> tuple[int, int]:
        return work.apart().run()[0], LONGEST * len(work.apart().texts)

    return {
        OURS: Step(ours, fused, one),
        "without sharing the prefix": Step(apart, fused, one, lambda work: work.apart().run()),
        "with logits at all positions": Step(everywhere, fused, one),
        "naive: all that ClipCap's code does": Step(naive(mapper, folder), plain, one, to_longest),
        BUCKETED: Step(ours, fused, draws.bucketed),
        "the same captions, not bucketed": Step(ours, fused, draws.random),
    }


class Sameness:
    """How far the first result of each variant is from the reference's: loss and mapper gradients."""

    def __init__(self, mapper: Mapper, reference: dict[str, str]) -> None:
        self.mapper, self.reference = mapper, reference
        self.found: dict[str, tuple[float, Tensor]] = {}

    def keep(self, name: str, number: int, loss: Any) -> None:
        """Notes the loss and the gradients that the first run of ``name`` left."""
        if number == 0 and name in self.reference:
            gradients = [p.grad.flatten() for p in self.mapper.parameters() if p.grad is not None]
            self.found[name] = (loss, torch.cat(gradients))
        if number == 0 and len(self.found) == len(self.reference):
            self.check()

    def errors(self, name: str) -> tuple[float, float]:
        """|a - b| / |b| of the loss, and the same in the Euclidean norm over all gradients."""
        loss, gradient = self.found[name]
        want, direction = self.found[self.reference[name]]
        return abs(loss - want) / abs(want), float((gradient - direction).norm() / direction.norm())

    def check(self) -> None:
        """Ends the program where a variant does not compute what its reference does."""
        for name in self.reference:
            loss, gradient = self.errors(name)
            if not (loss <= LOSS and gradient <= GRADIENT):
                sys.exit(f"{name!r}: relative error of the loss {loss:.1e}, of the gradients {gradient:.1e}")


def measured(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Builds the parts, runs all variants in turn, and gives what the JSON file has."""
    size = Size(options.layers, options.width, options.vocab)
    save(Path(folder), size)
    draws = draw(options.captions, options.batch, size.vocabulary, options.features, options.pool)
    torch.manual_seed(0)
    kind = {"mlp": MLP, "transformer": Transformer}[options.mapper]
    mapper = kind(0, options.features, size.width, length=options.prefix_length)
    variants = steps(mapper, folder, draws)
    references = {name: BUCKETED if len(step.batches) > 1 else OURS for name, step in variants.items()}
    same = Sameness(mapper, references)
    work = draws.middle
    positions = options.prefix_length * len(work.texts) + work.run()[0]
    shapes = [(positions, size.width, 4 * size.width), (positions, 4 * size.width, size.width), (1024, 1024, 1024)]
    products = {f"{m} x {k} x {n}": Gemm(m, k, n) for m, k, n in shapes}
    operations = step_operations(size, mapper, summaries(work), work)
    times = in_turn({**products, **variants}, options.repeat, same.keep)

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
    counts = {"inputs": len(work.texts), "captions": len(work.apart().texts), "tokens": work.tokens}
    limits = {"operations": operations, "rates": rates, "seconds": limit}
    return {"options": vars(options), "versions": versions(), "batch": counts, "limit": limits, "variants": rows}


def report(found: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    head = ["step", "CPU s", "min - max", "wall s", "x", "of limit", "padding", "loss error", "gradient error"]
    rows = []
    for row in found["variants"]:
        each = row["steps"]
        rows.append([
            row["variant"],
            f"{row['cpu_median'] / each:.3g}",
            f"{min(row['cpu_s']) / each:.3g} - {max(row['cpu_s']) / each:.3g}",
            f"{row['wall_median'] / each:.3g}",
            f"{row['ratio']:.2f}",
            "" if row["fraction_of_limit"] is None else f"{row['fraction_of_limit']:.0%}",
            f"{row['padding']:.1%}",
            f"{row['loss_error']:.0e}",
            f"{row['gradient_error']:.0e}",
        ])  # fmt: skip
    batch, limit, options = found["batch"], found["limit"], found["options"]
    rate = max(limit["rates"].values())
    made = f"{batch['captions']} captions of {batch['inputs']} inputs, {batch['tokens']} tokens"
    software = ", ".join(" ".join(pair) for pair in found["versions"].items())
    least = f"{limit['operations'] / 1e9:.4g} GFLOP at {rate / 1e9:.3g} GFLOP per CPU second = {limit['seconds']:.3g} s"
    first = f"{made}; threads {options['threads']}; n = {options['repeat']}; {software}"
    return f"{first}\nlimit: {least}\n\n{table(head, rows)}"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints the table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mapper", choices=["mlp", "transformer"], default="transformer")
    parser.add_argument("--prefix-length", type=int, default=40)
    parser.add_argument("--captions", type=int, default=5, help="captions an input")
    parser.add_argument("--batch", type=int, default=30, help="captions a batch")
    parser.add_argument("--features", type=int, default=512, help="width of the encoder's summary")
    parser.add_argument("--layers", type=int, default=Size.layers)
    parser.add_argument("--width", type=int, default=Size.width)
    parser.add_argument("--vocab", type=int, default=Size.vocabulary)
    parser.add_argument("--pool", type=int, default=4, help="batches of each kind when bucketing is measured")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", help="a file for all figures")
    options = parser.parse_args(arguments)
    if options.batch % options.captions:
        parser.error(f"--batch {options.batch} is no multiple of --captions {options.captions}")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options, folder)
    print(report(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
