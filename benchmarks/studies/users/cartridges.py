"""A writer's history as a few positions of the decoder's cache: bytes, seconds and likelihood of each way.

    python -m benchmarks.studies.users.cartridges --data data/personal_alfred --model models:smollm2-135m-instruct

The history is made of a writer's own goal sentences from the train rows, one a line; the negative log-likelihood is a
token of the writer's sentences in the test rows, each on its own line. Distillation trains on goal sentences of other
writers and on those of the writer that have no room in the history. Seconds are CPU time, to make the prefix; "read"
is the CPU time to read one sentence behind it, of the prefix as it lies in memory. Two ways make a user's numbers for
a model that has something in front of its users: a first position that all share, and a task's prefix of ten (both the
keys and values of a sentence, for there is no training in this study).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.report import benchmark_parser, markdown_table, publish, versions
from mmprefix.decoders import CausalDecoder
from mmprefix.distillation import Cartridge, distil
from mmprefix.distillation.student import DistilOptions
from mmprefix.distillation.user_numbers import LINE, HistoryOptions, user_numbers
from mmprefix.encoders.user_id import UserId, id_bytes
from mmprefix.kv_cache.state import State
from mmprefix.mappers.p_tuning_v2 import DeepTable
from mmprefix.mappers.user_prefix import DeepUserPrefix
from mmprefix.model import Branch, PrefixLM
from mmprefix.types import Features, Prefix

TASK = "What someone wants to be done at home, in a sentence"


@dataclass(frozen=True)
class Writer:
    """A writer's history, sentences to train on, and sentences to measure on."""

    name: str
    history: str
    train: list[tuple[str, str]]
    test: list[str]


def read_writer(data: Path, name: str, decoder: CausalDecoder, options: argparse.Namespace) -> Writer:
    """Texts of the writer ``name``: as many sentences as ``--tokens`` holds are the history."""
    lines = (data / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] in ("train", "test")]
    own = [row["target"].strip() for row in rows if row["user"] == name and row["split"] == "train"]
    history: list[str] = []
    while len(history) < len(own):
        longer = LINE.join([*history, own[len(history)]])
        if len(decoder.codec.marked_ids(longer)) > options.tokens:
            break
        history.append(own[len(history)])
    others = sorted({row["target"].strip() for row in rows if row["user"] != name and row["split"] == "train"})
    mixed = [*own[len(history) :], *random.Random(0).sample(others, min(options.others, len(others)))]
    test = [row["target"].strip() + LINE for row in rows if row["user"] == name and row["split"] == "test"]
    return Writer(name, LINE.join(history), [(LINE, text + LINE) for text in mixed], test)


def cache_bytes(state: State) -> int:
    """Bytes of the keys and values of a state."""
    return sum(keys.nbytes + values.nbytes for keys, values in state.cache)


