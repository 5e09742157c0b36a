"""Samplers: each row once an epoch in one process, rows of similar length in a batch, at most max_tokens a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmprefix.data.manifest import read_manifest
from mmprefix.data.model_inputs import ModelInputs
from mmprefix.data.pairs import PairData
from mmprefix.data.samplers import BucketSampler, EvalSampler, RowKey
from mmprefix.decoders.causal import CausalDecoder
from tiny.captioning_system import CaptioningSystem, error_message, quietly, run, training_record

pytestmark = quietly


def random_rows(count: int) -> list[RowKey]:
    draw = np.random.default_rng(count)
    kinds = [frozenset({"image"}), frozenset({"audio"})]
    return [RowKey(kinds[int(draw.integers(2))], 0.0, 1, int(draw.integers(3, 60))) for _ in range(count)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("most", "rows"), [(100, 8), (300, 1000), (40, 16)])
def test_batches_hold_at_most_max_tokens(most: int, rows: int, world: int) -> None:
    keys = random_rows(400)
    ranks = [BucketSampler(keys, rows, rank=rank, world=world, max_tokens=most) for rank in range(world)]
    epochs = [[[draw.rows for draw in sampler.batches(epoch)] for sampler in ranks] for epoch in range(3)]
    for batches in epochs:
        assert {len(mine) for mine in batches} == {len(ranks[0])}
        seen = [row for mine in batches for batch in mine for row in batch]
        assert len(seen) == len(set(seen)) > 400 - 2 * world
        for batch in (batch for mine in batches for batch in mine):
            longest = max(keys[row].tokens for row in batch)
            assert len(batch) <= rows
            assert len(batch) * longest <= most or len(batch) == 1
            assert len({keys[row].inputs for row in batch}) == 1
    assert epochs[0] != epochs[1]
    full = sum(len(batch) * max(keys[row].tokens for row in batch) for mine in epochs[0] for batch in mine)
    padding = 1 - sum(keys[row].tokens for mine in epochs[0] for batch in mine for row in batch) / full
    assert padding < 0.15  # rows of like length are together


def test_a_training_counts_the_decoders_own_tokens(tiny: CaptioningSystem, tmp_path: Path) -> None:
    most = 60
    assert run("fit", tiny.recipe(tiny.config(), tmp_path), data__max_tokens=most, data__batch_size=12) == 0
    decoder = CausalDecoder(tiny.path("decoder"))
    rows = {row.id: row for row in read_manifest(tiny.folder / "train.jsonl")[0]}
    tokens = {name: sum(decoder.count_tokens(list(row.captions))) for name, row in rows.items()}
    assert decoder.count_tokens(["", "a hill"])[0] == 1  # the end of text
    steps = training_record(tmp_path).steps
    assert any(len(batch) > 1 for _, batch in steps)
    for _, batch in steps:
        assert len(batch) * max(tokens[name] for name in batch) <= most or len(batch) == 1
    for epoch in range(2):
        assert sorted(name for number, batch in steps if number == epoch for name in batch) == sorted(rows)


@pytest.mark.parametrize(("options", "words"), [
    ({"data__max_tokens": 0}, "data.max_tokens 0: give a number from 1 on"),
])  # fmt: skip
def test_bad_numbers_are_refused(
    options: dict[str, Any], words: str, tiny: CaptioningSystem, tmp_path: Path, capfd: Any
) -> None:
    assert words in error_message("fit", tiny.recipe(tiny.config(), tmp_path), capfd, **options)


# --------------------------------------------------------------------------------------- batches by number of rows


def rows(count: int, seed: int = 0) -> list[RowKey]:
    lengths = np.random.default_rng(seed).integers(1, 100, count)
    kinds = [frozenset({"audio"}), frozenset({"image"}), frozenset({"audio", "image"})]
    return [RowKey(kinds[number % 7 % 3], float(length), 1, 9) for number, length in enumerate(lengths)]


@pytest.mark.parametrize("bucket", [True, False])
@pytest.mark.parametrize(("count", "size", "world"), [(100, 4, 1), (101, 4, 2), (1003, 3, 3), (2, 5, 1)])
def test_every_row_once_an_epoch_by_one_process(count: int, size: int, world: int, bucket: bool) -> None:
    keys = rows(count)
    samplers = [BucketSampler(keys, size, seed=1, bucket=bucket, rank=rank, world=world) for rank in range(world)]
    for epoch in (0, 1):
        batches = [sampler.batches(epoch) for sampler in samplers]
        assert {len(mine) for mine in batches} == {len(samplers[0])}
        seen = [row for mine in batches for draw in mine for row in draw.rows]
        assert len(seen) == len(set(seen))
        left_out = count - len(seen)
        assert left_out < 3 * world if world > 1 else left_out == 0  # a step smaller than the world, one a kind
        for step in zip(*batches, strict=True):
            assert len({keys[row].inputs for draw in step for row in draw.rows}) == 1
            assert max(len(draw.rows) for draw in step) <= size
    assert samplers[0].batches(0) == BucketSampler(keys, size, seed=1, bucket=bucket, world=world).batches(0)
    if count > 10:
        assert samplers[0].batches(0) != samplers[0].batches(1)


def test_bucketing_saves_padding_and_still_shuffles() -> None:
    keys = [RowKey(frozenset({"audio"}), *row.length) for row in rows(4000)]

    def padded(bucket: bool) -> int:
        draws = BucketSampler(keys, 16, bucket=bucket).batches(0)
        return sum(len(draw.rows) * int(max(keys[row].seconds for row in draw.rows)) for draw in draws)

    real = sum(int(row.seconds) for row in keys)
    assert padded(True) < 1.05 * real < 1.6 * real < padded(False)
    means = [np.mean([keys[row].seconds for row in draw.rows]) for draw in BucketSampler(keys, 16).batches(0)]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2  # short batches do not come in a row


def test_skip_and_length() -> None:
    sampler = BucketSampler(rows(40), 4)
    everything = list(sampler)
    sampler.set_epoch(0, skip=3)
    assert list(sampler) == everything[3:]
    assert len(sampler) == len(everything)
    full = BucketSampler(rows(41), 4, drop_last=True)
    assert {len(draw.rows) for draw in full} == {4}
    assert len(list(full)) == len(full)


@pytest.mark.parametrize(("count", "size", "world"), [(100, 4, 1), (101, 4, 2), (50, 16, 4), (3, 8, 2), (2, 8, 4)])
def test_evaluation_sees_every_row_exactly_once(count: int, size: int, world: int) -> None:
    for bucket in (True, False):
        shares = [list(EvalSampler(rows(count), size, bucket=bucket, rank=rank, world=world)) for rank in range(world)]
        seen = sorted(row for share in shares for draw in share for row in draw.rows)
        assert all(shares)  # else the others would wait for a process that has nothing
        assert seen == list(range(count)) if count >= world else set(seen) == set(range(count))
        assert max(len(draw.rows) for share in shares for draw in share) <= size
        if count > 3 * world:  # fewer rows than that, of three kinds, cannot be dealt out evenly
            assert len({len(share) for share in shares}) == 1


@pytest.mark.parametrize("bucket", [False, True])
def test_of_a_sorted_manifest_another_input_of_the_batch_is_seldom_of_the_same_class(bucket: bool) -> None:
    """ESC-10's manifest is sorted by class: each batch of eight held one class, and no prefix seemed to matter."""
    keys = [RowKey(frozenset({"audio"}), 5.0, 5, 30)] * 80
    batches = [batch.rows for batch in EvalSampler(keys, 8, bucket=bucket, shuffle=True)]
    pairs = [(row // 8, other // 8) for batch in batches for row, other in zip(batch, np.roll(batch, 1), strict=True)]
    assert sum(own == other for own, other in pairs) < 0.25 * len(pairs)
    assert sorted(row for batch in batches for row in batch) == list(range(80))
    assert batches == [batch.rows for batch in EvalSampler(keys, 8, bucket=bucket, shuffle=True)]


def test_validation_and_test_deal_their_rows_out(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    lines = [f"{number:02},plan {number // 4},text {number}" for number in range(32)]
    file.write_text("\n".join(["id,context,caption", *lines]), encoding="utf-8")
    names: dict[str, Any] = {split: str(file) for split in ("train", "val", "test", "predict")}
    data = PairData(**names, batch_size=4, num_workers=0)
    data.inputs = ModelInputs({}, reads_text=True)
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        plans = [batch.contexts for batch in loader]
        assert all(len(set(contexts)) > 1 for contexts in plans)
    ids = [name for batch in data.predict_dataloader() for name in batch.ids]
    assert ids == sorted(ids)  # the order of the manifest
