"""Prefixes of many users: a batch of 64 users against one of one user, a training step of 1,000, bytes and loading.

    python -m benchmarks.user_prefixes

The decoder is a GPT-2 small with random weights. Use: 64 inputs by ``Predictor``, each of another of 2,000 users whose
prefixes lie in a store, against 64 of one of them, the look-up included. Training: a step (loss, backward, ``RowAdam``)
on a caption of each of 64 users in a table of 1,000, against a step on 64 captions of the one user of a table of one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.random_gpt2 import Gpt2Size, save_gpt2
from benchmarks.lib.report import benchmark_parser, markdown_table, options_of, publish, versions
from benchmarks.lib.timing import Times, interleave
from benchmarks.lib.workload import draw_workload
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.encoders.user_id import UserId, id_bytes
from mmprefix.inference.predictor import Predictor
from mmprefix.inference.user_prefixes import NAME, TENSOR, UserLookup
from mmprefix.mappers.ulpt import UserULPT
from mmprefix.mappers.user_prefix import DeepUserPrefix, UserPrefix
from mmprefix.mappers.user_rows import UserRows
from mmprefix.model import Branch, PrefixLM
from mmprefix.training.optimization.row_adam import RowAdam
from mmprefix.types import Batch, Features
from mmprefix.users.store import UserStore
from mmprefix.users.tensor_bytes import to_bytes

KINDS: dict[str, Callable[..., UserRows]] = {
    "soft": partial(UserPrefix, length=10),
    "deep": partial(DeepUserPrefix, length=4),
    "ulpt": partial(UserULPT, length=10, rank=16),
}
MANY, ONE = "64 users", "one user"


def build(decoder: CausalDecoder, kind: str, capacity: int, users: list[str]) -> PrefixLM:
    """Model that reads nothing but the id of a user; ``users`` have rows in its table."""
    model = PrefixLM({"user": Branch(UserId(), partial(KINDS[kind], capacity=capacity))}, decoder)
    table = table_of(model)
    table.observe(hashes(users))
    return model


def table_of(model: PrefixLM) -> UserRows:
    """Table of the users of a model of ``build``."""
    table = model.mapper("user")
    assert isinstance(table, UserRows)
    return table


def hashes(users: list[str]) -> Features:
    """Features of the branch ``user``."""
    return replace(Features.empty(len(users)), pooled=torch.stack([id_bytes(user) for user in users]))


def training_step(model: PrefixLM, captions: list[str], users: list[str]) -> Callable[[], object]:
    """Step of a training: the loss of a caption of each of ``users``, its gradient, an update of their rows."""
    empty = [""] * len(users)
    batch = Batch({"user": hashes(users)}, empty, [[text] for text in captions], empty, list(users))
    optimizer = RowAdam(table_of(model.train()).parameters(), lr=1e-3)

    def step() -> None:
        model.text_loss(batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_training(decoder: CausalDecoder, options: argparse.Namespace, kind: str) -> dict[str, Times]:
    """Times of a step with many users, and with one."""
    users = [f"user {number}" for number in range(options.users)]
    workload = draw_workload(1, options.batch, options.vocab, lambda _, count: Features.empty(count), pool=1)
    captions = [text for row in workload.median.texts for text in row]
    many, one = build(decoder, kind, options.users, users), build(decoder, kind, 1, users[:1])
    steps = {
        MANY: training_step(many, captions, users[: options.batch]),
        ONE: training_step(one, captions, users[:1] * options.batch),
    }
    for step in steps.values():  # moments are made in the first step
        step()
    return interleave(steps, options.repeat)


def fill(store: UserStore, predictor: Predictor, users: list[str]) -> None:
    """Random numbers for each of ``users``."""
    table, draw = table_of(predictor.model), torch.Generator().manual_seed(0)
    shape = (table.length, table.rows.shape[1] // table.length)
    with store.transaction():
        store.add_many(dict.fromkeys(users, ()))
        for user in users:
            numbers = torch.randn(shape, generator=draw) * 0.02
            store.put(user, NAME, {TENSOR: numbers}, key=predictor.users_key or "")


def measure_use(decoder: CausalDecoder, options: argparse.Namespace, kind: str, folder: Path) -> dict[str, Any]:
    """Times of a batch for many users and for one, bytes of a user's file, CPU time to load one."""
    predictor = Predictor(build(decoder, kind, 1, ["somebody"]))
    users = [f"user {number}" for number in range(options.stored)]
    with UserStore(folder / f"{kind}.db", create=True) as store:
        fill(store, predictor, users)
        predictor.users, key = store, predictor.users_key
        began = time.process_time()
        UserLookup(store, key).features(predictor.model, users)
        load = (time.process_time() - began) * 1000 / len(users)
        size = len(to_bytes(store.tensors(users[0], NAME, key=key or "") or {}))
        write = partial(predictor, batch_size=options.batch, max_new_tokens=options.tokens)
        inputs: list[Any] = [{"user": user} for user in users[: options.batch]]
        calls = {MANY: partial(write, inputs), ONE: partial(write, inputs[:1] * options.batch)}
        times = interleave(calls, options.repeat)
    return {"bytes": size, "load_cpu_ms": load, "times": times}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Figures of each kind; of ULPT, whose prefix is as long as the soft one, only bytes and loading."""
    size = Gpt2Size(options.layers, options.width, options.vocab)
    decoder = CausalDecoder(save_gpt2(folder / "decoder", size))
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        brief = argparse.Namespace(**vars(options) | ({"repeat": 0} if kind == "ulpt" else {}))
        use = measure_use(decoder, brief, kind, folder)
        kinds[kind] = {"bytes": use["bytes"], "load_cpu_ms": use["load_cpu_ms"]}
        if brief.repeat:
            training = measure_training(decoder, options, kind)
            kinds[kind]["use"] = {name: times.as_dict() for name, times in use["times"].items()}
            kinds[kind]["training"] = {name: times.as_dict() for name, times in training.items()}
    return {"options": options_of(options), "versions": versions(), "kinds": kinds}


def report(results: dict[str, Any]) -> str:
    """The table: medians of CPU time, and the ratio of many users to one."""
    rows: list[list[str]] = []
    for kind, figures in results["kinds"].items():
        row = [kind, f"{figures['bytes']:,}", f"{figures['load_cpu_ms']:.2f}"]
        for name in ("use", "training"):
            many, one = (figures.get(name, {}).get(who, {}).get("cpu_median") for who in (MANY, ONE))
            row += [f"{one:.2f}", f"{many:.2f}", f"{many / one:.2f}"] if many and one else [""] * 3
        rows.append(row)
    head = ["prefix", "bytes", "load, CPU ms", "64 texts, one user, s", "64 users", "x"]
    return markdown_table([*head, "step, one user, s", "of 1,000", "x"], rows)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write the JSON file."""
    parser = benchmark_parser(__doc__)
    defaults = {"users": 1000, "stored": 2000, "batch": 64, "tokens": 4, "repeat": 3}
    defaults |= {"layers": 12, "width": 768, "vocab": 50257}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(options, Path(folder))
    publish(results, report(results), options.json)
    return results


if __name__ == "__main__":
    main()
