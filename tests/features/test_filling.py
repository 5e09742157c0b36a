"""Several writers of one store, any of them killed at any line: no row is lost or doubled, and all living ones end."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from safetensors.torch import load_file

from mmprefix.features.keys import feature_key
from tiny.stepped_writers import SteppedWriter, Work, row

INPUTS = tuple(range(9))
NUMBERS = {feature_key(str(number)): number for number in INPUTS}
WORKS = st.builds(
    Work,
    inputs=st.sampled_from([INPUTS, INPUTS[:6], INPUTS[3:]]),  # recipes whose data overlap
    batch_size=st.sampled_from([2, 3]),
    shard_batches=st.integers(1, 3),
    machine=st.sampled_from([None, None, "another1", "another2"]),
)


def published(root: Path) -> Iterator[tuple[str, int]]:
    """File and number of each row of all shards below ``root``, as safetensors reads them; each has its features."""
    for file in root.rglob("*.safetensors"):
        shard = load_file(file)
        begin = 0
        for key, end, pooled in zip(shard["keys"].tolist(), shard["ends"].tolist(), shard["pooled"], strict=True):
            number = NUMBERS[bytes(key)]
            assert torch.equal(shard["frames"][begin:end], row(number).frames)
            assert torch.equal(pooled, row(number).pooled)
            yield file.name, number
            begin = end


class Filling(RuleBasedStateMachine):
    """Writers that are started, run, stopped and killed in any order; at the end those that live run to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="filling"))
        self.writers: list[tuple[SteppedWriter, Work]] = []
        self.files: dict[str, set[int]] = {}
        self.stopped: set[int] = set()
        self.lease = 600.0

    @initialize(wrongly_dead=st.booleans(), first=WORKS, second=WORKS)
    def begin(self, wrongly_dead: bool, first: Work, second: Work) -> None:
        """Start two writers; those on different machines may be taken for dead at any moment, or never."""
        self.lease = -1.0 if wrongly_dead else 600.0
        self.start(first)
        self.start(second)

    @property
    def alive(self) -> list[SteppedWriter]:
        return [writer for writer, _ in self.writers if writer.code is None]

    def one(self, number: int) -> list[SteppedWriter]:
        """A living writer, if there is any: when a writer ends is not for hypothesis to decide."""
        return [self.alive[number % len(self.alive)]] if self.alive else []

    @rule(work=WORKS)
    def start_another(self, work: Work) -> None:
        self.start(work)

    def start(self, work: Work) -> None:
        if len(self.alive) < 3:
            work = Work(work.inputs, work.batch_size, work.shard_batches, work.machine, self.lease)
            self.writers.append((SteppedWriter(self.root, work), work))

    @rule(number=st.integers(0, 2), lines=st.one_of(st.integers(1, 30), st.integers(30, 800)))
    def go_on(self, number: int, lines: int) -> None:
        for writer in self.one(number):
            writer.step(lines)

    @rule(lines=st.integers(30, 800))
    def all_go_on(self, lines: int) -> None:
        for writer in self.alive:
            writer.step(lines)

    @rule(number=st.integers(0, 2), lines=st.integers(1, 60))
    def go_on_and_be_killed(self, number: int, lines: int) -> None:
        for writer in self.one(number):
            writer.step(lines)
            if writer.code is None:
                writer.kill()

    @rule(number=st.integers(0, 2))
    def stop(self, number: int) -> None:
        for writer in self.one(number):
            if writer.process not in self.stopped:  # the second signal stops it at once, with nothing kept
                self.stopped.add(writer.process)
                writer.stop()

    @invariant()
    def nothing_is_doubled_overwritten_or_gone(self) -> None:
        rows = list(published(self.root))
        assert len({number for _, number in rows}) == len(rows)
        files: dict[str, set[int]] = {}
        for file, number in rows:
            files.setdefault(file, set()).add(number)
        assert {name: files.get(name) for name in self.files} == self.files
        self.files = files

    def run_to_the_end(self) -> None:
        """Run the writers in turn; a claim of a killed one on another machine gets old meanwhile."""
        for turn in range(400):
            if not self.alive:
                break
            if turn == 40:
                self.age_claims()
            for writer in self.alive:
                writer.step(200)
        assert not self.alive

    def age_claims(self) -> None:
        living = {str(writer.process) for writer in self.alive}
        for file in self.root.glob("*/claims/*.*"):
            if file.stem.split("-")[-2:-1] != [] and file.stem.split("-")[-2] not in living:
                os.utime(file, (time.time() - 700, time.time() - 700))

    def teardown(self) -> None:
        try:
            self.run_to_the_end()
            codes = {writer.process: writer.code for writer, _ in self.writers}
            assert {code for process, code in codes.items() if process not in self.stopped} <= {0, -9}
            assert {codes[process] for process in self.stopped} <= {0, -9, 143}
            numbers = {number for _, number in published(self.root)}
            for writer, work in self.writers:
                assert writer.code != 0 or numbers >= set(work.inputs)  # who ends in peace has all of its rows
            self.age_claims()
            self.writers.append((SteppedWriter(self.root, Work(INPUTS)), Work(INPUTS)))
            self.run_to_the_end()
            self.nothing_is_doubled_overwritten_or_gone()
            assert {number for _, number in published(self.root)} == set(INPUTS)
            left = {file.name for file in self.root.rglob("*") if file.is_file() and file.suffix != ".safetensors"}
            assert left == {"encoder.json", "index", "index.lock", ".lock"}  # nothing of killed writers
        finally:
            for writer in self.alive:
                writer.kill()
            shutil.rmtree(self.root)


TestFilling = Filling.TestCase
TestFilling.settings = settings(
    max_examples=12,
    stateful_step_count=16,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # making an example smaller takes minutes
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
if not hasattr(os, "fork"):
    TestFilling = pytest.mark.skip("no fork on this system")(TestFilling)