@torch.no_grad()
def measure_way(decoder: CausalDecoder, writer: Writer, make: Callable[[], tuple[State, str]]) -> dict[str, float]:
    """Figures of one way: ``make`` gives the state in front of the sentences, and their prompt."""
    began = time.process_time()
    with torch.enable_grad():
        state, prompt = make()
    made = time.process_time() - began
    loss = decoder.text_loss(state, [prompt], [writer.test])
    times: list[float] = []
    for text in writer.test[:5]:
        began = time.process_time()
        decoder.text_loss(state, [prompt], [[text]])
        times.append(time.process_time() - began)
    nll = loss.nll / loss.tokens
    return {
        "bytes": cache_bytes(state),
        "seconds": made,
        "read_ms": sorted(times)[len(times) // 2] * 1000,
        "nll": float(loss.mean()),
        "sentence_sd": float(nll.std()),
    }


def user_state(decoder: CausalDecoder, writer: Writer, positions: int, task: Any = None) -> State:
    """State behind the numbers that are made for a user of a model with a shared first position, and a ``task``."""
    table = partial(DeepUserPrefix, length=2, capacity=1, start=TASK)
    model = PrefixLM({"user": Branch(UserId(), table)}, decoder, task).eval()
    users = model.mapper("user")
    assert isinstance(users, DeepUserPrefix)
    for part in (users, model.task_prefix):
        if isinstance(part, DeepUserPrefix | DeepTable):
            part.begin(decoder)
    numbers = user_numbers(model, users, [writer.history], HistoryOptions(positions, prompt=LINE))[None]
    mask = torch.ones(numbers.shape[:2], dtype=torch.bool)
    return decoder.prefill(model.build_prefix({"user": Features(numbers, mask, id_bytes(writer.name)[None])}))


def ways(decoder: CausalDecoder, writer: Writer, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Ways to put the history in front of a sentence, by name."""
    nothing = decoder.prefill(Prefix.empty(1, decoder.width))

    def cartridge(start: Any, steps: int) -> tuple[State, str]:
        made: Cartridge = distil(
            decoder,
            writer.history,
            writer.train,
            positions=options.positions,
            start=start,
            steps=steps,
            options=DistilOptions(rate=options.rate),
        )
        return decoder.prefill(made.prefix()), LINE

    def history() -> tuple[State, str]:
        with torch.no_grad():
            return decoder.append_prompts(nothing, [writer.history + LINE]), ""

    trained = f"{options.steps} steps of distillation"
    return {
        "nothing": lambda: (nothing, LINE),
        "the history in the prompt": history,
        "start from its text": lambda: cartridge("text", 0),
        "compaction": lambda: cartridge("compact", 0),
        f"compaction, {trained}": lambda: cartridge("compact", options.steps),
        f"random, {trained}": lambda: cartridge("random", options.steps),
        "a user behind a shared position, compaction": lambda: (user_state(decoder, writer, options.positions), LINE),
        "a user behind a task's prefix too, compaction": lambda: (
            user_state(decoder, writer, options.positions, partial(DeepTable, length=10, start=TASK)),
            LINE,
        ),
    }


def report(results: dict[str, Any]) -> str:
    """One row a way; figures are means over the writers."""
    head = ["front", "positions' bytes (float32)", "made in, CPU s", "read a sentence, ms", "nll a token", "by writer"]
    rows: list[list[str]] = []
    for way in next(iter(results["writers"].values())):
        figures = [own[way] for own in results["writers"].values()]

        def mean(name: str, figures: list[dict[str, float]] = figures) -> float:
            return sum(row[name] for row in figures) / len(figures)

        cells = [f"{mean('bytes'):,.0f}", f"{mean('seconds'):.1f}", f"{mean('read_ms'):.0f}", f"{mean('nll'):.3f}"]
        rows.append([way, *cells, " ".join(f"{row['nll']:.3f}" for row in figures)])
    return markdown_table(head, rows)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure every way for every writer, print the table, write the JSON file."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of personal_alfred, with manifest.jsonl")
    parser.add_argument("--model", default="models:smollm2-135m-instruct")
    parser.add_argument("--writers", nargs="+", help="by default the first --count seen ones by name")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=400, help="of the history")
    parser.add_argument("--positions", type=int, default=32)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rate", type=float, default=2e-2, help="of the distillation's Adam")
    parser.add_argument("--others", type=int, default=80, help="sentences of other writers to train on")
    parser.add_argument("--only", nargs="+", metavar="WAY", help="begin of the names of the ways to measure")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    decoder = CausalDecoder(options.model, stop=LINE)
    lines = (options.data / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    known = sorted({row["user"] for row in map(json.loads, lines) if row["user_seen"] and row["split"] == "test"})
    results: dict[str, Any] = {"versions": versions(), "writers": {}}
    for name in options.writers or known[: options.count]:
        writer = read_writer(options.data, name, decoder, options)
        figures = results["writers"][name] = {}
        for way, make in ways(decoder, writer, options).items():
            if not options.only or way.startswith(tuple(options.only)):
                figures[way] = measure_way(decoder, writer, make)
    publish(results, report(results), options.json)
    return results


if __name__ == "__main__":
    main()
