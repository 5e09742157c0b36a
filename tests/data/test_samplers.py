"""Batches by tokens: none is larger than asked, each row comes once an epoch, each epoch has as many batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmprefix.data.manifest import read_manifest
from mmprefix.data.samplers import BucketSampler, RowKey
from mmprefix.decoders.causal import CausalDecoder
from tiny.captioning_system import Tiny, build, quietly, refusal, run, watched

pytestmark = quietly


def some_rows(count: int) -> list[RowKey]:
    draw = np.random.default_rng(count)
    kinds = [frozenset({"image"}), frozenset({"audio"})]
    return [RowKey(kinds[int(draw.integers(2))], 0.0, 1, int(draw.integers(3, 60))) for _ in range(count)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("most", "rows"), [(100, 8), (300, 1000), (40, 16)])
def test_batches_hold_so_many_tokens(most: int, rows: int, world: int) -> None:
    given = some_rows(400)
    ranks = [BucketSampler(given, rows, rank=rank, world=world, max_tokens=most) for rank in range(world)]
    epochs = [[[draw.rows for draw in sampler.batches(epoch)] for sampler in ranks] for epoch in range(3)]
    for batches in epochs:
        assert {len(some) for some in batches} == {len(ranks[0])}
        seen = [row for some in batches for batch in some for row in batch]
        assert len(seen) == len(set(seen)) > 400 - 2 * world
        for batch in (batch for some in batches for batch in some):
            longest = max(given[row].tokens for row in batch)
            assert len(batch) <= rows
            assert len(batch) * longest <= most or len(batch) == 1
            assert len({given[row].inputs for row in batch}) == 1
    assert epochs[0] != epochs[1]
    full = sum(len(batch) * max(given[row].tokens for row in batch) for some in epochs[0] for batch in some)
    padding = 1 - sum(given[row].tokens for some in epochs[0] for batch in some for row in batch) / full
    assert padding < 0.15  # rows of like length are together


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("tiny"))


def test_a_training_counts_the_decoders_own_tokens(tiny: Tiny, tmp_path: Path) -> None:
    most = 60
    assert run("fit", tiny.recipe(tiny.config(), tmp_path), data__max_tokens=most, data__batch_size=12) == 0
    decoder = CausalDecoder(tiny.parts("decoder"))
    rows = {row.id: row for row in read_manifest(tiny.folder / "train.jsonl")[0]}
    tokens = {name: sum(decoder.count_tokens(list(row.captions))) for name, row in rows.items()}
    assert decoder.count_tokens(["", "a hill"])[0] == 1  # the end of text
    steps = watched(tmp_path).steps
    assert any(len(batch) > 1 for _, batch in steps)
    for _, batch in steps:
        assert len(batch) * max(tokens[name] for name in batch) <= most or len(batch) == 1
    for epoch in range(2):
        assert sorted(name for number, batch in steps if number == epoch for name in batch) == sorted(rows)


@pytest.mark.parametrize(("options", "words"), [
    ({"data__max_tokens": 0}, "data.max_tokens 0: give a number from 1 on"),
])  # fmt: skip
def test_bad_numbers_are_refused(options: dict[str, Any], words: str, tiny: Tiny, tmp_path: Path, capfd: Any) -> None:
    assert words in refusal("fit", tiny.recipe(tiny.config(), tmp_path), capfd, **options)
